"""Measures one policy against the original base and writes what came of it; `lsemrl tax` sets the arms side by side."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lsemrl import __version__
from lsemrl.data.base import TaskData
from lsemrl.data.prompts import bos_of
from lsemrl.data.skipped import SkippedRows
from lsemrl.data.splits import evenly
from lsemrl.data.text import PlainText
from lsemrl.devices import computing_device, slow_dtype
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.general import blind, language_of, name_of, remark, signatures
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.evaluation.measurement import (
    BASE,
    BATCHES,
    FILE,
    Measured,
    hash_rows,
    machine,
    outputs,
    timestamp,
    versions,
)
from lsemrl.evaluation.tax import Battery, Measurement, measure
from lsemrl.files import make_folder, try_folder, write_lines, write_text
from lsemrl.metrics.scorer import Scorer
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.alarm_log import read_alarms
from lsemrl.modules.ground import tokenizer_fingerprint
from lsemrl.modules.legibility import check_examples
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.reading import Unreadable, read_text
from lsemrl.rewards.semantic import paid_for
from lsemrl.runs import ALARMS, PREDICTIONS
from lsemrl.types import Example, UserError
from lsemrl.unfinished import Unfinished

_REWARD = "similarity_reward"
_LABELS = {BASE: "Base", "cold_start": "Cold start", "rl": "RL", "sft": "Strong SFT"}


def run_measure(settings: MeasureSettings, folder: Path, read: tuple[Battery, Scorer] | None = None) -> Measured:
    """Measure a policy; write measurement.json, and predictions.jsonl for `lsemrl judge`, to `folder`.

    Args:
        settings: Which policy, and on what.
        folder: Made where it is missing; a measurement of the very same that lies there will do, and of one that was
            scored otherwise what the policy answered.
        read: What `read_measured` found, where that is the same for several policies.

    Raises:
        UserError: `folder` cannot be written, or model, adapter or data are not what the settings say.
    """
    started = time.monotonic()
    try_folder(folder, "output")
    policy = _policy(settings)
    battery, scorer = read or read_measured(settings, policy)
    say = functools.partial(print, file=sys.stderr, flush=True)
    if line := slow_dtype(settings.policy.dtype, device := computing_device(settings.device)):
        say(line)
    base = _load(policy, settings.base)
    policy.to(device)
    adapter = adapter_fingerprint(policy.adapter, policy.settings.adapter_scale) if policy.adapter else ""
    data = {name: hash_rows(examples) for name, examples in battery.parts.items()}
    reading = _reading(policy, battery)
    predictions = folder / PREDICTIONS
    same: dict[str, Any] = {  # as in one that lies there and will do
        "lsemrl": __version__,
        "arm": settings.arm,
        "seed": settings.seed,
        "base_fingerprint": base,
        "adapter_fingerprint": adapter,
        "policy_fingerprint": policy.fingerprint if settings.base is not None else "",
        "data": data,
        "conditions": _conditions(settings, len(battery.target)),
        "asked": _asked(settings, scorer, reading),
    }
    if there := _measured(settings, folder, battery, scorer, same):
        say(f"measured already, {there.created}; delete {folder / FILE} to measure again")
        if not predictions.exists():
            write_lines(predictions, map(dataclasses.asdict, there.outputs))
        return there
    sampling = settings.sampling
    decides_batches = {  # no metric does: outputs are kept, which are scored when all are there
        "lsemrl": __version__,
        "policy": repr(settings.policy.without_weights()),
        "fingerprints": [base, policy.fingerprint, adapter],
        "reading": reading,
        "data": {name: rows.sha256 for name, rows in data.items()},
        "sampling": repr(sampling),
        "batch_size": settings.batch_size,
        "divergence_rows": settings.divergence_rows,
        "scored_by": battery.scored_by,
    }
    make_folder(folder, "output")
    maker = {"machine": machine(), "versions": versions()}
    answered = _answered(folder, {**decides_batches, **maker})  # another's are not scored anew, but answered anew
    with Unfinished(folder / FILE) as part:
        part.take_up(decides_batches, given=answered)
        if answered and part.lines == answered:
            say(f"answers and log-probs are those of {folder / FILE}, and are scored anew; delete it to measure again")
        elif part.lines:
            say(f"going on with a measurement that was stopped; {len(part.lines):,} batches are done")
        batches = Batches(settings.batch_size, say, part, maker)
        found = measure(policy, battery, scorer, sampling, batches, divergence_rows=settings.divergence_rows)
        makers = _one_after_another(batches.makers or [maker])
        target, target_rows, computed = _with_reward(settings, found, scorer.signatures | found.general_signatures)
        measured = Measured(
            **same,
            created=timestamp(),
            label=settings.label or _LABELS.get(settings.arm, settings.arm),
            trained_by=settings.trained_by,
            task=settings.target.plan.task.name,
            policy=_named(settings.policy),
            base=settings.base or settings.policy.model,
            signatures=computed,
            **makers,
            seconds=time.monotonic() - started + batches.seconds_before,
            target=target,
            general=found.general,
            target_rows=target_rows,
            target_counts=found.target_counts,
            general_rows=found.general_rows,
            divergence=found.divergence,
            weight_change=found.weight_change,
            outputs=outputs(found.outputs),
            answers=outputs(found.answers),
            general_name=(settings.general_label or battery.general_name) if battery.general else "",
            text_name=language_of([f"{each.source}{each.reference}" for each in battery.text]) or "text",
            alarms=tuple(read_alarms(policy.adapter.resolve().parent / ALARMS)) if policy.adapter else (),
        )
        write_lines(predictions, map(dataclasses.asdict, measured.outputs))
        write_text(
            folder / BATCHES,
            "".join(f"{line}\n" for line in (_head({**decides_batches, **makers}, part.lines), *part.lines)),
        )
        measured.write(folder)
    return measured


def _one_after_another(makers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of a measurement that was stopped and went on elsewhere as one, with "then" where they differ."""
    told: dict[str, dict[str, Any]] = {}
    for part in ("machine", "versions"):
        every = dict.fromkeys(name for maker in makers for name in maker[part])  # one without a GPU tells of none
        told[part] = {}
        for name in every:
            first, *others = dict.fromkeys(maker[part].get(name, "none") for maker in makers)
            told[part][name] = " then ".join(map(str, (first, *others))) if others else first
    return told


def _head(made_by: dict[str, Any], lines: list[str]) -> str:
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return json.dumps({**made_by, "sha256": digest}, sort_keys=True)


def _answered(folder: Path, made_by: dict[str, Any]) -> list[str]:
    """What the batches of the measurement that lies there gave, if it is whole and this one's would give the same."""
    try:
        Measured.read(folder / FILE)
        was, *lines = read_text(folder / BATCHES).split("\n")[:-1]
    except (Unreadable, UserError, ValueError):
        return []
    return lines if was == _head(made_by, lines) else []


def read_measured(settings: MeasureSettings, policy: Policy | None = None) -> tuple[Battery, Scorer]:
    """Read what is measured on and how it is scored, and say what was noticed.

    Args:
        settings: See there.
        policy: Theirs; None makes it.

    Raises:
        UserError: Model or data are not what the settings say.
    """
    policy = policy or _policy(settings)
    battery = read_battery(
        settings.target,
        settings.general,
        settings.text,
        policy.tokenizer,
        target_rows=settings.target_rows,
        general_rows=settings.general_rows,
        say=functools.partial(print, file=sys.stderr),
    )
    scorer = Scorer(settings.metrics)
    new = settings.max_new_tokens
    checked = check_examples(policy, battery.parts, scorer.encoders, new, unanswered=["text"])
    answered = battery.general and battery.scored_by != "choices"
    why = blind(battery.general, battery.target, scorer.language) if answered else ""
    of_leaks, of_scores = f"leak is left out, for {why}" if why else "", remark(battery.scored_by, battery.general)
    for line in filter(None, [*checked, *scorer.look_at(battery.target), of_scores, of_leaks]):
        print(line, file=sys.stderr)
    return battery, scorer


def _policy(settings: MeasureSettings) -> Policy:
    # The KL reference of training plays no part here.
    reference: Literal["base", "none"] = "none" if settings.policy.train == "full" else "base"
    return Policy(dataclasses.replace(settings.policy, reference=reference))


def read_battery(
    target: TaskData,
    general: TaskData | None,
    text: PlainText | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    target_rows: int,
    general_rows: int,
    say: Callable[[str], None],
) -> Battery:
    """The held-out rows that every arm is measured on.

    Raises:
        UserError: The data cannot be read, or have no test rows.
    """
    held_out: list[tuple[Example, ...]] = []
    lists = SkippedRows()
    for name, data, count in (("target", target, target_rows), ("general", general, general_rows)):
        if data is None:
            held_out.append(())
            continue
        for line in data.prepare(tokenizer, trains=False, lists=lists):
            say(line)
        if not data.test_examples:
            raise UserError(f"{name} has no test rows; give it a test source, or raise splits.test_fraction")
        held_out.append(_chosen(data, count))
    begins = bos_of(tokenizer)
    texts = tuple(dataclasses.replace(row, prompt=begins + row.prompt) for row in text.examples()) if text else ()
    if general is None:
        return Battery(target=held_out[0], text=texts)
    task = general.plan.task
    name = name_of(task, held_out[1])
    return Battery(target=held_out[0], general=held_out[1], text=texts, scored_by=task.scored_by, general_name=name)


def _chosen(data: TaskData, count: int) -> tuple[Example, ...]:
    """So many test rows; those of the embedded world are drawn one by one, and its first are as good as any."""
    source = data.plan.test or data.plan.source
    rows = data.test_examples
    return tuple(evenly(rows, count) if source.world_split is None else rows[:count])


def _load(policy: Policy, base: str | None) -> str:
    """Read the weights and, after full fine-tuning, those of the base beside them; returns the base's fingerprint."""
    policy.load()
    if policy.adapted:
        return policy.fingerprint
    if base is None:
        policy.reference_model = policy.model
        return policy.fingerprint
    original = Policy(dataclasses.replace(policy.settings, model=base))
    original.load()
    shapes = [{name: weight.shape for name, weight in each.model.named_parameters()} for each in (original, policy)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"base is {base!r}, whose weights have other names or shapes than those of policy.model "
            f"{policy.settings.model!r}; name the model that it was fine-tuned from"
        )
    policy.reference_model, policy.base_tokenizer = original.model.requires_grad_(False).eval(), original.tokenizer
    return original.fingerprint


def _measured(
    settings: MeasureSettings, folder: Path, battery: Battery, scorer: Scorer, same: dict[str, Any]
) -> Measured | None:
    """What lies there, if it is what would be measured again."""
    try:
        there = Measured.read(folder / FILE)
    except UserError:
        return None
    # Those of the new task are known of outputs only; `asked` holds what decides them.
    of_task = {name: there.signatures[name] for name in (*settings.metrics.names, _REWARD) if name in there.signatures}
    wanted = same | {
        "signatures": of_task | signatures(battery.scored_by, battery.general, battery.target, scorer.language),
        "versions": versions(),
    }
    return there if all(getattr(there, name) == value for name, value in wanted.items()) else None


def _reading(policy: Policy, battery: Battery) -> list[Any]:
    """How policy and base read the rows, and what ends the policy's texts, which is no matter of weights."""
    rows = [row for examples in battery.parts.values() for row in examples]
    own, base = policy.tokenizer, policy.base_tokenizer
    fingerprints = dict.fromkeys(tokenizer_fingerprint(each, rows) for each in ([own] if base is own else [own, base]))
    return [policy.eos_ids(), *fingerprints]


def _asked(settings: MeasureSettings, scorer: Scorer, reading: list[Any]) -> str:
    facts = [reading, scorer.asked, settings.threshold, settings.label, settings.trained_by, settings.general_label]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _conditions(settings: MeasureSettings, target_rows: int) -> dict[str, float | str]:
    rows = settings.divergence_rows
    fewer = {"divergence_rows": rows} if rows is not None and rows < target_rows else {}
    beams: dict[str, float | str] = {"num_beams": settings.num_beams} if settings.num_beams > 1 else {}
    if settings.guarded:
        beams["guarded"] = "copies, loops, broken"
    said: dict[str, float | str] = {"max_new_tokens": settings.max_new_tokens, "dtype": settings.policy.dtype}
    return {**said, "texts": "NFC", **fewer, **beams}


def _named(policy: PolicySettings) -> dict[str, str | float | None]:
    scale = {} if policy.adapter_scale == 1 else {"adapter_scale": policy.adapter_scale}
    return {"model": policy.model, "train": policy.train, "adapter": policy.adapter, **scale}


def _with_reward(
    settings: MeasureSettings, found: Measurement, computed: dict[str, str]
) -> tuple[dict[str, float], dict[str, tuple[float, ...]], dict[str, str]]:
    """The scores on the new task and, where similarity was measured, what the reward makes of it."""
    if "similarity" not in found.target_rows:
        return found.target, found.target_rows, computed
    reward = tuple(
        paid_for(output.text, similarity, settings.threshold)
        for output, similarity in zip(found.outputs, found.target_rows["similarity"], strict=True)
    )
    return (
        found.target | {_REWARD: sum(reward) / len(reward)},
        found.target_rows | {_REWARD: reward},
        computed | {_REWARD: f"mean of max(0, (s - tau) / (1 - tau)), tau {settings.threshold}"},
    )
