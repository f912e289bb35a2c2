"""From the records of a plan to the examples of three splits, and what became of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from lsemrl.data.glance import at_a_glance, never_first, special_tokens, written_lists
from lsemrl.data.limits import describe, to_examples
from lsemrl.data.records import Record
from lsemrl.data.skipped import SkippedRows
from lsemrl.data.splits import choose_part, content_keys, take_by_content, without_shared
from lsemrl.data.task import HELD_OUT, SPLITS, Plan, read_splits, read_untranslated
from lsemrl.data.tokens import complete_tokenizer
from lsemrl.micro.grammar import Split
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Read = tuple[Mapping[str, list[Record]], Mapping[str, int]]
"""What `read_splits` gives."""


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
    read: Read | None = None,
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
    template, task, lists = plan.resolved_template(), plan.task, lists or SkippedRows()
    divided = _divide(plan, read or read_splits(plan, lists), elsewhere, lists, trains=trains)
    shots = [(_texts(record.inputs), record.targets[0]) for record in divided.shown]

    def render(inputs: Mapping[str, str]) -> str:
        return template.render(tokenizer, _texts(inputs), shots)

    examples: dict[str, list[Example]] = {}
    lengths: dict[str, list[tuple[int, int]]] = {}
    report: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        examples[name], counts, lengths[name] = to_examples(
            divided.kept[name], render, tokenizer, plan.limits, training=name == "train", pairs=task.pairs
        )
        report[name] = counts | divided.left_out[name]
    return Prepared(
        **examples,
        report=report,
        lines=_lines(plan, tokenizer, divided, report, trains=trains),
        lengths=lengths,
        held_out=content_keys(divided.held_out, task.contents),
        shown=divided.shown,
    )


@dataclass(frozen=True, kw_only=True)
class _Divided:
    """Which records are written out.

    Attributes:
        kept: Those of each split.
        shown: Those that every prompt shows.
        held_out: All of validation and test, those too that were left out.
        read: How many each split had.
        left_out: For each split, how many were left out for which reason.
        like: One that is like those that are trained on.
        says: What is to be said of them.
    """

    kept: dict[str, list[Record]]
    shown: list[Record]
    held_out: list[Record]
    read: dict[str, int]
    left_out: dict[Split, dict[str, int]]
    like: Record
    says: list[str]


def _divide(plan: Plan, read: Read, elsewhere: Set[str], lists: SkippedRows, *, trains: bool) -> _Divided:
    task, shots = plan.task, plan.template.shots
    rows, bad, says = dict(read[0]), dict(read[1]), list[str]()
    # No text of the test is in another split, and none of the validation rows in training, whatever file it is from.
    kept = {"test": rows["test"]}
    kept["validation"] = without_shared(rows["validation"], task.contents, rows["test"])
    held_out = [*rows["validation"], *rows["test"]]
    kept["train"] = without_shared(rows["train"], task.contents, held_out, elsewhere)
    shown, rest = take_by_content(kept["train"], task.key, count=shots, seed=plan.splits.seed)
    if trains and plan.untranslated is not None:
        skipped = f"; {bad['train']:,} bad rows of theirs skipped" if bad["train"] else ""
        says.append(f"what is trained on has no {task.target}; pairs are for validation and test{skipped}")
        rows["train"], bad["train"] = read_untranslated(plan, lists)
        kept["train"] = without_shared(rows["train"], task.contents, held_out, elsewhere)
        rest = without_shared(kept["train"], task.contents, shown)
    left_out = {
        name: {"bad_rows": bad[name], "shared_rows": len(rows[name]) - len(kept[name]), "shown_rows": 0}
        for name in SPLITS
    }
    left_out["train"]["shown_rows"] = len(kept["train"]) - len(rest)
    if trains and not kept["train"]:
        source = plan.untranslated or plan.source
        raise UserError(
            f"source {source.path!r} leaves no training rows ({len(rows['train'])} before those that share text "
            "with held-out rows were left out); give more rows, or lower splits.validation_fraction and "
            "splits.test_fraction"
        )
    if len(shown) < shots or (trains and not rest):
        raise UserError(
            f"template.shots is {shots}, but there are {len(shown)} training rows; lower it, so that some are "
            "left to train on"
        )
    like = next(chain(rest, kept["validation"], kept["test"]))
    if not trains:
        kept["train"] = []
    elif plan.untranslated is not None:
        kept["train"] = rest
    else:
        kept["train"] = choose_part(rest, task.key, plan.splits)
    return _Divided(
        kept=kept,
        shown=shown[:shots],
        held_out=held_out,
        read={name: len(own) for name, own in rows.items()},
        left_out=left_out,
        like=like,
        says=says,
    )


def _lines(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    divided: _Divided,
    report: Mapping[str, Mapping[str, int]],
    *,
    trains: bool,
) -> list[str]:
    """What became of the rows, and how prompts are written."""
    task, kept, shown = plan.task, divided.kept, divided.shown
    told = [name for name in (SPLITS if trains else HELD_OUT) if divided.read[name]]
    lines = [describe(f"{task.name}/{name}", report[name], plan.limits) for name in told]
    bad = report["train"]["bad_rows"]
    if bad and plan.test is None and not trains:  # else the line of the training rows says it
        lines.append(f"{task.name}: {bad:,} bad rows skipped, listed in {str(plan.source.skipped)!r}")
    says = [*divided.says, plan.resolved_template().describe(tokenizer, _texts(divided.like.inputs))]
    if plan.source.world_split is None:
        says += at_a_glance(kept["train"], task.inputs[0] if task.pairs else None)
        every = [*chain(*kept.values()), *shown]
        odd, special = special_tokens(every, tokenizer, shown)
        says += [f"warning: {special} (such as {odd[0].place})"] if odd else []
        says += [f"warning: {one}" for one in (written_lists(every), never_first(every)) if one]
    return [*lines, *(f"{task.name}: {one}" for one in says)]


def _texts(inputs: Mapping[str, str]) -> dict[str, str]:
    """What placeholders of a template stand for."""
    return {"source": "\n".join(inputs.values()), **inputs}
