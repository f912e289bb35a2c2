"""What a run came to, in a few lines for whoever started it."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator
from pathlib import Path

from lsemrl.modules.alarm_log import read_alarms
from lsemrl.runs import ADAPTER, ALARMS, SAMPLES

_SCORES = ("reward", "loss")


def run_summary(folder: Path, monitor: str | None) -> Iterator[str]:
    """Where everything is, what the score was first and last, and what to do next.

    Args:
        folder: Of a run of `fit` that has ended.
        monitor: The validation metric that the best adapter was chosen by, if any.
    """
    made = [
        (ADAPTER, "the adapter, for plain peft too"),
        ("best", f"the adapter that did best by {monitor}"),
        ("metrics.csv", "a row for every step that is logged"),
        (SAMPLES, "answers with the parts of their rewards"),
        (ALARMS, "what went wrong, with rows"),
    ]
    there = ", ".join(f"{name} ({what})" for name, what in made if (folder / name).exists())
    yield f"done: {folder} holds {there}"
    yield from _scores(folder / "metrics.csv", monitor)
    for each in read_alarms(folder / ALARMS):
        yield f"alarm at step {each.rollout_step}, {each.kind}: {each.sentence}"
    run, adapter = shlex.quote(str(folder)), shlex.quote(str(folder / ADAPTER))
    yield f"next: lsemrl chat {run}, or lsemrl measure with --policy.adapter {adapter}"


def _scores(path: Path, monitor: str | None) -> Iterator[str]:
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in (*((monitor,) if monitor else ()), *_SCORES):
        known = [(row["step"], float(row[name])) for row in rows if row.get(name)]
        if len(known) > 1:
            (first, began), (last, ended) = known[0], known[-1]
            yield f"{name}: {began:.4g} at step {first}, {ended:.4g} at step {last}"
            if name == "reward":
                return  # beside which the loss of GRPO says nothing
