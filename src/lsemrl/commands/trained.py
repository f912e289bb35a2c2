"""A finished run, taken up to be used: its policy, how it was asked, and how it drew.

Everything is read from the run's own folder: config.yaml, and adapter/ (after full fine-tuning, the model in there). A
run may be somebody else's, so that its config.yaml is data: it names classes of lsemrl alone, none of which is looked
for on a path, and nothing that is read leads out of the folder. Rewards, loggers and callbacks are not read at all.
"""

from __future__ import annotations

import dataclasses
import os
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentParser

from lsemrl.data.base import TaskData
from lsemrl.data.collate import encode
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.headline import HeadlineData
from lsemrl.data.translation import TranslationData
from lsemrl.errors import reason_of
from lsemrl.modules.legibility import fitting
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampler import Sampling, sample
from lsemrl.runs import ADAPTER, CONFIG, check_finished
from lsemrl.types import Example, UserError

_DATA: dict[str, type[TaskData]] = {kind.__name__: kind for kind in (ComprehensionData, HeadlineData, TranslationData)}
"""What `data` of a run may be."""
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ArgumentError, yaml.YAMLError)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run.

    Attributes:
        folder: Its own, with config.yaml and adapter/.
        config: All of config.yaml.
        policy: The trained policy's settings.
        data: What it was trained on; not read yet.
        sampling: How its completions were drawn; greedy, where it drew none.
    """

    folder: Path
    config: dict[str, Any]
    policy: PolicySettings
    data: TaskData
    sampling: Sampling


def read_run(folder: Path) -> Trained:
    """Read a run's configuration.

    Raises:
        UserError: It is no run's folder, or one whose configuration this version does not understand or does not trust.
    """
    check_finished(folder)
    path, adapter = folder / CONFIG, folder / ADAPTER
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, data = config["model"]["init_args"], config["data"]
        data = data["init_args"].get("main", data)  # with replay, what was to be learned
        greedy = {"num_generations": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": model.get("max_new_tokens")}
        kind, fields = _data_class(data["class_path"]), data.get("init_args", {})
        read = {"policy": model["policy"], "sampling": model.get("sampling", greedy), "data": fields}
        if isinstance(model["policy"], dict) and model["policy"].get("trust_remote_code"):
            raise ValueError(
                "policy.trust_remote_code is true, which is for its owner to say: lsemrl predict --config writes the "
                "outputs, and runs the model's code"
            )
        for name, of in (("policy", PolicySettings), ("sampling", Sampling), ("data", kind.__init__)):
            _check_settings(name, read[name], of)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--policy", type=PolicySettings)
        parser.add_argument("--sampling", type=Sampling)
        parser.add_class_arguments(kind, "data")
        found = parser.instantiate_classes(parser.parse_object(read))
    except _UNREADABLE as error:
        reason = reason_of(error, 300)
        raise UserError(f"RUN is {str(folder)!r}, whose config.yaml cannot be read ({reason}); restore it") from error
    _check_links(folder, [path, adapter, folder / "metrics.csv", Path(found.policy.model)])
    where = {"model": str(adapter), "adapter": None} if found.policy.train == "full" else {"adapter": str(adapter)}
    return Trained(
        folder=folder,
        config=config,
        policy=dataclasses.replace(found.policy, reference="none", **where),
        data=found.data,
        sampling=found.sampling,
    )


def _data_class(name: Any) -> type[TaskData]:
    """The class of lsemrl that a configuration names; it is chosen from those there are, and never imported."""
    module, _, last = str(name).rpartition(".")
    kind = _DATA.get(last)
    if kind is None or module not in ("", kind.__module__):
        raise ValueError(
            f"data names the class {str(name)!r}; a run's folder is read without running code of others, and knows "
            f"{', '.join(_DATA)}: of others, lsemrl predict --config writes the outputs, and runs their code"
        )
    return kind


def _check_settings(name: str, value: Any, of: Any) -> None:
    """Refuse what the parser would import as a class: a word, or class_path, where the settings `of` belong."""
    if not isinstance(value, dict) or "class_path" in value:
        raise ValueError(f"{name} is {str(value)[:60]!r}, and a run's folder can name no class there: write its fields")
    for field, hint in get_type_hints(of).items():
        inner = value.get(field)
        kinds = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if kinds and inner is not None:
            _check_settings(f"{name}.{field}", inner, kinds[0])
        elif not isinstance(inner, str) and "class_path" in str(inner):
            raise ValueError(f"{name}.{field} names a class, and a run's folder can name none there")


def _check_links(folder: Path, roots: Iterable[Path]) -> None:
    """Refuse links from within `folder` to elsewhere: whoever sent it may mean one to be read, and sent on."""
    inside = Path(os.path.realpath(folder))
    for root in roots:
        if folder.absolute() not in root.absolute().parents:
            continue
        for path in (root, *root.rglob("*")):
            if not Path(os.path.realpath(path)).is_relative_to(inside):
                raise UserError(
                    f"RUN is {str(folder)!r}, in which {path.name!r} leads out of it; put there what it leads to"
                )


def answer(
    run: Trained, texts: Iterable[str], *, greedy: bool = True, seed: int = 1, batch_size: int = 64
) -> Iterator[tuple[str, str]]:
    """Answer texts as the run was asked: each with its output, in order, a batch at a time; nothing with nothing.

    Args:
        run: See `read_run`.
        texts: Each the input of one row of the run's task.
        greedy: Take the likeliest token, rather than draw as the run drew.
        seed: Of the drawing; the same texts in the same batches give the same outputs.
        batch_size: Texts answered at once.

    Raises:
        UserError: The run's task has several inputs, or its model cannot be read.
    """
    task, template = run.data.plan.task, run.data.plan.resolved_template()
    if len(task.inputs) > 1:
        raise UserError(
            f"RUN was trained on {task.name}, whose rows have {' and '.join(task.inputs)}; generate answers texts of "
            "one input, such as sentences to translate"
        )
    sampling = dataclasses.replace(run.sampling, num_generations=1, compile=False)  # too few answers to pay for it
    if greedy:
        sampling = dataclasses.replace(sampling, temperature=0.0, top_p=1.0, top_k=0)
    policy = Policy(run.policy)
    policy.load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy.to(device)
    for batch in _batches(texts, batch_size):
        asked = [text.strip() for text in batch if text.strip()]  # as rows are read for training
        prompts = [template.render(policy.tokenizer, {"source": text, task.inputs[0]: text}) for text in asked]
        examples = [
            Example(id=str(row), prompt=prompt, source=text, references=("",))
            for row, (prompt, text) in enumerate(zip(prompts, asked, strict=True))
        ]
        answers: Iterator[str] = iter(())
        if examples:
            encoded = encode(policy.tokenizer, examples)
            lengths = encoded.prompt_mask_BP.sum(dim=1)
            what = f"prompt of {asked[int(lengths.argmax())][:30]!r} with {sampling.max_new_tokens:,} new tokens"
            tokens = int(lengths.max()) + sampling.max_new_tokens
            fitting(run.policy.model, policy.config, {what: tokens}, "shorten the text")
            answered = sample(policy, encoded.to(device), sampling, seed)
            answers = iter([one.text for one in answered.completions])
        seed += 1
        yield from ((text, next(answers) if text.strip() else "") for text in batch)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Texts in lists of `size`; the last is shorter, also where a text cannot be read and those before it can."""
    batch: list[str] = []
    try:
        for text in texts:
            batch.append(text)
            if len(batch) == size:
                yield batch
                batch = []
    except UserError:
        yield batch
        raise
    yield batch
