"""What is made of an experiment's measurements once all are there: verdicts of RL against SFT, and the tax report."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lsemrl.errors import UserError

if TYPE_CHECKING:
    from lsemrl.experiment.plan import Experiment, Stage

FOLDER = "reports"
"""In an experiment's output."""
_JUDGED = ("rl", "sft")
_FIELDS = ("stages", "paths", "against", "judge")
_LAST_LINES = 12


@dataclass(frozen=True, kw_only=True)
class ReportPlan:
    """One report of an experiment.

    Attributes:
        name: That of its folder.
        stages: The measured stages in it.
        paths: See `lsemrl tax --path`.
        against: See `lsemrl tax --against`.
        judge: The task by whose rules the oracle of the embedded world compares the arms rl and sft; "" for no judge.
    """

    name: str
    stages: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    against: tuple[str, ...]
    judge: str


def read_reports(written: Mapping[str, Any], stages: Sequence[Stage], where: str) -> tuple[ReportPlan, ...]:
    """Check the reports of an experiment's file.

    Raises:
        UserError: A field that is unknown or of another kind, or a report that names no measured stage.
    """
    measured = {stage.name: stage.overrides.get("arm") for stage in stages if stage.verb == "measure"}
    if written and any(stage.name == FOLDER for stage in stages):
        raise UserError(f"stages in {where} has one of the name {FOLDER!r}, which the reports' folder has; rename it")
    plans = []
    for name, fields in written.items():
        place = f"reports.{name} in {where}"
        if not isinstance(name, str) or not isinstance(fields, dict):
            raise UserError(f"{place} is {fields!r}; write its fields: {', '.join(_FIELDS)}")
        for field in fields:
            if field not in _FIELDS:
                raise UserError(f"{place} has the field {field!r}; its fields are {', '.join(_FIELDS)}")
        patterns, against = (_texts(fields.get(field, []), f"{place}: {field}") for field in ("stages", "against"))
        paths = fields.get("paths", [])
        if not isinstance(paths, list):
            raise UserError(f"{place}: paths is {paths!r}; list lists of arms")
        chosen = [stage for stage in measured if not patterns or any(fnmatch(stage, each) for each in patterns)]
        if not chosen:
            raise UserError(f"{place}: stages is {list(patterns)}, which fits none of {', '.join(measured)}")
        judge = fields.get("judge", "")
        if judge and not set(_JUDGED) <= {measured[stage] for stage in chosen}:
            raise UserError(f"{place}: judge is {judge!r}, but its stages measure no arms rl and sft; leave it out")
        plans.append(
            ReportPlan(
                name=name,
                stages=tuple(chosen),
                paths=tuple(_texts(path, f"{place}: paths") for path in paths),
                against=against,
                judge=str(judge),
            )
        )
    return tuple(plans)


def commands(experiment: Experiment) -> Iterator[tuple[str, ...]]:
    """The words of `lsemrl` for every report, in order."""
    arms = {stage.name: stage.overrides.get("arm") for stage in experiment.stages}
    for plan in experiment.reports:
        folder = experiment.output / FOLDER / plan.name
        searched = [str(experiment.output / stage) for stage in plan.stages]
        if plan.judge:
            pair = [next(stage for stage in plan.stages if arms[stage] == arm) for arm in _JUDGED]
            for seed in experiment.seeds:
                files = (
                    f"{arm}={experiment.folder(stage, seed) / 'predictions.jsonl'}"
                    for arm, stage in zip(_JUDGED, pair, strict=True)
                )
                judged = folder / "judge" / f"seed_{seed}"
                yield ("judge", *files, "--oracle", f"--task={plan.judge}", f"--output={judged}")
            searched.append(str(folder / "judge"))
        paths = [word for path in plan.paths for word in ("--path", *path)]
        yield (
            "tax",
            *searched,
            "--output",
            str(folder),
            *paths,
            *(["--against", *plan.against] if plan.against else []),
        )


def write_reports(experiment: Experiment, prefix: Sequence[str], console: Console) -> int:
    """Make every report; the exit status: 1 if one failed, which is told with the end of what it printed."""
    status = 0
    for words in commands(experiment):
        done = subprocess.run([*prefix, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        lines = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode:
            status = 1
            console.print(
                "\n".join((f"failed: {shlex.join(('lsemrl', *words))}", *lines[-_LAST_LINES:])),
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        elif words[0] == "tax":
            console.print(f"report: {lines[-1]}", markup=False, highlight=False, soft_wrap=True)
    return status


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where} is {value!r}; list names")
    return tuple(value)
