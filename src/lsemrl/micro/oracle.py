"""The oracle: parses Tibetan of the embedded world back into slots and scores meaning exactly.

It knows no embedding and no reference wording, so a policy that pleases the reward without meaning
anything is found out. F1 counts filled slots only: crediting empty slots gives nonsense a third of the score.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from lsemrl.canonical import canonical
from lsemrl.micro import grammar, words


@dataclass(frozen=True)
class Parse:
    """What a Tibetan sentence says.

    Attributes:
        slots: How often each (slot, concept) is said.
        well_formed: Whether the words stand in an order the grammar allows, with no unknown syllable.
    """

    slots: Counter[tuple[str, str]]
    well_formed: bool

    @property
    def whole(self) -> bool:
        """Whether it is a sentence of the embedded world."""
        return self.well_formed and bool(self.slots)


@dataclass(frozen=True)
class Meaning:
    """How well an output says what the reference says.

    Attributes:
        f1: F1 over filled slots, in [0, 1].
        exact: Every slot right, nothing added, and the sentence well formed.
    """

    f1: float
    exact: bool


# One letter a kind of word, so that word order is a regular expression.
_ORDER = regex.compile(r"(?:T|Ll|Aa?e){1,3}Oo?(?:c|i)?(?:nV|V[xp]?|nVp)")


@functools.cache
def _lexicon() -> dict[tuple[str, ...], tuple[tuple[str, str | None, str | None], ...]]:
    """Syllables -> the words they say, each (kind, slot, concept)."""
    entries: dict[tuple[str, ...], tuple[tuple[str, str | None, str | None], ...]] = {}

    def add(phrase: str, *said: tuple[str, str | None, str | None]) -> None:
        entries[tuple(canonical(phrase).split(grammar.TSHEG))] = said

    for particle in words.LOCATIVES:
        add(particle, ("l", None, None))
    for particle in ("ཀྱིས", "གིས", "གྱིས"):
        add(particle, ("e", None, None))
    for particle in ("ཞིག", "ཅིག", "ཤིག"):
        add(particle, ("i", None, None))
    for particle in ("པ", "བ"):
        add(particle, ("p", None, None))
    add(words.AUXILIARY, ("x", None, None))
    add(words.NEGATION[1], ("n", "negation", words.NEGATION[0]))
    for kind, slot, table in (
        ("A", "agent", words.AGENTS),
        ("a", "agent_attribute", words.AGENT_ATTRIBUTES),
        ("o", "patient_attribute", words.PATIENT_ATTRIBUTES),
        ("c", "count", words.COUNTS),
        ("L", "place", words.PLACES),
        ("T", "time", words.TIMES),
        ("O", "patient", words.PATIENT_WORDS),
        ("V", "action", words.ACTION_WORDS),
    ):
        for concept, phrases in table.items():
            for phrase in phrases:
                add(phrase, (kind, slot, concept))
                if kind in "Aa" and (fused := grammar.ergative(phrase)).count(grammar.TSHEG) == phrase.count(
                    grammar.TSHEG
                ):
                    add(fused, (kind, slot, concept), ("e", None, None))
    return entries


def parse(text: str) -> Parse:
    """Read a Tibetan sentence, longest words first; syllables it does not know are passed over.

    Args:
        text: Any string; what is not of this world parses to no slots.
    """
    lexicon = _lexicon()
    longest = max(map(len, lexicon))
    syllables = [syllable for syllable in regex.split(r"[་།\s]+", canonical(text)) if syllable]
    kinds, slots, at = "", Counter[tuple[str, str]](), 0
    while at < len(syllables):
        for length in range(min(longest, len(syllables) - at), 0, -1):
            said = lexicon.get(tuple(syllables[at : at + length]))
            if said:
                break
        else:
            said, length = (("?", None, None),), 1
        at += length
        for kind, slot, concept in said:
            kinds += kind
            if slot is not None and concept is not None:
                slots[slot, concept] += 1
    return Parse(slots=slots, well_formed=_ORDER.fullmatch(kinds) is not None)


def foreign(references: Sequence[str]) -> str:
    """How many of `references` are no sentences of the embedded world, in words; "" where all are."""
    unread = [text for text in references if not parse(text).whole]
    if not unread:
        return ""
    shown = f"{unread[0][:30]}{'...' if len(unread[0]) > 30 else ''}"
    return (
        f"the oracle knows only the embedded world, to which {len(unread):,} of {len(references):,} references do not "
        f"belong (such as {shown!r})"
    )


def meaning(output: str, reference: str) -> Meaning:
    """Score the meaning of `output` against that of `reference`, both Tibetan.

    Raises:
        ValueError: `reference` is not a sentence of the embedded world.
    """
    gold, said = parse(reference), parse(output)
    if not gold.whole:
        raise ValueError(f"the oracle knows only the embedded world, and cannot read the reference {reference!r}")
    right = (gold.slots & said.slots).total()
    f1 = 2 * right / (gold.slots.total() + said.slots.total())
    return Meaning(f1=f1, exact=gold.slots == said.slots and said.well_formed)
