"""What a policy may do in place of the task, seen in the text alone: each part is 1 where it does nothing of the kind.

An encoder likes many of these: a copy of the source, a right answer said twice or padded. What the references do too,
as names that stay as they are, is never held against an output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import regex
import torch
from torch import Tensor

from lsemrl.canonical import canonical
from lsemrl.rewards.base import Reward, in_one_form
from lsemrl.scripts import units
from lsemrl.types import Completion, Example, UserError

Parts = TypeVar("Parts", str, tuple[str, ...])

_COPIED, _LOOPED = 5, 3
_TEMPLATE = regex.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_(?:turn|image)>|</?(?:s|think|tool_call)>"
    r"|<(?:pad|unk|eos|bos|mask|extra_id_\d+)>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
)
# Controls, halves of characters, code points that are none.
_UNREADABLE = regex.compile(r"[[\p{Cc}\p{Cs}\p{Cn}\uFFFD]--[\t\n\r]]", regex.V1)


class CopyOfSource(Reward):
    """How much of an output is not copied from its source, in [0, 1], where the two are in different languages.

    It is (1 - c) / (1 - r), at most 1, for c and r the shares of character 5-grams that the output, and the reference
    that shares most, have in common with the source: 0 for a copy, 1 for what copies no more than the reference.
    Case and punctuation are left out. NaN where source and reference are in one language, as an article and its
    title, and where the reference is a copy too. An output without a letter or digit copies nothing.

    Args:
        weight: What it counts in the mix.
        opens_from: As a gate it is open from here on. On Nigerian Pidgin .3 shuts where about two thirds are copied.

    Raises:
        UserError: `opens_from` is out of range.
    """

    reads_references = False

    def __init__(self, weight: float = 1.0, opens_from: float = 0.3) -> None:
        super().__init__(weight, opens_from)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1], or NaN."""
        return torch.tensor([_own_share(each) for each in completions], dtype=torch.float32)

    def look_at(self, examples: Sequence[Example]) -> str:
        """Where it does not apply."""
        if any(example.pair for example in examples):
            return ""
        return "CopyOfSource is left out: source and references are in one language here"


class Length(Reward):
    """Whether an output is about as long as its references, in [0, 1], counted in units of its script.

    1 from `shortest` times the shortest reference to `longest` times the longest one, and beyond that the ratio to
    the nearer bound: 0 for an empty output, 0.5 for one twice as long as it may be.

    Args:
        weight: What it counts in the mix.
        shortest: In [0, 1].
        longest: 1 or more.
        opens_from: As a gate it is open from here on.

    Raises:
        UserError: A number is out of range.
    """

    def __init__(
        self, weight: float = 1.0, shortest: float = 0.6, longest: float = 1.6, opens_from: float = 0.8
    ) -> None:
        super().__init__(weight, opens_from)
        if not 0 <= shortest <= 1:
            raise UserError(f"shortest is {shortest} in Length: set it in [0, 1]")
        if not 1 <= longest < math.inf:
            raise UserError(f"longest is {longest} in Length: set it to 1 or more")
        self.shortest, self.longest = shortest, longest

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]; NaN where no reference has a unit."""
        return torch.tensor([self._score(each) for each in completions], dtype=torch.float32)

    def _score(self, completion: Completion) -> float:
        lengths = [count for text in completion.example.references if (count := len(units(text)))]
        if not lengths:
            return math.nan
        length = len(units(completion.text))
        least, most = self.shortest * min(lengths), self.longest * max(lengths)
        if length < least:
            return length / least
        return most / length if length > most else 1.0


class Repetition(Reward):
    """How little an output repeats itself, in [0, 1].

    It is the share of its 3-grams of units that are distinct, over that of the reference with the fewest, at most 1.
    An unit is a syllable, a letter or a word, as the script asks. 1 for an output of fewer than four units.

    Args:
        weight: What it counts in the mix.
        opens_from: As a gate it is open from here on. A sentence said twice gets about .5.

    Raises:
        UserError: `opens_from` is out of range.
    """

    reads_references = False

    def __init__(self, weight: float = 1.0, opens_from: float = 0.7) -> None:
        super().__init__(weight, opens_from)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]."""
        return torch.tensor([_fresh_share(each) for each in completions], dtype=torch.float32)


class Broken(Reward):
    """0 for an output that holds what no text should, else 1.

    That is U+FFFD, which bytes that are not UTF-8 decode to; control characters but tab and line ends, code points
    that are no characters; and marks of a chat or of a template, such as <|im_start|>, [INST] or <pad>. What a
    reference holds is allowed.
    """

    reads_references = False

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N], each 0 or 1."""
        return torch.tensor([float(_is_clean(each)) for each in completions])


def guarded(candidates: Sequence[Sequence[Completion]]) -> list[Completion]:
    """Of the answers to each prompt the first that is no copy of its source, no loop and not broken.

    The guards judge as they do as gates, but hold nothing against references, which nobody has who answers.

    Args:
        candidates: Of each prompt one or more answers, the best first, which is taken where all are shut out.
    """
    guards = CopyOfSource(), Repetition(), Broken()

    def sound(said: Completion) -> bool:
        bare = [replace(said, text=canonical(said.text), example=_bare(said.example))]
        return all(bool(guard.opens(guard(bare))) for guard in guards)

    return [next(filter(sound, some), some[0]) if len(some) > 1 else some[0] for some in candidates]


def _bare(example: Example) -> Example:
    return replace(in_one_form(example), references=())


def _own_share(completion: Completion) -> float:
    example = completion.example
    if not example.pair:
        return math.nan
    source = _letters(example.source)

    def copied(text: str) -> float:
        letters = _letters(text)
        if len(letters) < _COPIED:  # a word or two, which lie in others by chance
            return float(bool(letters) and f" {letters} " in f" {source} ")
        grams = _grams(letters, _COPIED)
        return sum(gram in source for gram in grams) / len(grams) if grams else 0.0

    allowed = max(map(copied, example.references), default=0.0)
    return min(1.0, (1 - copied(completion.text)) / (1 - allowed)) if allowed < 1 else math.nan


def _fresh_share(completion: Completion) -> float:
    def distinct(text: str) -> float:
        grams = _grams(tuple(units(text)), _LOOPED)
        return len(set(grams)) / len(grams) if grams else 1.0

    return min(1.0, distinct(completion.text) / min(map(distinct, completion.example.references), default=1.0))


def _is_clean(completion: Completion) -> bool:
    def faults(text: str) -> set[str]:
        return {*_UNREADABLE.findall(text), *_TEMPLATE.findall(text)}

    return faults(completion.text) <= set().union(*map(faults, completion.example.references))


def _letters(text: str) -> str:
    """Its units in lower case, between spaces."""
    return " ".join(units(text.lower()))


def _grams(parts: Parts, size: int) -> list[Parts]:
    """All runs of `size` parts; the whole where there are fewer."""
    return [parts[at : at + size] for at in range(max(len(parts) - size + 1, min(len(parts), 1)))]
