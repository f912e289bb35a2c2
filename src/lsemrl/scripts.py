"""Letters, the scripts they belong to, and the units that texts are cut into.

Letters are counted with the Unicode character database of the `regex` module. What a text is judged by are letters
that belong to a script. Neutral, and never counted, are digits, punctuation, spaces, symbols, emoji, combining marks
and the few letters that Unicode gives to no script of their own (Common, such as ـ and ー): so Tibetan
with Arabic numerals is Tibetan, and stacking vowel signs on one letter buys nothing. U+FFFD, which is what bytes that
are no character decode to, counts as a letter of no language; so do letters in a mathematical font (𝐚, ℝ), in which a
foreign text could be written in full.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Literal

import regex
from fontTools import unicodedata

from lsemrl.canonical import canonical

Unit = Literal["syllable", "character", "word"]
"""What a text is cut into: by tsheg, letter by letter, or by spaces."""

_LETTER = r"[\p{L}--\p{Script=Common}]"
_LETTERS = regex.compile(rf"[{_LETTER}\uFFFD[\p{{L}}&&\p{{Decomposition_Type=Font}}]]", regex.V1)
_COMMON = ("Zyyy", "Zinh", "Zzzz")
_LONG, _FEW = 40, 2
_SYLLABIC = ("Tibetan",)
# Scripts written without a mark between words or syllables.
_UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Yi", "Thai", "Lao", "Khmer", "Myanmar"),
    *("Tai_Tham", "New_Tai_Lue", "Tai_Viet", "Javanese", "Balinese"),
)
_ALONE = "".join(rf"\p{{Script={script}}}" for script in _UNSPACED)
# Signs that stack the next letter under the one before: of Burmese, Khmer, Tai Tham, Balinese and Javanese.
_STACKS = r"(?<=[\u1039\u17D2\u1A60\u1B44\uA9C0])"
# The joiners and the Mongolian vowel separator stand inside words. U+FFFD does too, so that half a syllable is not
# taken for a whole one.
_UNITS = regex.compile(
    rf"[[\p{{L}}\p{{M}}\p{{N}}]&&[{_ALONE}]]\p{{M}}*(?:{_STACKS}[\p{{L}}&&[{_ALONE}]]\p{{M}}*)*"
    rf"|[[\p{{L}}\p{{N}}\uFFFD]--[{_ALONE}]][[\p{{L}}\p{{M}}\p{{N}}\u180E\u200C\u200D\uFFFD]--[{_ALONE}]]*",
    regex.V1,
)
# Codes of ISO 15924 that mean several scripts of Unicode, or a style of one.
_SEVERAL = {
    **dict.fromkeys(("Hans", "Hant"), ("Han",)),
    "Hanb": ("Han", "Bopomofo"),
    "Jpan": ("Han", "Hiragana", "Katakana"),
    "Hrkt": ("Hiragana", "Katakana"),
    "Kore": ("Hangul", "Han"),
    "Jamo": ("Hangul",),
    **dict.fromkeys(("Latf", "Latg"), ("Latin",)),
    **dict.fromkeys(("Syre", "Syrj", "Syrn"), ("Syriac",)),
    "Aran": ("Arabic",),
    "Cyrs": ("Cyrillic",),
}


def letters(text: str) -> int:
    """How many letters are in a canonical text."""
    return len(_LETTERS.findall(text))


def letters_of(scripts: tuple[str, ...], text: str) -> int:
    """How many letters of a canonical text are of `scripts`."""
    return len(_own(scripts).findall(text))


def units(text: str) -> list[str]:
    """The units that BLEU and ROUGE compare, in order; punctuation is dropped.

    A unit is a run of letters, marks and digits that no mark begins, such as what follows an emoji. Tsheg and shad
    are punctuation, so in Tibetan that is a syllable; in scripts written without spaces (Han, kana, Thai, Lao, Khmer,
    Burmese, …) each letter with its marks and what is stacked under it is one. The rule is the same whatever the
    language, so that a foreign word in a text is cut as its own script asks.
    """
    return _UNITS.findall(canonical(text))


def splits(text: str) -> bool:
    """Whether `units` can cut up `text`: False if 40 letters or more fall into two units or fewer.

    Such a text shares no unit with any but itself, and BLEU and ROUGE would silently read 0.
    """
    return letters(canonical(text)) < _LONG or len(units(text)) > _FEW


def unit_of(script: str) -> Unit:
    """What `units` gives for text in a script of Unicode."""
    name = script.replace(" ", "_")
    return "syllable" if name in _SYLLABIC else "character" if name in _UNSPACED else "word"


def scripts_of(*texts: str) -> dict[str, float]:
    """Unicode names of scripts -> share of the letters of texts, the most frequent first."""
    letters: Counter[str] = Counter()
    for character, count in Counter(itertools.chain.from_iterable(texts)).items():
        if character.isalpha() and (code := unicodedata.script(character)) not in _COMMON:
            letters[code] += count
    total = sum(letters.values())
    return {unicodedata.script_name(code): count / total for code, count in letters.most_common()}


def named(script: str) -> str:
    """Unicode's name of a script of letters that is told by it, however spelt, or by its code; "" of anything else."""
    code = unicodedata.script_code(script, script.capitalize())
    name = "" if code in _COMMON else unicodedata.script_name(code, "")
    try:
        return name if name and _own((name,)) else ""
    except regex.error:  # one that a newer Unicode has
        return ""


def scripts_of_code(code: str) -> tuple[str, ...]:
    """Unicode names of what an ISO 15924 code means; none where that is no script of Unicode."""
    name = unicodedata.script_name(code, "")
    return _SEVERAL.get(code) or ((name,) if name else ())


def direction(script: str) -> Literal["left to right", "right to left"]:
    """How a script of Unicode is written, where that is in lines."""
    code = unicodedata.script_code(script, "")
    return "right to left" if unicodedata.script_horizontal_direction(code, "LTR") == "RTL" else "left to right"


@functools.cache
def _own(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    named = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[{_LETTER}&&[{named}]]", regex.V1)
