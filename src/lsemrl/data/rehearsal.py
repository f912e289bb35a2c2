"""Rehearsal text: what a base model wrote by itself, with its tokens, what wrote it, and which rows are kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsemrl.canonical import canonical
from lsemrl.reading import Unreadable, read_json, read_lines
from lsemrl.types import UserError

_REMEDY = "name a file that lsemrl rehearse wrote"


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """One row, as it was drawn.

    Attributes:
        prompt: What the user says, written by the base or by the user.
        response: The base's answer.
        prompt_ids: The tokens of the whole prompt, what stands around `prompt` included.
        given: How many of them the base was shown; it wrote the others.
        answer_ids: The tokens of the answer, EOS included.
    """

    prompt: str
    response: str
    prompt_ids: tuple[int, ...]
    given: int
    answer_ids: tuple[int, ...]

    def split(self, *, whole: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is read and what is held: the answer, or all that the base wrote."""
        if not whole or self.given >= len(self.prompt_ids):
            return self.prompt_ids, self.answer_ids
        return self.prompt_ids[: self.given], (*self.prompt_ids[self.given :], *self.answer_ids)


def likeliest_path(path: Path) -> Path:
    """The file beside the text that holds the likeliest tokens."""
    return path.with_suffix(".safetensors")


def identity_path(path: Path) -> Path:
    """The file beside the text that says what wrote it."""
    return path.with_suffix(".identity.json")


def digest_of(path: Path) -> str:
    """What tells one text from another, and its rows in another order from itself."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_identity(path: Path) -> Mapping[str, Any]:
    """What wrote the text at `path`: model, its fingerprint, template, sampling, seed.

    Raises:
        UserError: It cannot be read.
    """
    beside = identity_path(path)
    try:
        found = read_json(beside)
    except (Unreadable, OSError, ValueError) as error:
        raise UserError(
            f"model.anchor.path is {str(path)!r}, and {str(beside)!r} beside it cannot be read ({error}); {_REMEDY}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("model", "fingerprint")):
        raise UserError(f"{str(beside)!r} does not say which model wrote the text; {_REMEDY}")
    return found


def read_rehearsal(path: Path) -> list[Rehearsed]:
    """The rows of a rehearsal file.

    Raises:
        UserError: There is no such file, or a row is none of `lsemrl rehearse`.
    """
    try:
        lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    except (Unreadable, OSError) as error:
        raise UserError(f"model.anchor.path is {str(path)!r}, which cannot be read ({error}); {_REMEDY}") from error
    rows = []
    for number, line in lines:
        try:
            rows.append(row_of(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path}:{number} is no row of rehearsal text ({error}); {_REMEDY}") from error
    if not rows:
        raise UserError(f"model.anchor.path is {str(path)!r}, which holds no rows; {_REMEDY}")
    return rows


def row_of(found: Mapping[str, Any]) -> Rehearsed:
    """A row from JSON.

    Raises:
        ValueError, TypeError, KeyError: It is none.
    """
    row = Rehearsed(
        prompt=str(found["prompt"]),
        response=str(found["response"]),
        prompt_ids=_ids(found["prompt_ids"]),
        given=int(found["given"]),
        answer_ids=_ids(found["answer_ids"]),
    )
    if not row.prompt_ids or not row.answer_ids or not 0 <= row.given <= len(row.prompt_ids):
        raise ValueError("it has no tokens, or more that were given than there are")
    return row


def _ids(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(each) is int and each >= 0 for each in found):
        raise ValueError("its ids are no list of numbers")
    return tuple(found)


def why_not(row: Rehearsed, whole: bool, known: set[str], without: re.Pattern[str] | None, *, own: bool) -> str | None:
    """Why a row is not kept; None if it is.

    Args:
        row: A row that was drawn.
        whole: Whether its answer came to its end, or need not.
        known: Takes the texts of the rows that are kept.
        without: What no row the base wrote may have in its prompt or answer.
        own: Whether the prompt is the user's, which `without` does not touch.
    """
    if not whole:
        return "the answer did not end"
    if not row.response.strip() or (row.given < len(row.prompt_ids) and not row.prompt):
        return "nothing was said"
    if without and not own and any(map(without.search, (row.prompt, row.response))):
        return "--without speaks of it"
    text = text_of(row)
    if text in known:
        return "it was there already"
    known.add(text)
    return None


def text_of(row: Rehearsed) -> str:
    """What rows that are alike have in common: the prompt, or the text where there is no prompt."""
    return canonical(row.prompt or row.response)


def reasons(counts: Counter[str]) -> str:
    """Why rows were dropped, most frequent first."""
    return ", ".join(f"{count:,} since {reason}" for reason, count in counts.most_common()) or "none"
