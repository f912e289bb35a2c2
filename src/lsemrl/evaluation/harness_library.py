"""The door to EleutherAI's lm-evaluation-harness: its tasks loaded as they are to be asked, and a policy asked them."""

from __future__ import annotations

import difflib
import functools
import importlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from lsemrl.data.chat import of_one_day
from lsemrl.evaluation.harness_settings import HarnessSettings
from lsemrl.modules.policy import Policy
from lsemrl.types import UserError

OURS = Path(__file__).parent / "harness_tasks"
"""The folder of our own tasks, for the harness's --include_path."""

_FEWSHOT = {"mmlu": 5, "cmmlu": 5, "ceval-valid": 5}
"""Examples that published results show where the harness's own task has none."""
_CHATTER = ("`pretrained` model kwarg", "Passed an already-initialized model", "Custom kwargs can be passed")


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


def evaluate(policy: Policy, loaded: Any, settings: HarnessSettings, chat: bool) -> Any:
    """What the harness makes of the policy as it stands."""
    ask: Callable[..., Any] = _lm_eval("lm_eval.evaluator").evaluate
    hflm = _lm_eval("lm_eval.models.huggingface").HFLM
    model = policy.model.get_base_model()  # peft has put the adapter into its layers
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(settings.seed)
    with _as_everywhere(model, policy):
        lm = hflm(pretrained=model, tokenizer=policy.tokenizer, batch_size=settings.batch_size, enable_thinking=False)
        return ask(lm, loaded, limit=settings.limit, apply_chat_template=chat, fewshot_as_multiturn=chat)


@contextmanager
def _as_everywhere(model: Any, policy: Policy) -> Iterator[None]:
    """Inside, prompts show no other date tomorrow, every EOS id counts, and nothing else that the model would set does.

    Its generation_config may penalise repetition.
    """
    own, template = model.generation_config, policy.tokenizer.chat_template
    if template:
        policy.tokenizer.chat_template = of_one_day(policy.tokenizer.get_chat_template())
    model.generation_config = GenerationConfig(
        eos_token_id=policy.eos_ids(), pad_token_id=policy.tokenizer.pad_token_id
    )
    try:
        yield
    finally:
        model.generation_config, policy.tokenizer.chat_template = own, template
