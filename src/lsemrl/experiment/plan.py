"""What an experiment is: stages that build on each other, once for every seed, read from YAML and checked.

Nothing is run or written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lsemrl.errors import UserError
from lsemrl.experiment.hashes import run_hashes
from lsemrl.experiment.overlay import overlaid
from lsemrl.experiment.reports import ReportPlan, read_reports

ADAPTER = "adapter"
"""In a fit's folder: the adapter it left, wherever in there that lies."""
_REFERENCE = re.compile(r"\{stage:([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The options by which a verb of the command line is told what the experiment decides.

    Attributes:
        folder: Where to write.
        seed: The seed.
        adapter: The adapter to start from.
    """

    folder: str
    seed: str
    adapter: str


_TRAINER = Verb(folder="trainer.default_root_dir", seed="seed_everything", adapter="model.policy.adapter")
_OWN = Verb(folder="output", seed="seed", adapter="policy.adapter")
VERBS = dict.fromkeys(("fit", "validate", "test", "predict", "best-of"), _TRAINER) | {"measure": _OWN, "general": _OWN}
"""What a stage may do."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of run.

    Attributes:
        name: Also that of its folder.
        verb: A key of `VERBS`.
        configs: YAML files, later ones over earlier ones.
        overrides: Dotted fields and their values, over the files.
        after: The stage whose adapter this one starts from.
        label: Its name for people.
        description: What it is, in a sentence.
    """

    name: str
    verb: str
    configs: tuple[Path, ...]
    overrides: Mapping[str, Any]
    after: str | None
    label: str
    description: str

    @property
    def parents(self) -> tuple[str, ...]:
        """The stages that must be complete before this one."""
        return tuple(dict.fromkeys([*([self.after] if self.after else []), *_references(self.overrides)]))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One stage with one seed.

    Attributes:
        stage: See there.
        seed: See there.
        folder: Its own.
        adapter: Where the stage before it leaves its adapter.
        command: The words for `lsemrl`, less what a second attempt adds.
        hashes: Of its settings (less the seed), its data and its parents, and of everything as `all`.
        seconds: A rough duration by the rate that the experiment states; None where it states none.
    """

    stage: Stage
    seed: int
    folder: Path
    adapter: Path | None
    command: tuple[str, ...]
    hashes: Mapping[str, str]
    seconds: float | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage.name} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Stages, seeds and where they go.

    Attributes:
        name: That of its file.
        description: What it asks, in a sentence.
        output: The folder of all runs: `<output>/<stage>/seed_<seed>`.
        seeds: One run of every stage for each.
        stages: Parents before children, else in the order of the file.
        seconds_per_step: Rough duration of an optimizer step by the class of the module that is trained.
        reports: What is made of the measurements.
    """

    name: str
    description: str
    output: Path
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    seconds_per_step: Mapping[str, float]
    reports: tuple[ReportPlan, ...] = ()

    def runs(self) -> tuple[Run, ...]:
        """Every run, seed by seed, parents before children."""
        return tuple(run for seed in self.seeds for run in self._runs(seed))

    def folder(self, stage: str, seed: int) -> Path:
        """Where a run writes."""
        return self.output / stage / f"seed_{seed}"

    def _runs(self, seed: int) -> Iterator[Run]:
        known: dict[str, str] = {}
        for stage in self.stages:
            folders = {name: str(self.folder(name, seed)) for name in stage.parents}
            overrides = _resolve(stage.overrides, folders)
            hashes = _hashes(stage, seed, known)
            known[stage.name] = hashes["all"]
            adapter = self.folder(stage.after, seed) / ADAPTER if stage.after else None
            verb = VERBS[stage.verb]
            fields = {verb.seed: seed, verb.folder: str(self.folder(stage.name, seed)), **overrides}
            if adapter:
                fields[verb.adapter] = str(adapter)
            yield Run(
                stage=stage,
                seed=seed,
                folder=self.folder(stage.name, seed),
                adapter=adapter,
                command=(
                    stage.verb,
                    *(word for path in stage.configs for word in ("--config", str(path))),
                    *(f"--{field}={_word(value)}" for field, value in fields.items()),
                ),
                hashes=hashes,
                seconds=_stated_seconds(stage, self.seconds_per_step),
            )


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
    content, name = _mapping(path, "--config"), path.stem
    if overlay:
        name = f"{name}_{overlay.stem}"
        content["output"] = f"{_text(content, 'output', str(path)) or f'runs/experiment/{path.stem}'}_{overlay.stem}"
        content = overlaid(content, _mapping(overlay, "--overlay"), str(overlay))
    _check_fields(
        content,
        ("config_version", "description", "output", "seeds", "overrides", "seconds_per_step", "stages", "reports"),
        str(path),
    )
    common = _dict(content, "overrides", str(path))
    for verb in common:
        _verb(verb, f"overrides in {path}")
        _check_overrides(_dict(common, verb, f"overrides in {path}"), verb, f"overrides.{verb} in {path}")
    written = content.get("stages")
    if not isinstance(written, list) or not written:
        raise UserError(f"stages in {path} is {written!r}; list at least one stage, each with name, verb and configs")
    stages = [_stage(stage, f"stages[{at}] in {path}", configs, common) for at, stage in enumerate(written)]
    rates = _dict(content, "seconds_per_step", str(path))
    folder = _text(content, "output", str(path)) or f"runs/experiment/{name}"
    for module, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise UserError(f"seconds_per_step.{module} in {path} is {rate!r}; give seconds, above 0")
    return Experiment(
        name=name,
        description=_text(content, "description", str(path)),
        output=output or Path(folder).expanduser(),
        seeds=_seeds(content.get("seeds", [1]) if seeds is None else list(seeds), path),
        stages=_ordered(stages, path),
        seconds_per_step=rates,
        reports=read_reports(_dict(content, "reports", str(path)), stages, str(path)),
    )


def _stage(written: Any, where: str, configs: Path, common: Mapping[str, Mapping[str, Any]]) -> Stage:
    if not isinstance(written, dict):
        raise UserError(f"{where} is {written!r}; write its fields: name, verb, configs")
    _check_fields(written, ("name", "verb", "configs", "overrides", "after", "label", "description"), where)
    name = written.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: name is {name!r}; give one that can be a folder's, of letters, digits, '_', '-' and '.'"
        )
    where = f"stage {name!r} of {where.rpartition(' in ')[2]}"
    verb = _verb(written.get("verb"), where)
    files = written.get("configs", [])
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise UserError(f"{where}: configs is {files!r}; list file names")
    own = _dict(written, "overrides", where)
    _check_overrides(own, verb, where)
    after = written.get("after")
    if after is not None and not isinstance(after, str):
        raise UserError(f"{where}: after is {after!r}; name one stage")
    if after is not None and VERBS[verb].adapter in own:
        raise UserError(f"{where}: {VERBS[verb].adapter} is overridden, but after gives it; leave out one of the two")
    return Stage(
        name=name,
        verb=verb,
        configs=tuple(_config(file, configs, where) for file in files),
        overrides={**(common.get(verb) or {}), **own},
        after=after,
        label=_text(written, "label", where) or name,
        description=_text(written, "description", where),
    )


def _config(name: str, configs: Path, where: str) -> Path:
    """The shipped file of that name, else the user's own."""
    path = next((path for path in (configs / name, Path(name).expanduser()) if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{where}: configs names {name!r}, and there is no such file, neither in {configs} nor here; correct it"
        )
    _mapping(path, f"{where}: configs")
    return path


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


def _mapping(path: Path, field: str) -> dict[str, Any]:
    """The content of a YAML file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{field} is {str(path)!r}, which cannot be read as YAML ({reason}); mend it") from error
    if not isinstance(content, dict):
        raise UserError(f"{field} is {str(path)!r}, which holds no fields; write `field: value` lines")
    return content


def _word(value: Any) -> str:
    """A value as it stands on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def _references(overrides: Mapping[str, Any]) -> Iterator[str]:
    """The stages whose folders `overrides` names as {stage:NAME}."""
    for text in _strings(overrides):
        yield from _REFERENCE.findall(text)


def _resolve(value: Any, folders: Mapping[str, str]) -> Any:
    """`value` with folders in place of {stage:NAME}."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: folders[match[1]], value)
    if isinstance(value, Mapping):
        return {name: _resolve(inner, folders) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_resolve(inner, folders) for inner in value]
    return value


def _stated_seconds(stage: Stage, rates: Mapping[str, float]) -> float | None:
    """Optimizer steps times the stated duration of one; None where either is open."""
    contents = [_mapping(path, "configs") for path in stage.configs]

    def field(dotted: str) -> Any:
        for content in reversed(contents):
            value: Any = content
            for name in dotted.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                return value
        return None

    steps = stage.overrides.get("trainer.max_steps", field("trainer.max_steps"))
    rate = rates.get(str(field("model.class_path")).rpartition(".")[2])
    if stage.verb != "fit" or rate is None or not isinstance(steps, int) or steps < 1:
        return None
    return rate * steps


def _hashes(stage: Stage, seed: int, known: Mapping[str, str]) -> dict[str, str]:
    """Of everything that decides the outcome of a run; `known` are those of the stages before it."""
    contents = [_mapping(path, "configs") for path in stage.configs]
    # By number, since another experiment may give the same stage another name.
    overrides = _resolve(stage.overrides, {name: str(at) for at, name in enumerate(stage.parents)})
    return run_hashes(
        # As a list, for a later override may be of a part of an earlier one.
        [stage.verb, contents, bool(stage.after), list(overrides.items())],
        {*_strings(contents), *_strings(stage.overrides)},
        [known[name] for name in stage.parents],
        seed,
    )
