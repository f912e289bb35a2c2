"""Which held-out rows a policy was trained on, and how it was asked, as far as the run that it lies in tells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from lsemrl.commands.named import run_of
from lsemrl.data.base import TaskData
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import Plan
from lsemrl.data.translation import Pairs, TranslationData
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.json_records import UNREADABLE
from lsemrl.reading import read_yaml, user_path
from lsemrl.runs import CONFIG

Part = Literal["validation", "test"]
_Part = tuple[str, Mapping[str, Any]]
_NONE = 1e-9
"""A share that is no more than what rounding leaves."""
_SHOWN = 100
"""Characters of a template in a line about it."""
_BEFORE = 20
"""Those before what differs."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Rows that are held out.

    Attributes:
        place: What tells their file from others.
        task: The class of their data, by whose rows it is divided.
        seed: Of the splits.
        begin: Where they lie in the file, in [0, 1): a hash of a row is its place, whoever divides.
        end: In (0, 1].
        used: How many training rows a run takes at most, of all that lie behind; None for all.
    """

    place: tuple[Any, ...]
    task: str
    seed: int
    begin: float
    end: float
    used: int | None = None

    def trained_on(self, run: _Held) -> float:
        """The share of them that lie behind what a run holds out, which it trains on."""
        if self.place != run.place or self.begin == self.end:
            return 0.0
        if (self.task, self.seed) != (run.task, run.seed):
            return 1 - run.end
        return max(0.0, self.end - max(self.begin, run.end)) / (self.end - self.begin)

    @property
    def at_most(self) -> str:
        """What is to be said of training rows, where not all are used."""
        return "" if self.used is None else f", of which it takes {self.used:,} at most"


def measured_rows(settings: MeasureSettings) -> list[str]:
    """`trained_rows` of what is measured."""
    weights = settings.policy.adapter_folder or (Path(settings.policy.model) if settings.base else None)
    data = {"target": settings.target, "general": settings.general}
    return trained_rows(weights, "test", {name: one for name, one in data.items() if one})


def trained_rows(weights: Path | None, part: Part, data: Mapping[str, TaskData]) -> list[str]:
    """What is to be said of some data where the run that a policy lies in was trained on their held-out rows, or by
    other prompts.

    The run's folder may be somebody else's: of its configuration only names of files and numbers are looked at, and
    nothing that it names is read.

    Args:
        weights: The policy's.
        part: Which of the rows are held out.
        data: By the fields that name them.
    """
    run = run_of(weights.resolve()) if weights else None
    if run is None:
        return []
    try:
        theirs = [*_held_of(_parts(read_yaml(run / CONFIG)["data"]))]
    except UNREADABLE:  # of whatever wrote it
        return []
    lines = []
    for name, one in data.items():
        lines += asked_otherwise(weights, one.plan, type(one).__name__, name)
        own = _held(one, part)
        most = max(theirs, key=own.trained_on, default=None) if own else None
        if own and most and (share := own.trained_on(most)) > _NONE:
            lines.append(
                f"warning: about {share:.1%} of the {part} rows of {name} are training rows by the splits of {run}"
                f"{most.at_most}; give both the same splits, or name a file of {part} rows"
            )
    return lines


def asked_otherwise(weights: Path | None, plan: Plan, task: str, name: str) -> list[str]:
    """A line where the run that a policy lies in had another template for all of its rows that are such as some data's.

    Of the run's configuration only templates and names of columns are looked at.

    Args:
        weights: The policy's.
        plan: Of the data.
        task: The class of the data.
        name: The field that names them.
    """
    run = run_of(weights.resolve()) if weights else None
    own, columns = _words(plan), {"source_field": plan.task.inputs[0], "target_field": plan.task.target}
    try:
        others = [
            _words(replace(plan, template=PromptTemplate(**fields.get("template") or {})))
            for kind, fields in (_parts(read_yaml(run / CONFIG)["data"]) if run else ())
            if kind == task and columns == {field: fields.get(field, columns[field]) for field in columns}
        ]
    except UNREADABLE:
        return []
    if not others or own in others:
        return []
    field = next(field for field, value in own.items() if value != others[0][field])
    now, then = _apart(own[field], others[0][field])
    return [
        f"warning: {name}.template.{field} is {now}, and {run} was trained with {then}; give both the same, as a "
        "policy answers best what it was trained on"
    ]


def _apart(own: Any, other: Any) -> list[str]:
    """Two values as they are shown: of texts that begin alike, a piece from shortly before they part."""
    start = 0
    if isinstance(own, str) and isinstance(other, str):
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(own, other, strict=False))
        start = max(sum(1 for _ in alike) - _BEFORE, 0)
    return [f"…{one[start:]!r}"[:_SHOWN] if start else repr(one)[:_SHOWN] for one in (own, other)]


def learned_pairs(data: Pairs, named: str, fields: Any) -> list[str]:
    """A line where pairs that a configuration holds out are trained on.

    Args:
        data: What is trained on.
        named: The configuration, as it was named.
        fields: Its data.
    """
    plan = data.plan()
    place = _place(plan.source.path, plan.source.config, plan.source.split)
    end = sum(plan.held_out_fractions)
    used = _used(vars(plan.splits))
    own = _Held(place=place, task=TranslationData.__name__, seed=plan.splits.seed, begin=0.0, end=end, used=used)
    try:
        theirs = [*_held_of(_parts(fields))] if plan.source.world_split is None else []
    except UNREADABLE:
        return []
    share = max((each.trained_on(own) for each in theirs), default=0.0)
    if share <= _NONE:
        return []
    return [
        f"warning: about {share:.1%} of the rows that {named} holds out are training rows by data.splits{own.at_most}, "
        "so that the encoder knows them; give both the same splits"
    ]


def _held(data: TaskData, part: Part) -> _Held | None:
    """Its held-out rows; None of the embedded world, whose splits never meet."""
    plan, own = data.plan, data.plan.test if part == "test" else data.plan.validation
    source = own or plan.source
    if source.world_split is not None:
        return None
    validation, test = plan.held_out_fractions
    begin, end = (0.0, 1.0) if own else (0.0, test) if part == "test" else (test, test + validation)
    place = _place(source.path, source.config, source.split)
    return _Held(place=place, task=type(data).__name__, seed=plan.splits.seed, begin=begin, end=end)


def _parts(data: Mapping[str, Any]) -> Iterator[_Part]:
    """What a configuration trains on, main rows and others: the name of a class of data, and its fields."""
    fields = data.get("init_args") or {}
    for part in (fields.get("main"), fields.get("replay"), *(each["data"] for each in fields.get("more") or ())):
        if part:
            yield from _parts(part)
    if fields.get("source"):
        yield data["class_path"].rpartition(".")[2], fields


def _words(plan: Plan) -> dict[str, Any]:
    template = plan.resolved_template()
    return vars(replace(template, chat=template.chat is not False))  # null is true, where there is a chat template


def _held_of(parts: Iterable[_Part]) -> Iterator[_Held]:
    """What a configuration holds out of each file that it trains on."""
    for task, fields in parts:
        source, splits = fields["source"], fields.get("splits") or {}
        if not fields.get("untranslated"):
            usual, shares = Source(), Splits()
            test = 0.0 if fields.get("test") else float(splits.get("test_fraction", shares.test_fraction))
            validation = float(splits.get("validation_fraction", shares.validation_fraction))
            yield _Held(
                place=_place(source["path"], source.get("config"), source.get("split", usual.split)),
                task=task,
                seed=int(splits.get("seed", shares.seed)),
                begin=0.0,
                end=test + (0.0 if fields.get("validation") else validation),
                used=_used(splits),
            )


def _used(splits: Mapping[str, Any]) -> int | None:
    """How many training rows a division takes at most; None for all that there are."""
    most = splits.get("cold_start_count") if splits.get("part") == "cold_start" else splits.get("max_rows")
    return None if most is None else int(most)


def _place(path: str, config: str | None, split: str) -> tuple[Any, ...]:
    return os.path.realpath(user_path(path)), config, split
