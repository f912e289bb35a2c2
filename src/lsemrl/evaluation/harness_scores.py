"""What lm-evaluation-harness found, before and after: the scores of every task, and their paired differences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lsemrl import __version__
from lsemrl.foreign import visible


@dataclass(frozen=True, kw_only=True)
class Estimate:
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
        questions_sha256: Tells them, with their answers, from others.
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
    questions_sha256: str
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    difference: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class General:
    """What general.json holds.

    Attributes:
        policy: Model, adapter (and its scale where that is not 1), dtype, and the fingerprint of the base.
        settings: As they took effect: chat template or not, thinking, decoding, seed, limit, batch size.
        versions: Library -> version.
        tasks: In the order they were asked for.
        skipped: Task -> why it could not be run, in a sentence.
        seconds: Of the evaluation so far.
    """

    lsemrl: str = __version__
    created: str
    policy: dict[str, str | float | None]
    settings: dict[str, Any]
    versions: dict[str, str]
    tasks: tuple[TaskResult, ...]
    skipped: dict[str, str]
    seconds: float


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


def _number(score: Estimate, sign: str = "") -> str:
    return f"{score.value:{sign}.3f}" + ("" if score.stderr is None else f"±{score.stderr:.3f}")


def results(asked_as: str, before: Any, after: Any) -> Iterator[TaskResult]:
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
            questions_sha256=_hash(name, before),
            before=then,
            after=now,
            difference={
                key: Estimate(
                    value=now[key].value - then[key].value,
                    stderr=_paired_stderr(_by_question(name, key, before), _by_question(name, key, after)),
                )
                for key in then
            },
        )


def _scores(row: dict[str, Any]) -> dict[str, Estimate]:
    """The scores among a row of the harness, which keeps "acc,none" and "acc_stderr,none" side by side."""
    scores = {}
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
            continue
        stderr = row.get(f"{metric}_stderr,{chosen}")
        scores[key] = Estimate(value=float(value), stderr=float(stderr) if isinstance(stderr, Real) else None)
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


def _hash(name: str, outcome: Any) -> str:
    """Of all questions of `name`, each as often as its answer is read in another way."""
    hashes = [
        [sample["doc_hash"], sample["target_hash"]]
        for task in _leaves(name, outcome["group_subtasks"])
        for sample in outcome["samples"][task]
    ]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def _leaves(name: str, children: dict[str, list[str]]) -> list[str]:
    return [leaf for child in children[name] for leaf in _leaves(child, children)] if name in children else [name]


def _paired_stderr(before: np.ndarray | None, after: np.ndarray | None) -> float | None:
    if before is None or after is None or len(before) != len(after) or len(before) < 2:
        return None
    return float(np.std(after - before, ddof=1) / np.sqrt(len(before)))
