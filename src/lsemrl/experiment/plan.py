"""What an experiment is: stages that build on each other, once for every seed, and the reports that are made of them.

Nothing is run or written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from lsemrl.config_files import read_config
from lsemrl.errors import UserError
from lsemrl.experiment.fields import Field, in_world, layered, strings
from lsemrl.experiment.hashes import file_hashes, run_hashes

ADAPTER = "adapter"
"""In a fit's folder: the adapter it left, wherever in there that lies."""
REPORTS = "reports"
"""The folder of the reports, in an experiment's output."""
JUDGED = ("rl", "sft")
"""The arms that a judge compares."""
TASKS = ("translation", "headline")
"""Those by whose rules it does."""
BASE = "base"
"""The arm that was never trained, and the name of one that has none."""
_REFERENCE = re.compile(r"\{stage:([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Verb:
    """The options by which a verb of the command line is told what the experiment decides.

    Attributes:
        folder: Where to write.
        seed: The seed; empty where every seed of an experiment should get the same.
        adapter: The adapter to start from; empty where there is none to start from.
        file: The name of what it writes in the folder, where it is not told the folder itself.
        leaves: In the folder of a run that is complete; empty where there need be nothing.
        goes_on: Whether a second attempt goes on from what the first has left, where that is no checkpoint.
        draws: Whether its seed decides anything of what comes out.
        left_open: Fields that are the embedded world's where nobody gives them.
    """

    folder: str
    seed: str
    adapter: str
    file: str = ""
    leaves: str = ""
    goes_on: bool = False
    draws: bool = True
    left_open: tuple[str, ...] = ()


_TRAINER = Verb(
    folder="trainer.default_root_dir",
    seed="seed_everything",
    adapter="model.policy.adapter",
    left_open=("model.policy.model",),
)
_OWN = Verb(folder="output", seed="seed", adapter="policy.adapter", left_open=("policy.model",))
VERBS = {
    "fit": replace(_TRAINER, leaves=ADAPTER),
    **dict.fromkeys(("validate", "test", "predict"), _TRAINER),
    "best-of": replace(_TRAINER, leaves="best_of.jsonl", goes_on=True),
    "measure": replace(
        _OWN, leaves="measurement.json", goes_on=True, draws=False, left_open=("policy.model", "text.path")
    ),
    "general": replace(_OWN, leaves="general.json"),
    # One identifier for all seeds, since what it tells is measured by it.
    "fit-language": Verb(
        folder="output", seed="", adapter="", file="identifier", leaves="identifier/identifier.json", draws=False
    ),
    "rehearse": replace(_OWN, file="own.jsonl", leaves="own.jsonl", goes_on=True),
}
"""What a stage may do."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of run.

    Attributes:
        name: Also that of its folder.
        verb: A key of `VERBS`.
        configs: YAML files, later ones over earlier ones.
        contents: What is in them.
        overrides: Dotted fields and their values, over the files.
        after: The stage whose adapter this one starts from.
        label: Its name for people.
        description: What it is, in a sentence.
    """

    name: str
    verb: str
    configs: tuple[Path, ...]
    contents: tuple[Mapping[str, Any], ...]
    overrides: Mapping[str, Any]
    after: str | None
    label: str
    description: str

    @property
    def parents(self) -> tuple[str, ...]:
        """The stages that must be complete before this one."""
        return tuple(dict.fromkeys([*([self.after] if self.after else []), *references(self.overrides)]))

    @property
    def leaves_model(self) -> bool:
        """Whether a fit trains every weight, and what it leaves as its adapter is a whole model."""
        return dict(_fields(self)).get(".model.policy.train") == "full"

    @property
    def arm(self) -> str:
        """What a measure calls the policy."""
        told = (layer["arm"] for layer in (self.overrides, *reversed(self.contents)) if "arm" in layer)
        return str(next(told, BASE))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One stage with one seed.

    Attributes:
        stage: See there.
        seed: See there.
        folder: Its own.
        parents: The folders of the runs that must be complete before it.
        command: The words for `lsemrl`, less what a second attempt adds.
        hashes: Of its settings (less the seed), its data and its parents, and of everything as `all`.
        files: Of each text that it is told the hash of what it names; None where that is nothing.
        seconds: A rough duration, as the experiment states it; None where it states none.
    """

    stage: Stage
    seed: int
    folder: Path
    parents: tuple[Path, ...]
    command: tuple[str, ...]
    hashes: Mapping[str, str]
    files: Mapping[str, str | None]
    seconds: float | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.stage.name} seed {self.seed}"


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


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Stages, seeds and where they go.

    Attributes:
        name: That of its file.
        description: What it asks, in a sentence.
        output: The folder of all runs: `<output>/<stage>/seed_<seed>`.
        seeds: One run of every stage for each; of one of which no seed decides anything, such as a measurement of the
            base, the first alone.
        stages: Parents before children, else in the order of the file.
        seconds: Rough durations of runs by patterns of their stages, the last that fits.
        reports: What is made of the measurements.
        unused: What of an overlay fits nothing here, by its dotted names.
    """

    name: str
    description: str
    output: Path
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    seconds: Mapping[str, float]
    reports: tuple[ReportPlan, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """What is to be said of the overlay; empty if nothing."""
        return f"of the overlay, this fits nothing here: {', '.join(self.unused)}" if self.unused else ""

    @cached_property
    def _alike(self) -> frozenset[str]:
        """The stages of which every seed would give the same."""
        found: set[str] = set()
        for stage in self.stages:
            if not VERBS[stage.verb].draws and found.issuperset(stage.parents):
                found.add(stage.name)
        return frozenset(found)

    def runs(self) -> tuple[Run, ...]:
        """Every run, seed by seed, parents before children."""
        return tuple(run for seed in self.seeds for run in self._runs(seed))

    def folder(self, stage: str, seed: int) -> Path:
        """Where a run writes."""
        return self.output / stage / f"seed_{self.seeds[0] if stage in self._alike else seed}"

    def _runs(self, seed: int) -> Iterator[Run]:
        known: dict[str, str] = {}
        for stage in self.stages:
            parents = {name: self.folder(name, seed) for name in stage.parents}
            overrides = _resolve(stage.overrides, {name: str(folder) for name, folder in parents.items()})
            files = file_hashes(_fields(stage))
            hashes = _hashes(stage, seed, known, files)
            known[stage.name] = hashes["all"]
            if stage.name in self._alike and seed != self.seeds[0]:
                continue  # what builds on it is hashed as if it were there: it does not depend on which seeds are asked
            verb = VERBS[stage.verb]
            stated = [seconds for pattern, seconds in self.seconds.items() if fnmatch(stage.name, pattern)]
            seeded = {verb.seed: seed} if verb.seed else {}
            fields = {**seeded, verb.folder: str(self.folder(stage.name, seed) / verb.file), **overrides}
            if stage.after:
                fields[verb.adapter] = str(self.folder(stage.after, seed) / ADAPTER)
            yield Run(
                stage=stage,
                seed=seed,
                folder=self.folder(stage.name, seed),
                parents=tuple(parents.values()),
                command=(
                    stage.verb,
                    *(word for path in stage.configs for word in ("--config", str(path))),
                    *(f"--{field}={_word(value)}" for field, value in fields.items()),
                ),
                hashes=hashes,
                files=files,
                seconds=stated[-1] if stated else None,
            )


def _word(value: Any) -> str:
    """A value as it stands on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def references(overrides: Mapping[str, Any]) -> Iterator[str]:
    """The stages whose folders `overrides` names as {stage:NAME}."""
    for text in strings(overrides):
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


def changed(run: Run) -> tuple[str, ...]:
    """The files that are others than when `run` was planned: configurations, and what they and overrides name."""
    stage = run.stage
    configs = [str(path) for path, was in zip(stage.configs, stage.contents, strict=True) if _content(path) != was]
    files = file_hashes(_fields(stage))
    return (*configs, *(text for text, digest in files.items() if digest != run.files.get(text)))


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return read_config(path)
    except UserError:
        return None


def _fields(stage: Stage) -> list[Field]:
    """The fields that a run goes by; what the runner gives is no matter of the files."""
    verb = VERBS[stage.verb]
    given = dict.fromkeys((verb.folder, verb.seed, *([verb.adapter] if stage.after else [])))
    here = Path()
    return layered(
        [
            *((content, path.parent) for content, path in zip(stage.contents, stage.configs, strict=True)),
            *(({field: value}, here) for field, value in stage.overrides.items()),
            (given, here),
        ]
    )


def _hashes(stage: Stage, seed: int, known: Mapping[str, str], files: Mapping[str, str | None]) -> dict[str, str]:
    """Of everything that decides the outcome of a run; `known` are those of the stages before it."""
    # By number, since another experiment may give the same stage another name.
    overrides = _resolve(stage.overrides, {name: str(at) for at, name in enumerate(stage.parents)})
    return run_hashes(
        # As a list, for a later override may be of a part of an earlier one.
        [stage.verb, list(stage.contents), bool(stage.after), list(overrides.items())],
        files,
        in_world(_fields(stage), VERBS[stage.verb].left_open),
        [known[name] for name in stage.parents],
        seed,
    )
