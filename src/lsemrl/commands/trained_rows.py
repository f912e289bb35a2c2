"""Which of the rows that are measured a policy was trained on, as far as the run that it lies in tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsemrl.commands.named import run_of
from lsemrl.data.base import TaskData
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.json_records import UNREADABLE
from lsemrl.reading import read_yaml, user_path
from lsemrl.runs import CONFIG


@dataclass(frozen=True, kw_only=True)
class _Divided:
    """A file of rows, and how much of it is held out.

    Attributes:
        place: What tells it from others.
        task: The class of the data, by whose rows it is divided.
        test: Share of the rows for the test.
        validation: Share of the rows for validation.
        seed: Of the splits.
    """

    place: tuple[Any, ...]
    task: str
    test: float
    validation: float
    seed: int

    def trained_on(self, other: _Divided) -> float:
        """The share of its test rows that are training rows of `other`: a hash of a row is its place in both."""
        held_out = other.test + other.validation
        if self.place != other.place or not self.test:
            return 0.0
        if (self.task, self.seed) != (other.task, other.seed):
            return 1 - held_out
        return max(0.0, self.test - held_out) / self.test


def trained_rows(settings: MeasureSettings) -> list[str]:
    """A line for each of the data that are measured of whose test rows some are training rows of the policy's run.

    The run's folder may be somebody else's: of its configuration only names of files and numbers are looked at, and
    nothing that it names is read.
    """
    weights = settings.policy.adapter_folder or (Path(settings.policy.model) if settings.base else None)
    run = run_of(weights.resolve()) if weights else None
    if run is None:
        return []
    try:
        theirs = [*_of_run(read_yaml(run / CONFIG)["data"])]
    except UNREADABLE:  # of whatever wrote it
        return []
    lines = []
    for name, data in (("target", settings.target), ("general", settings.general)):
        own = _measured(data) if data else None
        share = max((own.trained_on(each) for each in theirs), default=0.0) if own else 0.0
        if share > 1e-9:
            lines.append(
                f"warning: about {share:.1%} of the test rows of {name} are training rows by the splits of {run}; give "
                "both the same splits, or name a file of test rows"
            )
    return lines


def _measured(data: TaskData) -> _Divided | None:
    """The file that test rows are from; None of the embedded world, whose splits never meet."""
    plan = data.plan
    source, splits = plan.test or plan.source, plan.splits
    if source.world_split is not None:
        return None
    return _Divided(
        place=_place(source.path, source.config, source.split),
        task=type(data).__name__,
        test=1.0 if plan.test else splits.test_fraction,
        validation=0.0 if plan.validation or plan.test else splits.validation_fraction,
        seed=splits.seed,
    )


def _of_run(data: Mapping[str, Any]) -> Iterator[_Divided]:
    """The files that a run's configuration has it train on, main rows and others."""
    fields = data.get("init_args") or {}
    for part in (fields.get("main"), fields.get("replay"), *(each["data"] for each in fields.get("more") or ())):
        if part:
            yield from _of_run(part)
    source, splits = fields.get("source"), fields.get("splits") or {}
    if source and not fields.get("untranslated"):
        usual, shares = Source(), Splits()
        yield _Divided(
            place=_place(source["path"], source.get("config"), source.get("split", usual.split)),
            task=data["class_path"].rpartition(".")[2],
            test=0.0 if fields.get("test") else float(splits.get("test_fraction", shares.test_fraction)),
            validation=0.0
            if fields.get("validation")
            else float(splits.get("validation_fraction", shares.validation_fraction)),
            seed=int(splits.get("seed", shares.seed)),
        )


def _place(path: str, config: str | None, split: str) -> tuple[Any, ...]:
    return os.path.realpath(user_path(path)), config, split
