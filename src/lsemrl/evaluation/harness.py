"""General ability through EleutherAI's lm-evaluation-harness: the same questions before and after training.

The harness is handed the model that is already loaded, once with the adapter switched off and once with it on, so that
nothing differs between the two but the adapter. Nothing is merged.
"""

from __future__ import annotations

import dataclasses
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lsemrl.devices import computing_device
from lsemrl.evaluation.harness_library import evaluate, load_tasks
from lsemrl.evaluation.harness_scores import General, results
from lsemrl.evaluation.harness_settings import HarnessSettings
from lsemrl.evaluation.measurement import timestamp
from lsemrl.files import make_folder
from lsemrl.json_records import UNREADABLE, write_json
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.reading import read_json
from lsemrl.types import UserError

_FILE = "general.json"
_OF_SPEED = ("batch_size", "device")
_LIBRARIES = ("lm-eval", "torch", "transformers", "peft", "datasets")


def run_harness(policy_settings: PolicySettings, settings: HarnessSettings, folder: Path) -> General:
    """Evaluate a policy with its adapter off and on, and write general.json after every task.

    Args:
        policy_settings: With an adapter, see `check_policy`.
        settings: What is asked, and how.
        folder: Made where it is missing.

    Raises:
        UserError: lm-eval is not installed, a task is unknown or fixes its examples, no task can be run, or the
            policy or `folder` cannot be used, or other scores lie there. Before weights are read.
    """
    policy = Policy(dataclasses.replace(policy_settings, reference="base"))  # no copy of the adapter is needed
    if settings.chat and not policy.tokenizer.chat_template:
        raise UserError(
            f"chat is true, but the tokenizer of policy.model {policy_settings.model!r} has no chat template; set "
            "chat to null, or give the tokenizer one"
        )
    device = computing_device(settings.device)
    asked = {
        **dataclasses.asdict(settings),
        "chat": bool(policy.tokenizer.chat_template) if settings.chat is None else settings.chat,
        "enable_thinking": False,
        "decoding": "greedy",
        "device": str(device),
    }
    adapter = adapter_fingerprint(Path(str(policy.adapter)), policy_settings.adapter_scale)
    _check_own(folder, {"adapter_fingerprint": adapter, "dtype": policy_settings.dtype, **asked})
    tasks, skipped = load_tasks(settings)
    if not tasks:
        raise UserError(f"none of the tasks can be run: {'; '.join(skipped.values())}")
    policy.load()
    policy.to(device)
    begun = time.monotonic()
    general = General(
        created=timestamp(),
        policy={
            "model": policy_settings.model,
            "adapter": policy_settings.adapter,
            **({} if policy_settings.adapter_scale == 1 else {"adapter_scale": policy_settings.adapter_scale}),
            "dtype": policy_settings.dtype,
            "base_fingerprint": policy.fingerprint,
            "adapter_fingerprint": adapter,
        },
        settings=asked,
        versions={name: version(name) for name in _LIBRARIES},
        tasks=(),
        skipped=skipped,
        seconds=0.0,
    )
    for name, loaded in tasks.items():
        with policy.base():
            before = evaluate(policy, loaded, settings, asked["chat"])
        with policy.inference():
            after = evaluate(policy, loaded, settings, asked["chat"])
        general = dataclasses.replace(
            general, tasks=(*general.tasks, *results(name, before, after)), seconds=time.monotonic() - begun
        )
        make_folder(folder, "--output")
        write_json(folder / _FILE, dataclasses.asdict(general))
    return general


def _check_own(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder with other scores, which would be lost; a file that cannot be read is no loss."""
    try:
        there = read_json(folder / _FILE)
        before = {**there["settings"], **there["policy"]}
    except UNREADABLE:
        return
    for name, now in asked.items():
        if name not in _OF_SPEED and before.get(name) != now:
            raise UserError(
                f"--output is {str(folder)!r}, which holds scores of {name} {before.get(name)!r}, not {now!r}; name "
                "another folder"
            )
