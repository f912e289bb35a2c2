"""Scores of the harness: each adapter's once, each task asked of all alike, and their mean over an arm's adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import Measured
from lsemrl.report.bootstrap import half_width
from lsemrl.report.contrasts import HarnessScore
from lsemrl.report.folders import Found, GeneralFile

_OF_TASK = ("num_fewshot", "task_version", "questions", "questions_sha256")
"""What a task says of how it was asked; one that was written before says less."""


def by_arm(general: Sequence[GeneralFile], found: Sequence[Found]) -> dict[str, list[GeneralFile]]:
    """By the arms whose adapter was asked; each once, and each task of all alike."""
    # Not by their paths: those of two projects may be alike.
    arms: dict[str, set[str]] = {}
    for _, one in found:
        if one.adapter_fingerprint:
            arms.setdefault(one.adapter_fingerprint, set()).add(one.arm)
    asked: dict[str, list[GeneralFile]] = {}
    seen: dict[tuple[str, str, bool], Path] = {}
    first: dict[tuple[str, bool, str], tuple[Any, Path]] = {}
    for each in general:
        if each.fingerprint not in arms:
            at = "" if each.scale == 1 else f" at {each.scale:g}"
            raise UserError(
                f"{each.path} is of the adapter {each.adapter!r}{at}, of which there is no measurement: run lsemrl "
                "measure on that adapter too, or leave the file out of the folders"
            )
        for task in each.tasks:
            name, part = task["name"], task["part"]  # a part of a group may be asked as the group is
            other = seen.setdefault((each.fingerprint, name, part), each.path)
            if other != each.path:
                raise UserError(
                    f"{other} and {each.path} both hold {name} of {each.adapter!r}; leave out one of the two"
                )
            for fact, now in (each.asked | {fact: task[fact] for fact in _OF_TASK if fact in task}).items():
                then, path = first.setdefault((name, part, fact), (now, each.path))
                if then != now:
                    where = " and ".join(dict.fromkeys(map(str, (path, each.path))))
                    raise UserError(
                        f"{where} asked {name} in two ways ({fact} {then} and {now}); ask again in one, or leave out "
                        "one of the two"
                    )
        for arm in arms[each.fingerprint]:
            asked.setdefault(arm, []).append(each)
    return asked


def harness(asked: Sequence[GeneralFile], measured: Sequence[Measured]) -> dict[str, HarnessScore]:
    """The scores of whole tasks and groups, over the adapters of one arm, of which `measured` has every seed."""
    scores: dict[str, dict[str, tuple[float, float, float]]] = {}
    for each in asked:
        for task in (one for one in each.tasks if not one["part"]):
            for key, then in task["before"].items():
                stderr = task["difference"][key]["stderr"]
                row = (then["value"], task["after"][key]["value"], np.nan if stderr is None else stderr)
                # A task may have come in twice, by itself and by a tag.
                scores.setdefault(f"{task['name']}, {key.removesuffix(',none')}", {})[each.fingerprint] = row
    found = {}
    for name, rows in scores.items():
        before, after, stderr = np.array([*rows.values()], dtype=float).T
        more = after - before
        half = half_width(more) if len(rows) > 1 else 1.96 * stderr[0]
        found[name] = HarnessScore(
            before=float(before.mean()),
            after=float(after.mean()),
            low=float(more.mean() - half),
            high=float(more.mean() + half),
            seeds=tuple(each.seed for each in measured if each.adapter_fingerprint in rows),
            left_out=tuple(each.seed for each in measured if each.adapter_fingerprint not in rows),
        )
    return found
