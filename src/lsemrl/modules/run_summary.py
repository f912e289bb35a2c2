"""What a run came to, in a few lines for whoever started it."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from lsemrl.modules.alarm_log import read_alarms
from lsemrl.runs import ADAPTER, ALARMS, BEST, SAMPLES

_SCORES = ("reward", "loss")


def run_summary(folder: Path, monitor: str | None, mode: str = "max") -> Iterator[str]:
    """Where everything is, what the score was first, last and at its best, and what to do next.

    Args:
        folder: Of a run of `fit` that has ended.
        monitor: The validation metric that the best adapter was chosen by, if any.
        mode: Whether its `max` or its `min` is the best.
    """
    scores = dict(_scores(folder / "metrics.csv", monitor))
    tried = scores.get(monitor or "", [])
    known = [(value, step) for step, value in tried if not math.isnan(value)]
    # Of equal ones the first, as `Checkpoints` has it.
    best = (max if mode == "max" else min)(known, key=lambda score: score[0], default=None)
    made = [
        (ADAPTER, "the adapter, for plain peft too"),
        (BEST, f"the adapter that did best by {monitor}"),
        ("metrics.csv", "a row for every step that is logged"),
        (SAMPLES, "answers with the parts of their rewards"),
        (ALARMS, "what went wrong, with rows"),
    ]
    there = ", ".join(f"{name} ({what})" for name, what in made if (folder / name).exists())
    yield f"done: {folder} holds {there}"
    for name, ((first, began), *_, (last, ended)) in scores.items():
        yield f"{name}: {began:.4g} at step {first}, {ended:.4g} at step {last}"
    kept = ADAPTER
    if best and best[1] != tried[-1][0] and (folder / BEST).exists():
        kept = BEST
        yield f"best {monitor}: {best[0]:.4g} at step {best[1]}, which {BEST}/ holds; {ADAPTER}/ is of the last step"
    for each in read_alarms(folder / ALARMS):
        yield f"alarm at step {each.rollout_step}, {each.kind}: {each.sentence}"
    run, adapter = shlex.quote(str(folder)), shlex.quote(str(folder / kept))
    yield f"next: lsemrl chat {run}, or lsemrl measure with --policy.adapter {adapter}"


def _scores(path: Path, monitor: str | None) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """By name, steps and what was logged at each, where that is more than once."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in (*((monitor,) if monitor else ()), *_SCORES):
        known = [(row["step"], float(row[name])) for row in rows if row.get(name)]
        if len(known) > 1:
            yield name, known
            if name == "reward":
                return  # beside which the loss of GRPO says nothing
