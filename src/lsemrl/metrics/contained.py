"""Whether an output holds an accepted answer, whatever stands around it: chat models answer in sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

from lsemrl.scripts import units

# A joiner stands inside a unit, so that a number is one: 2.5, 1,980.
_IN_NUMBERS = regex.compile(r"(?<=\p{N})(?:\.(?=\p{N})|,(?=\p{N}{3}(?!\p{N})))")
_JOINER = "\u200d"


def contained(prediction: str, answers: Sequence[str], plain: Callable[[str], str]) -> float:
    """1 if an answer stands in `prediction` whole, else 0: no part of a longer word or number counts.

    Args:
        prediction: What was said.
        answers: What is accepted.
        plain: How texts are normalised before they are compared for exact match; what matches exactly is contained.
    """
    said = plain(prediction)
    return float(any(_holds(said, plain(answer)) for answer in answers))


def _holds(said: str, answer: str) -> bool:
    said, answer = (_IN_NUMBERS.sub(_JOINER, text) for text in (said, answer))
    run = units(answer)
    if said == answer or not run:
        return said == answer or (bool(answer) and answer in said)
    return f" {' '.join(run)} " in f" {' '.join(units(said))} "
