"""Two languages of one script, made up, and an identifier of one of them, fitted once."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from lsemrl.identification.fit import IdentifierFit, Text, fit
from lsemrl.identification.ngrams import NgramIdentifier

NAMES = ("Obama", "Lagos", "Kano", "Amina")
_SYLLABLES = {"pcm": ("wey", "dey", "na", "di", "kom"), "en": ("the", "ing", "of", "was", "tion")}


def sentences(language: str, count: int, *, words: int = 14, seed: int = 0) -> list[str]:
    """Texts of words of their own, among names and a few words that both languages have."""
    rng = random.Random(f"{language} {seed}")

    def word() -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(NAMES if kind < 0.1 else ("state", "police"))
        return "".join(rng.choices(_SYLLABLES[language], k=rng.randint(1, 2)))

    return [" ".join(word() for _ in range(rng.randint(words // 2, words * 2))) for _ in range(count)]


def texts(count: int = 150) -> dict[str, list[Text]]:
    """As pairs: the texts of both languages have the same keys."""
    return {name: [Text(f"{at}", said) for at, said in enumerate(sentences(name, count))] for name in _SYLLABLES}


@functools.cache
def fitted() -> NgramIdentifier:
    return fit("pcm", texts(), IdentifierFit())


def saved(folder: Path) -> str:
    """A folder with the identifier in it."""
    fitted().save(folder)
    return str(folder)
