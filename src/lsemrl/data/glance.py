"""What is quickly told of the rows when a run begins; `lsemrl check` looks longer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsemrl.data.near import copied
from lsemrl.data.records import Record
from lsemrl.data.splits import evenly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS, _TOLERATED = 1000, 0.01
_TELLING = 20
"""In how many rows some right choice should be the first: of four, none is in 1 of 300 files."""
_WRITTEN = re.compile(r"""\s*(\{\s*['"]text['"]\s*:.*\}|\[\s*(['"]).*\2\s*\])\s*""", re.DOTALL)


def at_a_glance(rows: Sequence[Record], source_field: str | None) -> list[str]:
    """Lines on what most runs should not begin with.

    Args:
        rows: To learn from; a thousand of them are looked at, evenly spaced.
        source_field: Of pairs that say the same in two languages, the field of the input; None where a copy of the
            input may be right.
    """
    rows = [row for row in rows if row.targets]
    looked = evenly(rows, _ROWS)
    most, found = _TOLERATED * len(looked), []
    if source_field is not None:
        same = [row for row in looked if copied(row.inputs[source_field], row.targets[0])]
        if len(same) > most:
            place = same[0].place
            found.append(f"{len(same):,} of {len(looked):,} outputs are their input, untranslated (such as {place})")
    odd = sum(not_composed(row.targets[0]) for row in looked)
    if most < odd < len(looked) - most:
        found.append(f"{odd:,} of {len(looked):,} outputs are not in the Unicode form NFC, as the others are")
    return [f"warning: {one}; lsemrl check says more" for one in found]


def written_lists(rows: Sequence[Record]) -> str:
    """A sentence where most outputs are lists or dictionaries as libraries write them into tables; "" where not."""
    looked = evenly([row for row in rows if row.targets], _ROWS)
    odd = [row for row in looked if _WRITTEN.fullmatch(row.targets[0])]
    if 2 * len(odd) <= len(looked):
        return ""
    return (
        f"{len(odd):,} of {len(looked):,} outputs are lists or dictionaries written as a text (such as "
        f"{odd[0].place}), which is taken to the letter; if they are to hold what is accepted, save the rows as JSONL"
    )


def never_first(rows: Sequence[Record]) -> str:
    """A sentence where the first choice is never right, as in a file that counts choices from 1; "" where it is."""
    chosen = [row for row in rows if row.choices and row.targets]
    if len(chosen) < _TELLING or any(row.targets[0] == row.choices[0] for row in chosen):
        return ""
    return (
        f"the first choice is right in none of {len(chosen):,} rows; numbers are counted from 0, so one that is "
        "counted from 1 means the choice after the right one"
    )


def special_tokens(
    rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, shown: Sequence[Record]
) -> tuple[list[Record], str]:
    """Rows whose text in a prompt quotes a special token of the policy, and a sentence on them.

    Args:
        rows: Whose inputs stand in prompts.
        tokenizer: The policy's.
        shown: Those of `rows` whose answers do, too.

    Returns:
        The rows, and the sentence; "" where there are none.
    """
    marks = sorted((token.content for token in tokenizer.added_tokens_decoder.values() if token.special), key=len)
    quoted = re.compile("|".join(map(re.escape, reversed(marks))) or "(?!)")

    def asked(row: Record) -> str:
        return "\n".join([*row.inputs.values(), *(row.targets[:1] if row in shown else ())])

    found = [(row, mark[0]) for row in rows if (mark := quoted.search(asked(row)))]
    if not found:
        return [], ""
    says = (
        f"{len(found):,} of {len(rows):,} rows hold the text of a special token, as {found[0][1]!r}: in a prompt it is "
        "the token itself, and may end what is asked"
    )
    return [row for row, _ in found], says


def not_composed(text: str) -> bool:
    """Whether a text is written otherwise than NFC has it."""
    return not unicodedata.is_normalized("NFC", text)
