"""What a tokenizer carries of texts: which letters it knows, which units it can tell apart, what comes back.

The counts are of letters rather than of tokens, because one unknown token may stand for a whole sentence.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import regex

from lsemrl.data.splits import evenly
from lsemrl.data.thoughts import answer, answers, opened
from lsemrl.data.tokens import target_ids
from lsemrl.scripts import Unit, scripts_of, unit_of, units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lsemrl.types import Example

T = TypeVar("T")
Read = tuple[str, tuple[int, ...], list[tuple[int, int]]]
"""A text, its ids and, of a fast tokenizer, which part of the text each stands for."""

ROWS = 2000
"""Look at so many texts, evenly spaced, where there are more."""
_LETTER = regex.compile(r"[\p{L}\p{M}\p{N}]")


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a tokenizer makes of some texts.

    Attributes:
        tokens_per_unit: 0 where the texts have no unit.
        unit: What most of the texts' letters are cut into by `lsemrl.scripts.units`: word, syllable or character.
        tokens_per_letter: For each letter, mark and digit; 0 where the texts have none.
        unknown: Share in [0, 1] of letters, marks and digits that became an unknown token, or no token at all.
        alike: Share in [0, 1] of units read as a different word is read, but for case.
        unread: A few units that hold unknown letters.
    """

    tokens_per_unit: float
    unit: Unit
    tokens_per_letter: float
    unknown: float
    alike: float
    unread: tuple[str, ...]


def spaced(rows: Sequence[T]) -> Sequence[T]:
    """At most `ROWS` of `rows`, evenly spaced."""
    return evenly(rows, ROWS)


def carried(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Carried:
    """Read `texts` by themselves, as plain text."""
    # Composed first: a mark that is composed with its letter by the tokenizer is not lost.
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    unknown = unknown_ids(tokenizer)
    words = Counter(word for text in texts for word in units(text))
    alone = {word: ids for word, ids, _ in _read(tokenizer, list(words))}
    unread = {word: None for word, ids in alone.items() if not ids or unknown.intersection(ids)}
    readable = {word: ids for word, ids in alone.items() if word not in unread}
    read = _read(tokenizer, texts)
    # Without an unknown token letters are dropped, after which tokens no longer say rightly what they stand for; those
    # of an older tokenizer never do.
    by_spans = unknown and tokenizer.is_fast
    tokens, letters = sum(len(ids) for _, ids, _ in read), sum(len(_LETTER.findall(text)) for text in texts)
    return Carried(
        tokens_per_unit=tokens / words.total() if words else 0.0,
        unit=unit_of(next(iter(scripts_of(*texts)), "")),
        tokens_per_letter=tokens / letters if letters else 0.0,
        unknown=_unknown_by_spans(read, unknown) if by_spans else _unknown_by_letters(tokenizer, texts, unknown),
        alike=sum(words[word] for word in _alike(readable)) / max(1, words.total()),
        unread=tuple(itertools.islice(unread, 3)),
    )


def _unknown_by_spans(read: Sequence[Read], unknown: set[int]) -> float:
    total = missed = 0
    for text, ids, spans in read:
        known = bytearray(len(text))
        for wanted in (True, False):  # what is known and unknown at once, such as a mark of a beginning, is unknown
            for number, (begin, end) in zip(ids, spans, strict=True):
                if (number not in unknown) is wanted:
                    known[begin:end] = bytes([wanted]) * (end - begin)
        at = [match.start() for match in _LETTER.finditer(text)]
        total, missed = total + len(at), missed + sum(not known[place] for place in at)
    return missed / max(1, total)


def _unknown_by_letters(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], unknown: set[int]) -> float:
    letters = Counter(letter for text in texts for letter in _LETTER.findall(text))
    lost = [
        letter
        for letter, ids, _ in _read(tokenizer, list(letters))
        if unknown.intersection(ids) or not _LETTER.search(str(tokenizer.decode(list(ids))))
    ]
    return sum(letters[letter] for letter in lost) / max(1, letters.total())


def alike(texts: Sequence[str], ids: Iterable[Sequence[int]]) -> float:
    """Share in [0, 1] of different texts that are read as another of them is, but for case."""
    different = dict(zip(texts, map(tuple, ids), strict=True))
    return len(_alike(different)) / max(1, len(different))


def changed(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> tuple[list[str], list[str]]:
    """Ids of the rows whose first reference, learned to the letter, would be decoded to another text.

    Returns:
        All of them, and those in which letters, marks or digits are others, but for case.
    """
    prompts = [example.prompt for example in examples]
    back = answers(tokenizer, target_ids(tokenizer, [example.reference for example in examples]), prompts)
    # In a thought that the prompt opened, what of a reference is its answer is all that is looked at of an output.
    texts = [answer(row.reference, row.prompt) if opened(row.prompt) else row.reference for row in examples]
    pairs = [
        (example.id, unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", other))
        for example, text, other in zip(examples, texts, back, strict=True)
    ]
    return (
        [name for name, text, other in pairs if text != other],
        [name for name, text, other in pairs if _letters(text) != _letters(other)],
    )


def _letters(text: str) -> str:
    return "".join(_LETTER.findall(unicodedata.normalize("NFKC", text).casefold()))


def unknown_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that stand for what is not in the vocabulary; some tokenizers use one that they do not declare."""
    found = {tokenizer.unk_token_id}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = backend.model
        if token := getattr(model, "unk_token", None):
            found.add(backend.token_to_id(token))
        elif type(model).__name__ == "Unigram":  # it does not say, but for its file
            found.add(json.loads(backend.to_str())["model"]["unk_id"])
    return {number for number in found if number is not None}


def _alike(read: dict[str, tuple[int, ...]]) -> list[str]:
    by_ids: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for text, ids in read.items():
        by_ids[ids].append(text)
    return [
        text
        for texts in by_ids.values()
        if len({unicodedata.normalize("NFKC", text).casefold() for text in texts}) > 1
        for text in texts
    ]


def _read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Read]:
    if not texts:
        return []
    read = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=tokenizer.is_fast,
        padding=False,
        truncation=False,
        verbose=False,
    )
    spans = read["offset_mapping"] if tokenizer.is_fast else [[]] * len(texts)
    return list(zip(texts, map(tuple, read["input_ids"]), spans, strict=True))
