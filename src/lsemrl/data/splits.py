"""Divides rows by a hash of their content: equal rows stay together, and a row's place depends on no other row.

Rows are equal when their content is, after Unicode normalisation (NFC), without characters that are not seen and with
white space collapsed; only the hash sees that form. A hash rather than a shuffle, so that a grown file keeps its test
set.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeVar

import regex

from lsemrl.canonical import canonical
from lsemrl.types import UserError

T = TypeVar("T")
# Joiners, variation selectors and the Mongolian vowel separator are no more seen, but change what is.
HIDDEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}--[\u200C\u200D\u180E\p{Variation_Selector}]]", regex.V1)
"""Characters that are not seen, such as zero-width spaces and marks of direction."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """How one source becomes training, validation and test rows, and which of the training rows are used."""

    validation_fraction: float = 0.05
    """Share of rows for validation, where no validation source is given."""
    test_fraction: float = 0.05
    """Share of rows for the test, where no test source is given; 1 for rows that only measure."""
    seed: int = 0
    """Another seed divides otherwise; keep it for every run that is compared."""
    part: Literal["all", "cold_start", "rl"] = "all"
    """Which training rows to use: all, the `cold_start_count` of the cold start, or the others, for RL."""
    cold_start_count: int = 0
    """Training rows set aside for the cold start, or a few more, since rows of one group, as questions on one passage,
    stay together."""
    max_rows: int | None = None
    """Use this many training rows, or a few more, since rows of one group stay together, before they are divided into
    cold start and RL."""

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"splits.{name} is {getattr(self, name)}; give a share in [0, 1]")
        if self.validation_fraction + self.test_fraction > 1:
            raise UserError(
                f"splits.validation_fraction {self.validation_fraction} and splits.test_fraction {self.test_fraction} "
                "are more than all; lower them"
            )
        if self.part not in ("all", "cold_start", "rl"):
            raise UserError(f"splits.part is {self.part!r}; choose all, cold_start or rl")
        if self.cold_start_count < 0:
            raise UserError(f"splits.cold_start_count is {self.cold_start_count}; give 0 or more")
        if self.part != "all" and self.cold_start_count == 0:
            raise UserError(f"splits.part is {self.part} and splits.cold_start_count is 0; say how many rows it has")
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"splits.max_rows is {self.max_rows}; give 1 or more, or null for all rows")


def content_key(*texts: str) -> str:
    """What equal content has in common."""
    return "\x1f".join(" ".join(canonical(HIDDEN.sub("", text)).split()) for text in texts)


def split_by_content(
    rows: Sequence[T],
    key: Callable[[T], str],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> tuple[list[T], list[T], list[T]]:
    """Divide `rows` into training, validation and test rows, each in the order given.

    Rows with one key stay together, and adding rows moves no other.
    """
    train: list[T] = []
    validation: list[T] = []
    test: list[T] = []
    for row in rows:
        point = _hash(key(row), "split", seed) / 2**64
        held_out = test if point < test_fraction else validation
        (held_out if point < test_fraction + validation_fraction else train).append(row)
    return train, validation, test


def take_by_content(rows: Sequence[T], key: Callable[[T], str], *, count: int, seed: int) -> tuple[list[T], list[T]]:
    """Divide `rows` into `count` of them and the others, each in the order given.

    Rows with one key stay together, so the first part has more than `count` rows where a group of equals crosses it.
    """
    keys = [key(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (_hash(keys[at], "take", seed), keys[at]))
    taken: set[int] = set()
    for _, group in itertools.groupby(order, key=keys.__getitem__):
        if len(taken) >= count:
            break
        taken.update(group)
    return [row for at, row in enumerate(rows) if at in taken], [row for at, row in enumerate(rows) if at not in taken]


def choose_part(rows: Sequence[T], key: Callable[[T], str], splits: Splits) -> list[T]:
    """The training rows that `splits` asks for.

    Raises:
        UserError: The cold start would leave nothing for RL.
    """
    chosen = list(rows)
    if splits.max_rows is not None:
        chosen, _ = take_by_content(chosen, key, count=splits.max_rows, seed=splits.seed)
    if splits.part == "all":
        return chosen
    cold_start, rl = take_by_content(chosen, key, count=splits.cold_start_count, seed=splits.seed)
    if not rl:
        raise UserError(
            f"splits.cold_start_count is {splits.cold_start_count}, but there are {len(chosen)} training rows; "
            "lower it, so that some are left for RL"
        )
    return cold_start if splits.part == "cold_start" else rl


def content_keys(rows: Sequence[T], contents: Callable[[T], Sequence[str]]) -> frozenset[str]:
    """The keys of every single content."""
    return frozenset(content_key(text) for row in rows for text in contents(row))


def without_shared(
    rows: Sequence[T],
    contents: Callable[[T], Sequence[str]],
    held_out: Sequence[T],
    elsewhere: Set[str] = frozenset(),
) -> list[T]:
    """`rows` but for those that share any content with `held_out`, or have one whose key is in `elsewhere`."""
    seen = content_keys(held_out, contents) | elsewhere
    return [row for row in rows if not any(content_key(text) in seen for text in contents(row))]


def _hash(key: str, purpose: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{purpose}\x1f{seed}\x1f{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def evenly(rows: Sequence[T], count: int) -> list[T]:
    """At most so many rows, from all of a file: neighbours are often of one document, and some are hard throughout."""
    return [rows[at * len(rows) // count] for at in range(count)] if count < len(rows) else list(rows)
