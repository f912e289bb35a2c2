"""CMRC 2018 reading comprehension as its official scorer (version 6) counts it (arXiv 1810.07366).

A text is lower-cased and cut into single Chinese characters and, between them, words of NLTK's tokenizer; the
scorer's punctuation is dropped. F1 is over the longest common run of pieces: neither SQuAD's bag of words nor
ROUGE-L's subsequence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from lsemrl.canonical import canonical
from lsemrl.errors import UserError

# What the scorer drops, and only that: ASCII commas and full stops, ‘ and … stay, as it never matches them.
_DROPPED = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")

SIGNATURE = "CMRC 2018 v6"
_CHINESE = re.compile("([\u4e00-\u9fa5])")


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if `prediction` equals an answer but for case and the scorer's punctuation, else 0."""
    return float(any(plain(prediction) == plain(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 in [0, 1] over `answers`, at least one: precision and recall of the longest common run of pieces."""
    said = _pieces(prediction)
    return max(_f1(said, _pieces(answer)) for answer in answers)


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, tuple[float, ...]]:
    """Score N predictions, each against its accepted answers.

    Returns:
        em and f1 of each, in [0, 1], and answer_length: its characters, spaces at its ends left out. Most of the
        alignment tax is the form of answers, and a falling exact match with growing answers shows it.

    Raises:
        UserError: There are no predictions, or not one row of answers for each.
    """
    if not predictions:
        raise UserError("predictions is empty: a score needs at least one")
    if len(predictions) != len(references):
        raise UserError(f"references has {len(references)} rows for {len(predictions)} predictions: give one for each")
    for row, answers in enumerate(references):
        if not answers:
            raise UserError(f"references is empty for prediction {row}: give at least one answer")
    pairs = list(zip(predictions, references, strict=True))
    return {
        "em": tuple(exact_match(prediction, answers) for prediction, answers in pairs),
        "f1": tuple(f1(prediction, answers) for prediction, answers in pairs),
        "answer_length": tuple(float(len(canonical(prediction).strip())) for prediction in predictions),
    }


def plain(text: str) -> str:
    """`text` as it is compared for exact match."""
    return canonical(text).lower().strip().translate(_DROPPED)


def _pieces(text: str) -> list[str]:
    """Single Chinese characters and, of what is between them, words."""
    pieces: list[str] = []
    for run in _CHINESE.split(plain(text)):
        if _CHINESE.fullmatch(run):
            pieces.append(run)
        elif run:
            pieces += _words()(run)
    return pieces


@functools.cache
def _words() -> Callable[[str], list[str]]:
    # The class and not nltk.word_tokenize: it needs no download.
    from nltk.tokenize import NLTKWordTokenizer

    tokenize: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    return tokenize


def _f1(said: list[str], answer: list[str]) -> float:
    run = SequenceMatcher(None, said, answer, autojunk=False).find_longest_match().size
    return 2 * run / (len(said) + len(answer)) if run else 0.0
