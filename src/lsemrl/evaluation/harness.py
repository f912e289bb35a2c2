"""General ability through EleutherAI's lm-evaluation-harness: the same questions before and after training.

The harness is handed the model that is already loaded, once with the adapter switched off and once with it on, so that
nothing differs between the two but the adapter. Nothing is merged.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import importlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from transformers import GenerationConfig

from lsemrl import __version__
from lsemrl.foreign import visible
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import UserError

OURS = Path(__file__).parent / "harness_tasks"
"""The folder of our own tasks, for the harness's --include_path."""
CMRC = "cmrc2018"

_FEWSHOT = {"mmlu": 5, "cmmlu": 5, "ceval-valid": 5}
"""Examples that published results show where the harness's own task has none."""
_LIBRARIES = ("lm-eval", "torch", "transformers", "peft", "datasets")
_CHATTER = ("`pretrained` model kwarg", "Passed an already-initialized model", "Custom kwargs can be passed")


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """What is asked, and how; the same for both models. Decoding is greedy and thinking is off."""

    tasks: list[str]
    """Names of the harness's tasks or groups (mmlu, cmmlu, ceval-valid, gsm8k, belebele_bod_Tibt), or our cmrc2018."""
    cmrc: str | None = None
    """For cmrc2018: its JSON file (nested as it was released, or flat JSONL), or "micro" for the embedded world's."""
    include: str | None = None
    """Folder with YAML files of further tasks, as the harness's own --include_path."""
    num_fewshot: dict[str, int] = field(default_factory=dict)
    """Task -> worked examples in its prompt; otherwise 5 for mmlu, cmmlu and ceval-valid, and the task's own number."""
    limit: int | None = None
    """Ask only the first so many questions of every task and of every task in a group; null asks all."""
    chat: bool | None = None
    """Use the tokenizer's chat template; null uses it where there is one."""
    batch_size: int = 8
    """Sequences in a forward pass."""
    device: str | None = None
    """Where the model runs (cpu, cuda, cuda:1); null takes a GPU where there is one."""
    seed: int = 1
    """Draws the worked examples where a task draws them."""

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.include is not None and not Path(self.include).is_dir():
            raise UserError(f"include is {self.include!r}, which is no folder; name one with YAML files of tasks")
        if not self.tasks:
            raise UserError("tasks is empty; name at least one, such as gsm8k or cmrc2018")
        if CMRC in self.tasks and self.cmrc is None:
            raise UserError(
                f"cmrc is null, but tasks has {CMRC}, which is read from a file of yours; name the JSON of CMRC 2018 "
                "(cmrc2018_dev.json), or micro for the embedded world's questions"
            )
        for name, count in self.num_fewshot.items():
            if name not in self.tasks:
                raise UserError(f"num_fewshot names {name!r}, which is not among tasks ({', '.join(self.tasks)})")
            if count < 0:
                raise UserError(f"num_fewshot.{name} is {count}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score, or the difference of two, with its standard error where there is one."""

    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task, or a group with the mean over its tasks, before and after.

    Attributes:
        name: The harness's.
        asked_as: The entry of `tasks` that brought it.
        part: Whether it is only a part of a group that has scores of its own.
        task_version: The harness's; scores of different versions do not compare.
        num_fewshot: Worked examples in a prompt; None for a group whose tasks differ.
        questions: How many each model was asked.
        before: Of the base, by the harness's "metric,filter", with the harness's standard errors.
        after: Of the base with the adapter, by the same names.
        difference: After minus before. Its standard error is that of the mean over questions of their own differences,
            since both models answer the same ones; None for a score that is no such mean.
    """

    name: str
    asked_as: str
    part: bool
    task_version: str
    num_fewshot: int | None
    questions: int
    before: dict[str, Score]
    after: dict[str, Score]
    difference: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class General:
    """What general.json holds.

    Attributes:
        policy: Model, adapter, dtype, and the fingerprint of the base.
        settings: As they took effect: chat template or not, thinking, decoding, seed, limit, batch size.
        versions: Library -> version.
        tasks: In the order they were asked for.
        skipped: Task -> why it could not be run, in a sentence.
        seconds: Of the evaluation so far.
    """

    lsemrl: str = __version__
    created: str
    policy: dict[str, str | None]
    settings: dict[str, Any]
    versions: dict[str, str]
    tasks: tuple[TaskResult, ...]
    skipped: dict[str, str]
    seconds: float


def run_harness(policy_settings: PolicySettings, settings: HarnessSettings, folder: Path) -> General:
    """Evaluate a policy with its adapter off and on, and write general.json after every task.

    Args:
        policy_settings: Must name an adapter.
        settings: What is asked, and how.
        folder: Made where it is missing.

    Raises:
        UserError: lm-eval is not installed, a task is unknown or fixes its examples, no task can be run, or the
            policy or `folder` cannot be used. Before weights are read.
    """
    if policy_settings.adapter is None:
        raise UserError(
            "policy.adapter is null, and before is compared with after by switching an adapter off and on; name the "
            "`adapter` folder that a run wrote"
        )
    policy = Policy(dataclasses.replace(policy_settings, reference="base"))  # no copy of the adapter is needed
    if settings.chat and not policy.tokenizer.chat_template:
        raise UserError(
            f"chat is true, but the tokenizer of policy.model {policy_settings.model!r} has no chat template; set "
            "chat to null, or give the tokenizer one"
        )
    device = _device(settings.device)
    _make(folder)
    tasks, skipped = load_tasks(settings)
    if not tasks:
        raise UserError(f"none of the tasks can be run: {'; '.join(skipped.values())}")
    policy.load()
    policy.to(device)
    begun = time.monotonic()
    chat = bool(policy.tokenizer.chat_template) if settings.chat is None else settings.chat
    general = General(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        policy={
            "model": policy_settings.model,
            "adapter": policy_settings.adapter,
            "dtype": policy_settings.dtype,
            "base_fingerprint": policy.fingerprint,
        },
        settings={
            **dataclasses.asdict(settings),
            "chat": chat,
            "enable_thinking": False,
            "decoding": "greedy",
            "device": str(device),
        },
        versions={name: version(name) for name in _LIBRARIES},
        tasks=(),
        skipped=skipped,
        seconds=0.0,
    )
    for name, loaded in tasks.items():
        with policy.base():
            before = _evaluate(policy, loaded, settings, chat)
        with policy.inference():
            after = _evaluate(policy, loaded, settings, chat)
        general = dataclasses.replace(
            general,
            tasks=(*general.tasks, *_results(name, before, after)),
            seconds=time.monotonic() - begun,
        )
        text = json.dumps(dataclasses.asdict(general), ensure_ascii=False, indent=2) + "\n"
        (folder / "general.json").write_text(text, encoding="utf-8")
    return general


def load_tasks(settings: HarnessSettings) -> tuple[dict[str, Any], dict[str, str]]:
    """Load every task with its data, ready to be asked.

    Returns:
        What the harness loads for each entry of `settings.tasks`, and for those whose data set or requirements are not
        to be had, a sentence that says so.

    Raises:
        UserError: lm-eval is not installed, a task is unknown or fixes its examples, or CMRC 2018 cannot be read.
    """
    manager = _manager(settings.cmrc, settings.include)
    for name in settings.tasks:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise UserError(f"tasks names {name!r}, which lm-eval {version('lm-eval')} does not know; {hint}")
    tasks: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in settings.tasks:
        try:
            loaded = manager.load(name)
        except UserError:
            raise
        except Exception as error:  # a task is code of others, and one that fails must not take the rest with it
            skipped[name] = _why(name, error)
            continue
        asked = settings.num_fewshot.get(name)
        for task in loaded["tasks"].values():
            own = task.get_config("num_fewshot")
            if asked and own == 0:
                raise UserError(f"num_fewshot.{name} is {asked}, but the task {task.task_name} is defined with none")
            if own != 0:
                task.set_config("num_fewshot", _FEWSHOT.get(name, own or 0) if asked is None else asked)
            if task.get_config("output_type") == "generate_until":
                task.set_config("generation_kwargs", {"do_sample": False, "temperature": 0.0}, update=True)
        tasks[name] = loaded
    return tasks, skipped


def table(general: General) -> Table:
    """The scores of every task that was asked for, before and after; parts of a group are in the file."""
    title = f"General ability of {general.policy['model']}, without and with {general.policy['adapter']}"
    shown = Table(title=Text(visible(title)), box=SIMPLE_HEAD, pad_edge=False)
    for title in ("task", "score"):
        shown.add_column(title, overflow="fold")
    for title in ("asked", "before", "after", "difference"):
        shown.add_column(title, justify="right", no_wrap=True)
    for result in general.tasks:
        if result.part:
            continue
        for metric, difference in result.difference.items():
            shown.add_row(
                Text(visible(result.name)),
                Text(visible(metric.removesuffix(",none"))),
                str(result.questions),
                _number(result.before[metric]),
                _number(result.after[metric]),
                _number(difference, "+"),
            )
    return shown


def _number(score: Score, sign: str = "") -> str:
    return f"{score.value:{sign}.3f}" + ("" if score.stderr is None else f"±{score.stderr:.3f}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output is {str(folder)!r}, which cannot be made ({error.strerror}); name another folder"
        ) from None


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"device is {name!r}, which torch does not know; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device is {name!r}, but torch sees no GPU here; use cpu")
    return device


def _lm_eval(module: str) -> Any:
    try:
        importlib.import_module("lm_eval")
    except ImportError:
        raise UserError(
            "lm-eval is not installed, and general ability is measured with it: pip install 'lsemrl[lm-eval]'"
        ) from None
    for name in ("lm_eval.models.huggingface", "lm_eval.api.task"):
        logging.getLogger(name).addFilter(_no_chatter)
    return importlib.import_module(module)


def _no_chatter(record: logging.LogRecord) -> bool:
    """Drop what the harness says of how we call it, keep what it says of tasks and texts; named, to be added once."""
    return not any(about in record.getMessage() for about in _CHATTER)


@functools.cache  # it reads some fourteen thousand files
def _manager(cmrc: str | None, include: str | None) -> Any:
    folders = [str(OURS)] + ([include] if include else [])
    return _lm_eval("lm_eval.tasks").TaskManager(include_path=folders, metadata={"cmrc": cmrc})


def _why(name: str, error: Exception) -> str:
    reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
    if isinstance(error, OSError):
        remedy = "it needs the network, or a Hugging Face cache that holds the data set (HF_HOME)"
    elif isinstance(error, ImportError):
        remedy = "install what it asks for"
    else:
        remedy = "lm-eval and its data set may have grown apart"
    return f"{name} cannot be loaded ({reason}): {remedy}"


def _evaluate(policy: Policy, loaded: Any, settings: HarnessSettings, chat: bool) -> Any:
    """What the harness makes of the policy as it stands."""
    evaluate: Callable[..., Any] = _lm_eval("lm_eval.evaluator").evaluate
    hflm = _lm_eval("lm_eval.models.huggingface").HFLM
    model = policy.model.get_base_model()  # peft has put the adapter into its layers
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(settings.seed)
    with _plain_generation(model, policy):
        lm = hflm(pretrained=model, tokenizer=policy.tokenizer, batch_size=settings.batch_size, enable_thinking=False)
        return evaluate(
            lm,
            loaded,
            limit=settings.limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )


@contextmanager
def _plain_generation(model: Any, policy: Policy) -> Iterator[None]:
    """Inside, the model's own generation_config, which may penalise repetition, plays no part; every EOS id counts."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=policy.eos_ids(), pad_token_id=policy.tokenizer.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config = own


def _results(asked_as: str, before: Any, after: Any) -> Iterator[TaskResult]:
    """Every task and every group with scores, groups first."""
    groups: dict[str, Any] = before.get("groups", {})
    parts = {child for group in groups for child in before["group_subtasks"][group]}
    for name in [*groups, *(name for name in before["results"] if name not in groups)]:
        then, now = (_scores(outcome["results"][name]) for outcome in (before, after))
        if not then:
            continue  # a group that only lists its tasks
        shots = before["n-shot"].get(name)
        yield TaskResult(
            name=name,
            asked_as=asked_as,
            part=name in parts,
            task_version=str(before["versions"].get(name)),
            num_fewshot=shots if isinstance(shots, int) else None,
            questions=before["results"][name]["sample_len"],
            before=then,
            after=now,
            difference={
                key: Score(
                    value=now[key].value - then[key].value,
                    stderr=_paired_stderr(_by_question(name, key, before), _by_question(name, key, after)),
                )
                for key in then
            },
        )


def _scores(row: dict[str, Any]) -> dict[str, Score]:
    """The scores among a row of the harness, which keeps "acc,none" and "acc_stderr,none" side by side."""
    scores = {}
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        stderr = row.get(f"{metric}_stderr,{chosen}")
        scores[key] = Score(value=float(value), stderr=float(stderr) if isinstance(stderr, Real) else None)
    return scores


def _by_question(name: str, key: str, outcome: Any) -> np.ndarray | None:
    """The values, question by question, whose mean is the score `key` of `name`; None where it is no such mean."""
    metric, _, chosen = key.partition(",")
    values = [
        sample[metric]
        for task in _leaves(name, outcome["group_subtasks"])
        for sample in outcome["samples"][task]
        if sample["filter"] == chosen and metric in sample
    ]
    if not values or not all(isinstance(value, Real) for value in values):
        return None
    return np.array(values, dtype=float) if np.isclose(np.mean(values), outcome["results"][name][key]) else None


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    return [leaf for child in children[name] for leaf in _leaves(child, children)] if name in children else [name]


def _paired_stderr(before: np.ndarray | None, after: np.ndarray | None) -> float | None:
    if before is None or after is None or len(before) != len(after) or len(before) < 2:
        return None
    return float(np.std(after - before, ddof=1) / np.sqrt(len(before)))
