"""What the data modules share: what a task is, which rows are asked for, and the records of three splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from lsemrl.data.limits import Limits
from lsemrl.data.prompts import PLACEHOLDERS, PromptTemplate
from lsemrl.data.records import Fields, Flatten, Record, read_fields, read_records, to_record
from lsemrl.data.skipped import SkippedRows
from lsemrl.data.sources import Source, alone, check_source, is_small
from lsemrl.data.splits import Splits, content_key, split_by_content
from lsemrl.micro import corpus
from lsemrl.micro.grammar import Split
from lsemrl.types import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ScoredBy = Literal["answers", "references", "choices"]
HELD_OUT: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class MicroRows:
    """How many rows are drawn of each split of the embedded world, which never share an event."""

    train: int = 4000
    """Training rows; also those of `micro:pretrain`."""
    validation: int = 200
    """Validation rows."""
    test: int = 500
    """Test rows."""
    seed: int = 0
    """Another seed draws other rows; keep it for every run that is compared."""

    def __post_init__(self) -> None:
        for name, least in (("train", 1), ("validation", 0), ("test", 0)):
            if getattr(self, name) < least:
                raise UserError(f"micro.{name} is {getattr(self, name)}; give {least} or more")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of row.

    Attributes:
        name: What reports call it.
        inputs: The fields that the policy is shown; the first is cut where a prompt is too long.
        target: The field of the accepted outputs.
        template: The wording of the prompt.
        micro: Draws rows of the embedded world.
        pairs: Input and output say the same: rows are equal when both are, and related when either is. Otherwise the
            first input alone counts, since questions on one passage are related.
        flatten: Turns a nested row into flat ones.
        scored_by: What its outputs are held against where it is a general ability: short "answers" by exact match and
            F1, "references" by chrF, or "choices" by their log-probabilities.
        choices: The field of what there is to choose from; "" where the policy is given no choice.
    """

    name: str
    inputs: tuple[str, ...]
    target: str
    template: str
    micro: Callable[[Split, int, int], list[corpus.Record]]
    pairs: bool = False
    flatten: Flatten | None = None
    scored_by: ScoredBy = "references"
    choices: str = ""

    def contents(self, record: Record) -> tuple[str, ...]:
        """The texts that splits must not share: of a pair, both sides, with every accepted output."""
        first = record.inputs[self.inputs[0]]
        return (first, *record.targets) if self.pairs else (first,)

    @property
    def fields(self) -> Fields:
        """What is read of its rows."""
        return Fields(
            inputs=self.inputs,
            target=self.target,
            flatten=self.flatten,
            choices=self.choices,
            in_parts=not self.pairs,  # several columns of a pair are wordings of one text
        )

    def key(self, record: Record) -> str:
        """What equal rows have in common; the same in whichever direction a pair is translated."""
        return content_key(*sorted(map(content_key, self.contents(record)[:2])))


@dataclass(frozen=True)
class Plan:
    """Everything that decides the examples of a data module; see its arguments."""

    task: Task
    source: Source
    validation: Source | None
    test: Source | None
    splits: Splits
    micro: MicroRows
    template: PromptTemplate
    limits: Limits
    untranslated: Source | None = None

    def __post_init__(self) -> None:
        self.resolved_template()  # so that a wrong one is told before anything is read

    def check_files(self) -> None:
        """Refuse files that are not there, and those that lack a column, where they are read in a moment.

        Raises:
            UserError: The first, or one whose format is unknown.
        """
        for source in (self.source, self.validation, self.test):
            if source is not None:
                check_source(source)
                if is_small(source):
                    read_fields(source, self.task.fields)
        if self.untranslated is not None:
            check_source(alone(self.untranslated))

    @property
    def held_out_fractions(self) -> tuple[float, float]:
        """The shares of `source` for validation and for the test: 0 of what has a source of its own."""
        validation = 0.0 if self.validation else self.splits.validation_fraction
        return validation, 0.0 if self.test else self.splits.test_fraction

    def resolved_template(self) -> PromptTemplate:
        """The template with the task's own wording where it has none.

        Raises:
            UserError: It has a placeholder that the task's rows lack.
        """
        named = filter(PLACEHOLDERS.__contains__, self.task.inputs)
        return self.template.for_task(self.task.name, self.task.template, tuple(dict.fromkeys(("source", *named))))


def read_splits(plan: Plan, lists: SkippedRows | None = None) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """The records of each split, before any is left out, and how many bad rows its source had.

    Args:
        plan: What to read.
        lists: Those of rows left out of other data that are read beside these.

    Raises:
        UserError: See `sources` and `records`.
    """
    lists = lists or SkippedRows()
    rows: dict[str, list[Record]] = {}
    bad: dict[str, int] = dict.fromkeys(SPLITS, 0)
    fields = plan.task.fields
    if plan.source.world_split == "":
        rows = {name: _draw(plan, name, fields) for name in SPLITS}
    else:
        records, bad["train"] = _read(plan, plan.source, "train", fields, lists)
        validation, test = plan.held_out_fractions
        rows["train"], rows["validation"], rows["test"] = split_by_content(
            records, plan.task.key, validation_fraction=validation, test_fraction=test, seed=plan.splits.seed
        )
    for name in HELD_OUT:
        source = getattr(plan, name)
        if source is not None:
            rows[name], bad[name] = _read(plan, source, name, fields, lists)
    return rows, bad


def read_untranslated(plan: Plan, lists: SkippedRows | None = None) -> tuple[list[Record], int]:
    """The records without outputs of a plan that has some, before any is left out, and how many bad rows there were.

    Args:
        plan: What to read.
        lists: Those of rows left out of other data that are read beside these.

    Raises:
        UserError: See `sources` and `records`.
    """
    assert plan.untranslated is not None
    return _read(plan, plan.untranslated, "train", replace(plan.task.fields, target=""), lists)


def _read(
    plan: Plan, source: Source, name: Split, fields: Fields, lists: SkippedRows | None
) -> tuple[list[Record], int]:
    if source.world_split is not None:
        return _draw(plan, source.world_split or name, fields), 0
    return read_records(source, fields, lists)


def _draw(plan: Plan, split: Split, fields: Fields) -> list[Record]:
    task, count = plan.task, plan.micro.train if split == "pretrain" else getattr(plan.micro, split)
    rows = task.micro(split, count, plan.micro.seed)
    foreign = [name for name in (*task.inputs, task.target) if rows and name not in rows[0]]
    if foreign:
        raise UserError(f"the embedded world has no field {foreign[0]!r}; its fields are {', '.join(rows[0])}")
    return [to_record(row, f"micro:{split}", fields) for row in rows]
