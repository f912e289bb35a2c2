"""What the data modules share: from sources to the examples of three splits, and what became of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

from lsemrl.data.glance import at_a_glance, special_tokens
from lsemrl.data.limits import Limits, describe, to_examples
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.records import Fields, Flatten, Record, read_fields, read_records, to_record
from lsemrl.data.skipped import SkippedRows
from lsemrl.data.sources import Source, alone, check_source, is_small
from lsemrl.data.splits import (
    Splits,
    choose_part,
    content_key,
    content_keys,
    split_by_content,
    take_by_content,
    without_shared,
)
from lsemrl.data.tokens import complete_tokenizer
from lsemrl.micro import corpus
from lsemrl.micro.grammar import Split
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True, kw_only=True)
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
        named = self.task.inputs if len(self.task.inputs) > 1 else ()
        return self.template.for_task(self.task.name, self.task.template, ("source", *named))


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The examples of each split.

    Attributes:
        train: To learn from.
        validation: To watch a run by.
        test: To report.
        report: For each split, how many rows were kept, left out and cut (see `limits.to_examples`); also bad_rows, of
            the source it is read from, shared_rows, left out because a held-out row has the same text, and shown_rows,
            because prompts show them or one of their group.
        lines: The report to be read, a line for each split.
        lengths: For each split, the tokens of the prompt of every row and of its target, EOS included.
        held_out: Content keys of the validation and test rows.
        shown: The rows that every prompt shows.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    report: dict[str, dict[str, int]]
    lines: list[str]
    lengths: dict[str, list[tuple[int, int]]]
    held_out: frozenset[str]
    shown: list[Record]


def prepare(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    elsewhere: Set[str] = frozenset(),
    *,
    trains: bool = True,
    read: tuple[Mapping[str, list[Record]], Mapping[str, int]] | None = None,
    lists: SkippedRows | None = None,
) -> Prepared:
    """Read, divide and write out the examples of `plan` for the policy of `tokenizer`.

    Args:
        plan: What to read.
        tokenizer: The policy's.
        elsewhere: Content keys of rows that other data hold out, which training rows must not share either.
        trains: Whether there must be something to train on; a measurement needs none, and of rows to train on it is
            given only those that prompts show.
        read: What `read_splits` gave, where it has been called.
        lists: Those of rows left out of other data that are read beside these.

    Raises:
        UserError: See `sources`, `records`, `splits`, `prompts` and `limits`; or there is nothing to train on.
    """
    complete_tokenizer(tokenizer)
    template, task = plan.resolved_template(), plan.task
    lists = lists or SkippedRows()
    found, faulty = read or read_splits(plan, lists)
    rows, bad = dict(found), dict(faulty)
    # No text of the test is in another split, and none of the validation rows in training, whatever file it is from.
    kept = {"test": rows["test"]}
    kept["validation"] = without_shared(rows["validation"], task.contents, rows["test"])
    held_out = [*rows["validation"], *rows["test"]]
    kept["train"] = without_shared(rows["train"], task.contents, held_out, elsewhere)
    shown, rest = take_by_content(kept["train"], task.key, count=template.shots, seed=plan.splits.seed)
    without_output = []
    if trains and plan.untranslated is not None:
        skipped = f"; {bad['train']:,} bad rows of theirs skipped" if bad["train"] else ""
        without_output.append(
            f"{task.name}: what is trained on has no {task.target}; pairs are for validation and test{skipped}"
        )
        rows["train"], bad["train"] = read_untranslated(plan, lists)
        kept["train"] = without_shared(rows["train"], task.contents, held_out, elsewhere)
        rest = without_shared(kept["train"], task.contents, shown)
    shown_rows = len(kept["train"]) - len(rest)
    shared = {name: len(rows[name]) - len(kept[name]) for name in rows}
    if trains and not kept["train"]:
        source = plan.untranslated or plan.source
        raise UserError(
            f"source {source.path!r} leaves no training rows ({len(rows['train'])} before those that share text "
            "with held-out rows were left out); give more rows, or lower splits.validation_fraction and "
            "splits.test_fraction"
        )
    if len(shown) < template.shots or (trains and not rest):
        raise UserError(
            f"template.shots is {template.shots}, but there are {len(shown)} training rows; lower it, so that some are "
            "left to train on"
        )
    any_row = next(chain(rest, kept["validation"], kept["test"]))
    if not trains:
        kept["train"] = []
    elif plan.untranslated is not None:
        kept["train"] = rest
    else:
        kept["train"] = choose_part(rest, task.key, plan.splits)
    shown = shown[: template.shots]
    shots = [(_texts(record.inputs), record.targets[0]) for record in shown]

    def render(inputs: Mapping[str, str]) -> str:
        return template.render(tokenizer, _texts(inputs), shots)

    examples: dict[str, list[Example]] = {}
    lengths: dict[str, list[tuple[int, int]]] = {}
    report: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        examples[name], counts, lengths[name] = to_examples(
            kept[name], render, tokenizer, plan.limits, training=name == "train", pairs=task.pairs
        )
        report[name] = {
            **counts,
            "bad_rows": bad[name],
            "shared_rows": shared[name],
            "shown_rows": shown_rows if name == "train" else 0,
        }
    told = SPLITS if trains else HELD_OUT
    lines = [describe(f"{task.name}/{name}", report[name], plan.limits) for name in told if rows[name]]
    if bad["train"] and plan.test is None and not trains:  # else the line of the training rows says it
        lines.append(f"{task.name}: {bad['train']:,} bad rows skipped, listed in {str(plan.source.skipped)!r}")
    lines += without_output
    lines.append(f"{task.name}: {template.describe(tokenizer, _texts(any_row.inputs))}")
    if plan.source.world_split is None:
        lines += [f"{task.name}: {line}" for line in at_a_glance(kept["train"], task.inputs[0] if task.pairs else None)]
        odd, says = special_tokens([*chain(*kept.values()), *shown], tokenizer, shown)
        lines += [f"{task.name}: warning: {says} (such as {odd[0].place})"] if odd else []
    return Prepared(
        **examples,
        report=report,
        lines=lines,
        lengths=lengths,
        held_out=content_keys(held_out, task.contents),
        shown=shown,
    )


def _texts(inputs: Mapping[str, str]) -> dict[str, str]:
    """What placeholders of a template stand for."""
    return {"source": "\n".join(inputs.values()), **inputs}


def read_splits(plan: Plan, lists: SkippedRows | None = None) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """The records of each split, before any is left out, and how many bad rows its source had.

    Args:
        plan: What to read.
        lists: As for `prepare`.

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
            records,
            plan.task.key,
            validation_fraction=validation,
            test_fraction=test,
            seed=plan.splits.seed,
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
        lists: As for `prepare`.

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
