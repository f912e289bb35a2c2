"""Whether an output holds an accepted answer, whatever stands around it: chat models answer in sentences."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import regex

from lsemrl.canonical import canonical
from lsemrl.scripts import units

# Of other digits, as of Thai, each is a unit.
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
# 1,980 and 1 980 are 1980, as 10,00,000 is 1000000, and U.S. is US.
_UNREAD = regex.compile(r"(?<=\p{N})[,٬\u00A0\u202F](?=(?:\p{N}{2},)*\p{N}{3}(?!\p{N}))|(?<=\b\p{L})\.(?=\p{L}\b)")
# In 2.5 and 2,5 a joiner, which stands inside a unit, keeps 2 and 5 together; 1,2,3 and 1998,1999 are lists.
_IN_NUMBERS = regex.compile(r"(?<=\p{N})[.٫](?=\p{N})|(?<=\p{N})(?<!,\p{N}+),(?=\p{N}{1,2}(?!,?\p{N}))")
_JOINER = "\u200d"

SIGNATURE = "whole units and numbers of the answer, between its marks"
"""How `contained` is counted; before, a comma parted numbers, as did each digit of Thai, and before that marks were
dropped first, and joined what they part."""


def contained(prediction: str, answers: Sequence[str], plain: Callable[[str], str]) -> float:
    """1 if an answer stands in `prediction` whole, else 0: no part of a longer word or number counts.

    Texts are compared in the units that BLEU compares, so that punctuation parts words and joins none but numbers. Case
    does not count, nor in which digits a number is written, nor a unit of which `plain` leaves nothing, such as an
    article.

    Args:
        prediction: What was said.
        answers: What is accepted.
        plain: How texts are normalised before they are compared for exact match; what matches exactly is contained.
    """
    said, run = plain(prediction), _run(prediction, plain)
    return float(any(_holds(said, run, plain(answer), _run(answer, plain)) for answer in answers))


def _holds(said: str, said_run: str, answer: str, run: str) -> bool:
    if said == answer:
        return True
    return run in said_run if run.strip() else bool(answer) and answer in said


def _run(text: str, plain: Callable[[str], str]) -> str:
    """The units of `text` between spaces."""
    text = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), canonical(text).lower())
    text = _IN_NUMBERS.sub(_JOINER, _UNREAD.sub("", text))
    return f" {' '.join(unit for unit in units(text) if plain(unit))} "
