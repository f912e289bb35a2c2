"""An experiment, read from YAML and checked: one sentence for every mistake in its file or in those it names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lsemrl.config_files import read_config
from lsemrl.errors import UserError
from lsemrl.experiment.overlay import over, overlaid
from lsemrl.experiment.plan import BASE, JUDGED, REPORTS, TASKS, VERBS, Experiment, ReportPlan, Stage
from lsemrl.finite import check_seed
from lsemrl.reading import user_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_REPORT_FIELDS = ("stages", "paths", "against", "judge")


def read_experiment(
    path: Path,
    configs: Path,
    *,
    overlay: Path | None = None,
    output: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> Experiment:
    """Read and check an experiment.

    Args:
        path: Its YAML file.
        configs: The folder of the shipped configurations.
        overlay: A YAML file that puts another world under the same stages (see `overlay.overlaid`).
        output: In place of the file's.
        seeds: In place of the file's.

    Raises:
        UserError: Whatever is wrong with the file, or with those it names.
    """
    content, name, unused = read_config(path, "--config"), path.stem, tuple[str, ...]()
    if overlay:
        _check(content, path)  # before anything is put over what is of another kind
        name = f"{name}_{overlay.stem}"
        content["output"] = f"{_text(content, 'output', str(path)) or f'runs/experiment/{path.stem}'}_{overlay.stem}"
        world = read_config(overlay, "--overlay")
        if isinstance(world.get("configs"), dict):
            searched = _folders(overlay, configs)
            world["configs"] = {
                shipped: os.path.abspath(found) if (found := _found(str(file), searched)) else file
                for shipped, file in world["configs"].items()
            }
        content, unused = overlaid(content, world, str(overlay))
    _check(content, path)
    common, folders = _dict(content, "overrides", str(path)), _folders(path, configs)
    read: dict[Path, dict[str, Any]] = {}  # what several stages name is read once
    stages = [_stage(stage, path, folders, common, read) for stage in content["stages"]]
    durations = _dict(content, "seconds", str(path))
    folder = _text(content, "output", str(path)) or f"runs/experiment/{name}"
    for pattern, seconds in durations.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise UserError(f"seconds.{pattern} in {path} is {seconds!r}; give a number above 0")
        if not any(fnmatch(stage.name, pattern) for stage in stages):
            raise UserError(f"seconds.{pattern} in {path} fits no stage; name one, or a pattern of some")
    return Experiment(
        name=name,
        description=_text(content, "description", str(path)),
        output=output or Path(folder).expanduser(),
        seeds=_seeds(content.get("seeds", [1]) if seeds is None else list(seeds), path),
        stages=_ordered(stages, path),
        seconds=durations,
        reports=read_reports(_dict(content, "reports", str(path)), stages, str(path)),
        unused=unused,
    )


def _check(content: Mapping[str, Any], path: Path) -> None:
    """Refuse fields that are unknown, or of another kind, but for those that are only read here."""
    known = ("config_version", "description", "output", "seeds", "overrides", "seconds", "stages", "reports")
    _check_fields(content, known, str(path))
    common = _dict(content, "overrides", str(path))
    for verb in common:
        _verb(verb, f"overrides in {path}")
        _check_overrides(_dict(common, verb, f"overrides in {path}"), verb, f"overrides.{verb} in {path}")
    stages = content.get("stages")
    if not isinstance(stages, list) or not stages:
        raise UserError(f"stages in {path} is {stages!r}; list at least one stage, each with name, verb and configs")
    for at, stage in enumerate(stages):
        _check_stage(stage, f"stages[{at}] in {path}", path)
    for name, fields in _dict(content, "reports", str(path)).items():
        if not isinstance(fields, dict):
            raise UserError(f"reports.{name} in {path} is {fields!r}; write its fields: {', '.join(_REPORT_FIELDS)}")


def _check_stage(written: Any, where: str, path: Path) -> None:
    if not isinstance(written, dict):
        raise UserError(f"{where} is {written!r}; write its fields: name, verb, configs")
    _check_fields(written, ("name", "verb", "configs", "overrides", "after", "label", "description"), where)
    name = written.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: name is {name!r}; give one that can be a folder's, of letters, digits, '_', '-' and '.'"
        )
    where = f"stage {name!r} of {path}"
    verb = _verb(written.get("verb"), where)
    files = written.get("configs", [])
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise UserError(f"{where}: configs is {files!r}; list file names")
    own = _dict(written, "overrides", where)
    _check_overrides(own, verb, where)
    after = written.get("after")
    if after is not None and not isinstance(after, str):
        raise UserError(f"{where}: after is {after!r}; name one stage")
    if after is not None and not VERBS[verb].adapter:
        raise UserError(f"{where}: after is {after!r}, but {verb} starts from no adapter; leave it out")
    if after is not None and VERBS[verb].adapter in own:
        raise UserError(f"{where}: {VERBS[verb].adapter} is overridden, but after gives it; leave out one of the two")


def _stage(
    written: Mapping[str, Any],
    path: Path,
    folders: Sequence[Path],
    common: Mapping[str, Mapping[str, Any]],
    read: dict[Path, dict[str, Any]],
) -> Stage:
    name, verb = written["name"], written["verb"]
    where = f"stage {name!r} of {path}"
    files = []
    for file in written.get("configs", []):
        found = _found(file, folders)
        if found is None:
            places = " nor ".join("here" if folder == Path() else f"in {folder}" for folder in folders)
            raise UserError(f"{where}: configs names {file!r}, and there is no such file, neither {places}; correct it")
        files.append(found)
        if found not in read:
            read[found] = read_config(found, f"{where}: configs")
    return Stage(
        name=name,
        verb=verb,
        configs=tuple(files),
        contents=tuple(read[file] for file in files),
        overrides=over(common.get(verb) or {}, _dict(written, "overrides", where)),
        after=written.get("after"),
        label=_text(written, "label", where) or name,
        description=_text(written, "description", where),
    )


def _folders(path: Path, configs: Path) -> tuple[Path, Path]:
    """Where the names in a file of experiments are looked up: a shipped one means shipped ones, a user's one's own."""
    here = Path()
    return (configs, here) if path.resolve().is_relative_to(configs.resolve()) else (here, configs)


def _found(name: str, folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / user_path(name)).is_file()), None)


def _ordered(stages: Sequence[Stage], path: Path) -> tuple[Stage, ...]:
    """Parents before children, else as they stand."""
    known: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in known:
            raise UserError(f"stages in {path} has two stages of the name {stage.name!r}; rename one")
        known[stage.name] = stage
    for stage in stages:
        for parent in stage.parents:
            if parent not in known:
                raise UserError(
                    f"stage {stage.name!r} of {path} builds on {parent!r}, which is no stage; choose one of "
                    f"{', '.join(known)}"
                )
        if stage.after and known[stage.after].verb != "fit":
            raise UserError(
                f"stage {stage.name!r} of {path} comes after {stage.after!r}, a {known[stage.after].verb}, which "
                "leaves no adapter; name the fit whose adapter it should start from"
            )
        if stage.after and known[stage.after].leaves_model:
            model = f"{VERBS[stage.verb].adapter.removesuffix('adapter')}model"
            raise UserError(
                f"stage {stage.name!r} of {path} comes after {stage.after!r}, which trains every weight and leaves a "
                f"model, no adapter; leave after out, and override {model}: '{{stage:{stage.after}}}/adapter'"
            )
    ordered: dict[str, Stage] = {}

    def place(stage: Stage, children: tuple[str, ...]) -> None:
        if stage.name in children:
            circle = (*children[children.index(stage.name) :], stage.name)
            raise UserError(f"stages in {path} wait for each other: {' after '.join(circle)}; break the circle")
        for parent in stage.parents:
            if parent not in ordered:
                place(known[parent], (*children, stage.name))
        ordered[stage.name] = stage

    for stage in stages:
        if stage.name not in ordered:
            place(stage, ())
    return tuple(ordered.values())


def _seeds(written: Any, path: Path) -> tuple[int, ...]:
    seeds = written if isinstance(written, list) else [written]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise UserError(f"seeds of {path} is {written!r}; list whole numbers from 0, such as [1, 2, 3]")
    for seed in seeds:
        check_seed(seed, f"a seed of {path}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds of {path} is {written!r}; name each seed once")
    return tuple(seeds)


def _verb(verb: Any, where: str) -> str:
    if not isinstance(verb, str) or verb not in VERBS:
        raise UserError(f"{where}: verb is {verb!r}; choose one of {', '.join(VERBS)}")
    return verb


def _check_overrides(overrides: Mapping[str, Any], verb: str, where: str) -> None:
    """Refuse what is not a field, and the fields that the runner sets itself."""
    for field in overrides:
        if not isinstance(field, str) or not re.fullmatch(r"[A-Za-z_][\w.-]*", field):
            raise UserError(f"{where}: overrides has the field {field!r}; write dotted fields, such as model.loss.beta")
        if field in (VERBS[verb].folder, VERBS[verb].seed, "config", "checkpoints.resume"):
            raise UserError(f"{where}: overrides has the field {field!r}, which the experiment sets; leave it out")


def _check_fields(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for field in content:
        if field not in known:
            raise UserError(f"{where} has the field {field!r}; its fields are {', '.join(known)}")


def _dict(content: Mapping[str, Any], field: str, where: str) -> dict[str, Any]:
    value = content.get(field)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: {field} is {value!r}; write `field: value` lines")
    return value or {}


def _text(content: Mapping[str, Any], field: str, where: str) -> str:
    value = content.get(field)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: {field} is {value!r}; write text")
    return value or ""


def read_reports(written: Mapping[str, Any], stages: Sequence[Stage], where: str) -> tuple[ReportPlan, ...]:
    """Check the reports of an experiment's file.

    Raises:
        UserError: A field that is unknown or of another kind, or a report that names no measured stage, an arm that
            its stages do not measure or a task that is not judged.
    """
    measured = {stage.name: stage.arm for stage in stages if stage.verb == "measure"}
    if written and any(stage.name == REPORTS for stage in stages):
        raise UserError(f"stages in {where} has one of the name {REPORTS!r}, which the reports' folder has; rename it")
    plans = []
    for name, fields in written.items():
        place = f"reports.{name} in {where}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"{place}: the name is that of a folder; write it in letters, digits, '_', '-' and '.'")
        _check_fields(fields, _REPORT_FIELDS, place)
        patterns, against = (_texts(fields.get(field, []), f"{place}: {field}") for field in ("stages", "against"))
        paths = fields.get("paths", [])
        if not isinstance(paths, list):
            raise UserError(f"{place}: paths is {paths!r}; list lists of arms")
        chosen = [stage for stage in measured if not patterns or any(fnmatch(stage, each) for each in patterns)]
        if not chosen:
            raise UserError(f"{place}: stages is {list(patterns)}, which fits none of {', '.join(measured)}")
        paths = [_texts(path, f"{place}: paths") for path in paths]
        arms = dict.fromkeys(measured[stage] for stage in chosen)
        for field, named in (("against", against), *(("paths", path) for path in paths)):
            for arm in named:
                if arm not in arms or (arm == BASE and field == "paths"):
                    known = ", ".join(name for name in arms if name != BASE)
                    raise UserError(f"{place}: {field} names {arm!r}; choose among its trained arms: {known}")
        judge = fields.get("judge") or ""
        if judge and judge not in TASKS:
            raise UserError(f"{place}: judge is {judge!r}; name the task, {' or '.join(TASKS)}, or leave it out")
        if judge and not set(JUDGED) <= arms.keys():
            raise UserError(f"{place}: judge is {judge!r}, but its stages measure no arms rl and sft; leave it out")
        if BASE not in arms:
            raise UserError(
                f"{place}: its stages measure no {BASE!r}, which others are held against, only {', '.join(arms)}; "
                f"measure the original model too (arm: {BASE}), or widen stages"
            )
        for arm in arms:
            of_one = [stage for stage in chosen if measured[stage] == arm]
            if len(of_one) > 1:
                raise UserError(
                    f"{place}: {' and '.join(of_one)} both measure the arm {arm!r}; give each an arm of its own, or "
                    "choose among them in stages"
                )
        plans.append(ReportPlan(name=name, stages=tuple(chosen), paths=tuple(paths), against=against, judge=judge))
    return tuple(plans)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{where} is {value!r}; list names")
    return tuple(value)
