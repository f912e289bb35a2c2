"""What identifiers read of a text: its words without case, in windows that are each judged by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
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
    return [word for word, _ in _words(canonical(text.lower()))]


def raw_windows(text: str) -> list[tuple[str, int]]:
    """The windows of its words, each with all that stands between them, and the letters in each."""
    text = " ".join(canonical(text).split())
    words = _words(text)
    cuts = pairwise([0, *(start for _, start in words[1:]), len(text)])
    pieces = (text[one:other] for one, other in cuts)
    cut = windows([word for word, _ in words])
    return [("".join(islice(pieces, len(window))).strip(), sum(map(len, window))) for window in cut]


def _words(text: str) -> list[tuple[str, int]]:
    """The words of a canonical text, and where each begins."""
    found = []
    for match in _WORD.finditer(text):
        parts, at = units(match[0]), match.start()
        # An apostrophe ends a unit and no word, so that only what is unspaced is cut.
        for part in parts if len(parts) > len(regex.split(r"['’ʼ]", match[0])) else [match[0]]:
            at = text.index(part, at)
            found.append((part, at))
            at += len(part)
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
