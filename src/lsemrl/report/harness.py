"""Scores of the harness: each adapter's once, each task asked of all alike, and their mean over an arm's adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsemrl.errors import UserError
from lsemrl.report.bootstrap import half_width
from lsemrl.report.folders import Found, General
from lsemrl.report.records import HarnessScore


def by_arm(general: Sequence[General], found: Sequence[Found]) -> dict[str, list[General]]:
    """By the arms whose adapter was asked; each once, and each task of all alike."""
    # Not by their paths: those of two projects may be alike.
    arms: dict[str, set[str]] = {}
    for _, one in found:
        if one.adapter_fingerprint:
            arms.setdefault(one.adapter_fingerprint, set()).add(one.arm)
    asked: dict[str, list[General]] = {}
    seen: dict[tuple[str, str], Path] = {}
    first: dict[str, General] = {}
    for each in general:
        if each.fingerprint not in arms:
            at = "" if each.scale == 1 else f" at {each.scale:g}"
            raise UserError(
                f"{each.path} is of the adapter {each.adapter!r}{at}, of which there is no measurement: run lsemrl "
                "measure on that adapter too, or leave the file out of the folders"
            )
        for task in (str(task["name"]) for task in each.tasks):
            other = seen.setdefault((each.fingerprint, task), each.path)
            if other != each.path:
                raise UserError(
                    f"{other} and {each.path} both hold {task} of {each.adapter!r}; leave out one of the two"
                )
            before = first.setdefault(task, each)
            for name in before.asked | each.asked:
                then, now = (_asked(one, name, task) for one in (before, each))
                if then != now:
                    raise UserError(
                        f"{before.path} and {each.path} asked {task} in two ways ({name} {then} and {now}); ask again "
                        "in one, or leave out one of the two"
                    )
        for arm in arms[each.fingerprint]:
            asked.setdefault(arm, []).append(each)
    return asked


def _asked(general: General, name: str, task: str) -> Any:
    """A setting with which a task was asked."""
    value = general.asked.get(name)
    return value.get(task) if name == "num_fewshot" and isinstance(value, dict) else value


def harness(asked: Sequence[General]) -> dict[str, HarnessScore]:
    """The scores of whole tasks and groups, over the adapters of one arm."""
    scores: dict[str, list[tuple[float, float, float]]] = {}
    for task in (task for each in asked for task in each.tasks if not task["part"]):
        for key, then in task["before"].items():
            stderr = task["difference"][key]["stderr"]
            row = (then["value"], task["after"][key]["value"], np.nan if stderr is None else stderr)
            scores.setdefault(f"{task['name']}, {key.removesuffix(',none')}", []).append(row)
    found = {}
    for name, rows in scores.items():
        before, after, stderr = np.array(rows, dtype=float).T
        more = after - before
        half = half_width(more) if len(rows) > 1 else 1.96 * stderr[0]
        found[name] = HarnessScore(
            before=float(before.mean()),
            after=float(after.mean()),
            low=float(more.mean() - half),
            high=float(more.mean() + half),
        )
    return found
