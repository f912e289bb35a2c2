"""What lies in the folders that a tax report is made from: measurements, verdicts, and scores of the harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import FILE, Measured
from lsemrl.json_records import UNREADABLE
from lsemrl.judging.comparison import decides_verdicts, read_predictions
from lsemrl.reading import Json, read_json, read_lines
from lsemrl.report.contrasts import Judged
from lsemrl.runs import PREDICTIONS

Found = tuple[Path, Measured]
_JUDGE, _GENERAL = "judge.json", "general.json"
_VERDICTS = "verdicts.jsonl"
# Settings that decide no score (what else was asked, how fast), or that each task tells the outcome of.
_NOT_OF_ALL = ("tasks", "batch_size", "device", "num_fewshot", "cmrc", "include")
_OF_POLICY = ("dtype", "base_fingerprint")


@dataclass(frozen=True, kw_only=True)
class GeneralFile:
    """What `lsemrl general` found of one adapter at one scale: `tasks` as it writes them, and how all were asked."""

    path: Path
    adapter: str
    fingerprint: str
    scale: float = 1.0
    tasks: tuple[dict[str, Any], ...]
    asked: dict[str, Any]


def find_measurements(folders: Sequence[Path]) -> list[Found]:
    """Every measurement.json in `folders` and below, each once, by path.

    Raises:
        UserError: A folder is not there, none holds a measurement, or one cannot be read.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{str(folder)!r} is no folder: name those that lsemrl measure wrote to")
        for path in [folder] if folder.is_file() else sorted(folder.rglob(FILE)):
            paths.setdefault(path.resolve(), path)
    if not paths:
        raise UserError(
            f"there is no {FILE} in {', '.join(map(str, folders))} or below: run lsemrl measure for each arm first"
        )
    return [(path, Measured.read(path)) for path in paths.values()]


def find_judgement(folders: Sequence[Path], measured: Sequence[Found]) -> dict[str, Judged]:
    """What a judge gave to "rl" and to "sft" against each other; {} where none has judged.

    Several judge.json, such as those of several seeds, are averaged.

    Args:
        folders: Where they are looked for, below too.
        measured: What the verdicts must be on: the outputs in the predictions.jsonl beside each, where there is one.

    Raises:
        UserError: One cannot be read, or is on other outputs, or there are several judges.
    """
    outputs: dict[str, list[tuple[int, dict[str, str]]]] = {}
    wins: dict[str, list[float]] = {"rl": [], "sft": []}
    seeds: dict[str, set[int]] = {arm: set() for arm in wins}
    judge, rows = None, 0
    for path in sorted({path.resolve() for folder in folders for path in folder.rglob(_JUDGE)}):
        try:
            verdict = read_json(path)
            arms, by = verdict["arms"], verdict["judge"]
            if set(arms) != set(wins):
                continue
            by = decides_verdicts(by)
            lines = [Json().parse(line) for line in read_lines(path.with_name(_VERDICTS))]
            said = {arm: {row["id"]: row["outputs"][arm] for row in lines} for arm in arms}
            rows += sum(row["outcome"] != "invalid" for row in lines)
            shares = verdict["shares"]
            if shares["win"] is None:
                raise ValueError("none of its judge's answers was a verdict")
            won = [float(shares[outcome]) for outcome in ("win", "loss")]
            if not all(0 <= share <= 1 for share in won):
                raise ValueError(f"its shares are {won}")
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read ({error}): judge again with lsemrl judge") from error
        if judge not in (None, by):
            raise UserError(f"{path} is of another judge than the files before it: leave one judge's in the folders")
        judge = by
        outputs = outputs or _outputs(measured)
        for arm, own in said.items():
            of = [seed for seed, each in outputs.get(arm, ()) if own.items() <= each.items()]
            if outputs.get(arm) and not of:
                raise UserError(
                    f"{path} is a verdict on other outputs of {arm!r} than those measured here: judge the "
                    f"{PREDICTIONS} beside the measurements, or leave it out of the folders"
                )
            seeds[arm].update(of[:1])
        for arm, share in zip(arms, won, strict=True):
            wins[arm].append(share)
    return {
        arm: Judged(
            win=fmean(shares),
            rows=rows,
            seeds=tuple(sorted(seeds[arm])),
            left_out=tuple(sorted({seed for seed, _ in outputs.get(arm, ())} - seeds[arm])),
        )
        for arm, shares in wins.items()
        if shares
    }


def _outputs(measured: Sequence[Found]) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """What each measurement's arm said, by its seed and the ids of the rows."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for path, each in measured:
        beside = path.with_name(PREDICTIONS)
        if beside.is_file():
            said = {name: row.output for name, row in read_predictions(beside).items()}
            found.setdefault(each.arm, []).append((each.seed, said))
    return found


def find_general(folders: Sequence[Path]) -> list[GeneralFile]:
    """Every general.json in `folders` and below: its path, its policy and its tasks.

    Raises:
        UserError: One cannot be read.
    """
    found = []
    for path in sorted({path.resolve() for folder in folders for path in folder.rglob(_GENERAL)}):
        try:
            content = read_json(path)
            policy, tasks = content["policy"], tuple(content["tasks"])
            adapter = policy["adapter"]
            if not isinstance(adapter, str):
                raise ValueError(f"policy.adapter is {adapter!r}")
            for task in tasks:
                _check_task(task)
            scale = float(policy.get("adapter_scale", 1))
            fingerprint = str(policy["adapter_fingerprint"])
            asked = {name: value for name, value in content.get("settings", {}).items() if name not in _NOT_OF_ALL}
            asked |= {name: policy[name] for name in _OF_POLICY if name in policy}
            found.append(
                GeneralFile(path=path, adapter=adapter, fingerprint=fingerprint, scale=scale, tasks=tasks, asked=asked)
            )
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read ({error}): run lsemrl general again") from error
    return found


def _check_task(task: dict[str, Any]) -> None:
    """Raise ValueError, TypeError, AttributeError or KeyError where a task of general.json lacks what is read of it."""
    if not isinstance(task["name"], str) or not isinstance(task["part"], bool):
        raise ValueError(f"a task has the name {task['name']!r}")
    for key, before in task["before"].items():
        stderr = task["difference"][key]["stderr"]
        for value in (before["value"], task["after"][key]["value"], 0.0 if stderr is None else stderr):
            float(value)
