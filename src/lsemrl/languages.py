"""One table of language profiles: the scripts a language is written in and the units its texts are compared by.

Letters are counted with the Unicode character database of the `regex` module. What a text is judged by are letters
that belong to a script. Neutral, and never counted, are digits, punctuation, spaces, symbols, emoji, combining marks
and the few letters that Unicode gives to no script of their own (Common, such as ـ and ー): so Tibetan
with Arabic numerals is Tibetan, and stacking vowel signs on one letter buys nothing. U+FFFD, which is what bytes that
are no character decode to, counts as a letter of no language.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import regex

from lsemrl.canonical import canonical
from lsemrl.errors import UserError

_LETTER = r"[\p{L}--\p{Script=Common}]"
_LETTERS = regex.compile(rf"[{_LETTER}\uFFFD]", regex.V1)
# Scripts written without a mark between words or syllables.
_UNSPACED = "".join(
    rf"\p{{Script={script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
)
# The joiners and the Mongolian vowel separator stand inside words. U+FFFD does too, so that half a syllable is not
# taken for a whole one.
_UNITS = regex.compile(
    rf"[[\p{{L}}\p{{M}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}\uFFFD]--[{_UNSPACED}]][[\p{{L}}\p{{M}}\p{{N}}\u180E\u200C\u200D\uFFFD]--[{_UNSPACED}]]*",
    regex.V1,
)
_LONG, _FEW = 40, 2


@dataclass(frozen=True, kw_only=True)
class Language:
    """How to tell a language by its script and how to cut its texts up.

    Raises:
        UserError: A script that Unicode does not know, or a threshold out of range.
    """

    code: str
    """ISO 639."""
    name: str
    """In English."""
    scripts: tuple[str, ...]
    """Unicode names of the scripts it is written in; letters of any of them count as its own."""
    threshold: float = 0.8
    """The share of letters in (0, 1] from which on a text passes for the language. Ours: the paper gives none."""
    unit: Literal["syllable", "character", "word"] = "word"
    """What `units` gives for this language; the tokenizer's name in the signature of a score."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"language.threshold is {self.threshold}; give a share above 0 and at most 1")
        for script in self.scripts or ("",):
            try:
                regex.compile(rf"\p{{Script={script}}}")
            except regex.error:
                raise UserError(
                    f"language.scripts has {script!r}, which is no script of Unicode; give names such as Latin, Arabic "
                    "or Khmer"
                ) from None

    def share(self, text: str) -> float | None:
        """The share of letters in the language's scripts, in [0, 1], or None if `text` has no letter.

        Canonically equivalent texts (NFC, NFD) have equal shares.
        """
        text = canonical(text)
        letters = len(_LETTERS.findall(text))
        return len(_own(self.scripts).findall(text)) / letters if letters else None

    def accepts(self, text: str, threshold: float | None = None) -> bool:
        """Whether the share of own letters is at least `threshold` (the profile's if None); never without letters."""
        share = self.share(text)
        return share is not None and share >= (self.threshold if threshold is None else threshold)

    def units(self, text: str) -> list[str]:
        """The units that BLEU and ROUGE compare, in order; punctuation is dropped.

        A unit is a run of letters, marks and digits. Tsheg and shad are punctuation, so in Tibetan that is a syllable;
        in scripts written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) each letter with its marks is one. The
        rule is the same whatever the language, so that a foreign word in a text is cut as its own script asks.
        """
        return _UNITS.findall(canonical(text))

    def splits(self, text: str) -> bool:
        """Whether `units` can cut up `text`: False if 40 letters or more fall into two units or fewer.

        Such a text shares no unit with any but itself, and BLEU and ROUGE would silently read 0.
        """
        return len(_LETTERS.findall(canonical(text))) < _LONG or len(self.units(text)) > _FEW


@functools.cache
def _own(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    named = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[{_LETTER}&&[{named}]]", regex.V1)


# Real Tibetan titles are Tibetan to the last letter but for one in 150, and 49 of 50 articles above .88; Chinese
# prose carries foreign names in Latin letters, one article in a hundred below .60.
# Kazakh in Latin letters is left out: English and pinyin would pass for Kazakh.
LANGUAGES: dict[str, Language] = {
    profile.code: profile
    for profile in (
        Language(code="bo", name="Tibetan", scripts=("Tibetan",), threshold=0.8, unit="syllable"),
        Language(code="ug", name="Uyghur", scripts=("Arabic",), threshold=0.8, unit="word"),
        Language(code="mn", name="Mongolian", scripts=("Cyrillic", "Mongolian"), threshold=0.8, unit="word"),
        Language(code="kk", name="Kazakh", scripts=("Cyrillic", "Arabic"), threshold=0.8, unit="word"),
        Language(code="th", name="Thai", scripts=("Thai",), threshold=0.8, unit="character"),
        Language(code="zh", name="Chinese", scripts=("Han",), threshold=0.5, unit="character"),
        Language(code="en", name="English", scripts=("Latin",), threshold=0.8, unit="word"),
    )
}


def language(named: str | Language) -> Language:
    """The profile of a code; a profile of the user's own as it is.

    Raises:
        UserError: There is none of that code.
    """
    if isinstance(named, Language):
        return named
    if named not in LANGUAGES:
        raise UserError(
            f"language is {named!r}: choose one of {', '.join(LANGUAGES)}, or write its profile, such as {{code: km, "
            "name: Khmer, scripts: [Khmer]}"
        )
    return LANGUAGES[named]
