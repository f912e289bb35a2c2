"""SQuAD reading comprehension as the official scorer of its version 1.1 counts it (arXiv 1606.05250).

A text is lower-cased, loses its punctuation (of ASCII, as the scorer has it) and the articles a, an and the, and is cut
at white space. F1 is over the bag of words, and the best of the answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from lsemrl.canonical import canonical

SIGNATURE = "SQuAD v1.1"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROPPED = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """`text` as it is compared."""
    return " ".join(_ARTICLES.sub(" ", canonical(text).lower().translate(_DROPPED)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if `prediction` equals an answer but for what is dropped, else 0."""
    return float(any(plain(prediction) == plain(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 in [0, 1] over `answers`, at least one: precision and recall of words, in any order."""
    said = plain(prediction).split()
    return max(_f1(said, plain(answer).split()) for answer in answers)


def _f1(said: list[str], answer: list[str]) -> float:
    shared = (Counter(said) & Counter(answer)).total()
    return 2 * shared / (len(said) + len(answer)) if shared else 0.0
