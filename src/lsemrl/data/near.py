"""Texts that are nearly the same, as leaks between splits are: long ones by runs of units, short ones by letters.

A text of which most runs of eight units stand in what is learned is known by heart, whatever else differs; one that is
too short for that is held against other short ones by its runs of five characters. Capitals make no difference, nor
does punctuation around the same units.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

from lsemrl.data.splits import content_key
from lsemrl.scripts import units

RUN, SHARE = 8, 0.7
"""Units in a run, and the share of a long text's runs that make it known."""
LETTERS, ALIKE = 5, 0.8
"""Characters in a run, and the Jaccard similarity that makes two short texts one."""
_SHORT = 12
_BOTH = int(_SHORT / ALIKE)  # what is a little longer is held against short ones too
_COMMON = 100  # a run in more texts than this says nothing of one


@dataclass(frozen=True, kw_only=True)
class Near:
    """A text and what it is nearly the same as.

    Attributes:
        text: Its place among those that are looked for.
        other: The place of the nearest among those that are known.
        share: In (0, 1]; of a long text that of its runs that are known, of whichever texts, of a short one how alike
            the two are.
        by_runs: Whether it is long.
    """

    text: int
    other: int
    share: float
    by_runs: bool


def near(texts: Sequence[str], known: Sequence[str]) -> list[Near]:
    """Those of `texts` that are nearly, but not to the letter, among `known`."""
    exact = {content_key(text) for text in known}
    cut = [units(text.casefold()) for text in known]
    by_units: dict[tuple[str, ...], int] = {}
    by_run: dict[int, int] = {}
    by_letters: dict[int, list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for at, (text, own) in enumerate(zip(known, cut, strict=True)):
        if len(own) > _SHORT:
            for run in _runs(own):
                by_run.setdefault(run, at)
        if len(own) <= _BOTH:
            by_units.setdefault(tuple(own), at)
            letters = _letters(text)
            sizes[at] = len(letters)
            for run in letters:
                by_letters[run].append(at)
    found = []
    for at, text in enumerate(texts):
        if content_key(text) in exact:
            continue
        own = units(text.casefold())
        one = _by_runs(set(_runs(own)), by_run) if len(own) > _SHORT else None
        by_runs = one is not None
        if one is None and len(own) <= _BOTH:
            same = by_units.get(tuple(own)) if own else None
            one = _by_letters(_letters(text), by_letters, sizes) if same is None else (same, 1.0)
        if one:
            found.append(Near(text=at, other=one[0], share=one[1], by_runs=by_runs))
    return found


def copied(source: str, target: str) -> bool:
    """Whether a target is its source, or nine tenths of its runs of letters stand in there."""
    if content_key(source).casefold() == content_key(target).casefold():
        return True
    own = _letters(target)
    return len(own) >= 4 * LETTERS and len(own & _letters(source)) >= 0.9 * len(own)


def _by_runs(own: set[int], known: dict[int, int]) -> tuple[int, float] | None:
    hits = Counter(known[run] for run in own if run in known)
    share = hits.total() / len(own)
    return (hits.most_common(1)[0][0], share) if share >= SHARE else None


def _by_letters(own: set[int], known: dict[int, list[int]], sizes: dict[int, int]) -> tuple[int, float] | None:
    hits = Counter(at for run in own if len(places := known.get(run, [])) <= _COMMON for at in places)
    nearest, best = -1, 0.0
    for at in nlargest(5, hits, key=lambda at: hits[at] / (len(own) + sizes[at] - hits[at])):
        both = sum(at in known[run] for run in own if run in known)
        alike = both / (len(own) + sizes[at] - both)
        if alike > best:
            nearest, best = at, alike
    return (nearest, best) if best >= ALIKE else None


def _runs(own: Sequence[str]) -> Iterator[int]:
    return (hash(tuple(own[at : at + RUN])) for at in range(len(own) - RUN + 1))


def _letters(text: str) -> set[int]:
    plain = f" {content_key(text).casefold()} "
    return {hash(plain[at : at + LETTERS]) for at in range(max(1, len(plain) - LETTERS + 1))}
