"""What identifiers read of a text: its words without case, in windows that are each judged by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import regex

from lsemrl.canonical import canonical
from lsemrl.scripts import units

LETTERS = 60
"""In a window, about: twelve words of English, in which nearly any language can be told from its neighbour."""
_WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’ʼ\u180E\u200C\u200D][\p{L}\p{M}]+)*")


class Told(NamedTuple):
    """What an identifier makes of one window.

    Attributes:
        share: How likely it is in the language, in [0, 1].
        decided: Whether it can be told at all; names and a few words of either language often cannot.
    """

    share: float
    decided: bool


def words_of(text: str) -> list[str]:
    """Its words in lower case: no digits, no punctuation, no U+FFFD; letter by letter where words are not spaced."""
    found: list[str] = []
    for word in _WORD.findall(canonical(text).lower()):
        parts = units(word)
        # An apostrophe ends a unit and no word, so that only what is unspaced is cut.
        found += parts if len(parts) > len(regex.split(r"['’ʼ]", word)) else [word]
    return found


def windows(words: Sequence[str]) -> list[list[str]]:
    """`words` in parts of about equal length; one of few letters is a single part, one of none has no part."""
    total = sum(map(len, words))
    count = max(1, round(total / LETTERS))
    parts: list[list[str]] = [[] for _ in range(count)]
    passed = 0
    for word in words:
        middle = passed + len(word) / 2
        parts[min(int(middle * count / total), count - 1)].append(word)
        passed += len(word)
    return [part for part in parts if part]


def share(told: Sequence[Told], lengths: Sequence[int]) -> float | None:
    """The share of a text that is in the language: of its decided windows, by their letters.

    Args:
        told: Of its windows.
        lengths: Letters in each.

    Returns:
        In [0, 1]; None where no window is decided.
    """
    decided = [(each.share, length) for each, length in zip(told, lengths, strict=True) if each.decided]
    letters = sum(length for _, length in decided)
    return sum(part * length for part, length in decided) / letters if letters else None
