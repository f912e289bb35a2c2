"""Profiles of languages: the scripts one is written in, and what its texts are told and compared by.

A language is named by its tag of BCP 47. Names are CLDR's, and the script is the one that CLDR's likely subtags give
(langcodes); whatever a profile says stands before both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lsemrl import scripts as unicode_scripts
from lsemrl.canonical import canonical
from lsemrl.errors import UserError
from lsemrl.identification.read import read_identifier
from lsemrl.scripts import Unit

if TYPE_CHECKING:
    import langcodes

    from lsemrl.identification.base import Identifier
    from lsemrl.types import Example

UNDECIDED = 0.5
"""The verdict on a text that could be of either language; above it a text passes."""
MOST = 0.5
"""Share of texts that pass: where as many untranslated sources do, or fewer references, a rule is none."""
_SHOWN = 500
_SCRIPTS = {"mn": ("Cyrillic", "Mongolian"), "kk": ("Cyrillic", "Arabic")}
"""Of languages in two scripts, where a tag names none of them. Kazakh in Latin letters is left out: English and pinyin
would pass for Kazakh."""
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")


@dataclass(frozen=True, kw_only=True)
class Language:
    """How to tell a language by its script and how to cut its texts up.

    What is left out is that of the language of the code, and always there once a profile is made.

    Raises:
        UserError: A script that Unicode does not know, a threshold out of range, or a field left out although nothing
            is known of the code.
    """

    code: str
    """ISO 639, or a tag of BCP 47 such as pcm, kk-Cyrl, mn-Mong or zh-Hant."""
    name: str = ""
    """In English."""
    scripts: tuple[str, ...] = ()
    """The scripts it is written in, by Unicode's names or codes of ISO 15924; letters of any count as its own."""
    threshold: float | None = None
    """The share of letters in (0, 1] from which on a text passes for the language; 0.8, and 0.5 in Han. Ours: the
    paper gives none."""
    unit: Unit | None = None
    """What `units` gives for this language, by its first script; the tokenizer's name in the signature of a score."""
    identifier: str | None = None
    """What tells it from languages in its script: a folder of `lsemrl fit-language`, or a model of fastText (.bin,
    .ftz), such as GlotLID. null judges by script alone."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UserError(f"language.threshold is {self.threshold}; give a share above 0 and at most 1")
        self._fill("name", self.name or name_in(self.code, "en"))
        scripts = self.scripts or _scripts(self.code)
        for script in scripts:
            if not unicode_scripts.named(script):
                raise UserError(
                    f"language.scripts has {script!r}, which is no script of Unicode; give names such as Latin, Arabic "
                    "or Khmer"
                )
        # By one name each, for threshold and unit go by it.
        self._fill("scripts", tuple(map(unicode_scripts.named, scripts)))
        # Real Tibetan titles are Tibetan to the last letter but for one in 150, and 49 of 50 articles above .88;
        # Chinese prose carries foreign names in Latin letters, one article in a hundred below .60.
        self._fill("threshold", self.threshold or (0.5 if self.scripts[0] == "Han" else 0.8))
        unit = unicode_scripts.unit_of(self.scripts[0])
        if self.unit not in (None, unit):
            raise UserError(
                f"language.unit is {self.unit!r}, but texts in {self.scripts[0]} letters are cut into {unit}s; leave "
                "it out"
            )
        self._fill("unit", unit)
        self._identifier()  # read now, so that one that cannot be is told before weights are

    def _identifier(self) -> Identifier | None:
        return read_identifier(self.identifier, self.code, is_same) if self.identifier else None

    def _fill(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    @property
    def own_name(self) -> str:
        """What its speakers call it; the English name where CLDR knows no other."""
        tag = _parsed(self.code)
        return self.name if tag is None else str(tag.autonym())

    @property
    def direction(self) -> Literal["left to right", "right to left"]:
        """How its first script is written."""
        return unicode_scripts.direction(self.scripts[0])

    def share(self, text: str) -> float | None:
        """The share of letters in the language's scripts, in [0, 1], or None if `text` has no letter.

        Canonically equivalent texts (NFC, NFD) have equal shares.
        """
        text = canonical(text)
        letters = unicode_scripts.letters(text)
        return unicode_scripts.letters_of(self.scripts, text) / letters if letters else None

    def accepts(self, text: str, threshold: float | None = None) -> bool:
        """Whether a text passes: see `verdicts`."""
        return self.verdicts([text], threshold)[0] > UNDECIDED

    def verdicts(self, texts: Sequence[str], threshold: float | None = None) -> list[float]:
        """How far texts are in the language.

        Args:
            texts: Any.
            threshold: The share of own letters, the profile's if None.

        Returns:
            In [0, 1], passing above `UNDECIDED`. By script 1 where the share of own letters is at least `threshold`,
            else 0, also without a letter. With an identifier, of those that pass by script, the share that it finds in
            the language, scaled so that its threshold is at `UNDECIDED`; that itself where it cannot tell.
        """
        least = self.threshold if threshold is None else threshold
        assert least is not None
        by_script = [(share := self.share(text)) is not None and share >= least for text in texts]
        identifier = self._identifier()
        if identifier is None:
            return [float(passes) for passes in by_script]
        shares = iter(identifier.shares([text for text, passes in zip(texts, by_script, strict=True) if passes]))
        return [_scaled(next(shares), identifier.threshold) if passes else 0.0 for passes in by_script]

    @property
    def rule(self) -> str:
        """By what a text passes, for signatures."""
        identifier = self._identifier()
        by = f"script:{'+'.join(self.scripts)}|tok:letter|threshold:{self.threshold}"
        if identifier is None:
            return by
        return f"{by}|identifier:{identifier.name}|threshold:{identifier.threshold:.3f}|undecided:{UNDECIDED}"

    @property
    def identity(self) -> str | None:
        """A hash of what its identifier judges by, wherever that lies; None without one."""
        identifier = self._identifier()
        return None if identifier is None else identifier.identity

    def __str__(self) -> str:
        identifier = self._identifier()
        told = f"{' and '.join(self.scripts)} letters from a share of {self.threshold} on"
        if identifier is None:
            return f"{self.name} is told by {told}"
        return f"{self.name} is told by {told}, and by {identifier.name} from a share of {identifier.threshold:.2f} on"


def passing(
    language: Language, examples: Sequence[Example], threshold: float | None = None
) -> tuple[float, float, str]:
    """What the rule of a language makes of references and of untranslated sources.

    Args:
        language: That of the references.
        examples: Of which some are looked at, where they are many.
        threshold: As in `Language.verdicts`.

    Returns:
        The shares of both that pass, NaN of none, and what is to be said of them.
    """
    some = examples[:: max(len(examples) // _SHOWN, 1)]
    references = [example.reference for example in some if example.references]
    sources = [example.source for example in some if example.pair]
    shares = [
        sum(verdict > UNDECIDED for verdict in language.verdicts(texts, threshold)) / len(texts) if texts else math.nan
        for texts in (references, sources)
    ]
    of_references = f"{shares[0]:.1%} of {len(references):,} references pass" if references else ""
    whose = "their" if all(bool(each.references) == bool(each.pair) for each in some) else f"{len(sources):,}"
    of_sources = f"{shares[1]:.1%} of {whose} sources{'' if references else ' pass'}" if sources else ""
    return shares[0], shares[1], ", and ".join(filter(None, (of_references, of_sources)))


def _scaled(share: float | None, threshold: float) -> float:
    if share is None:
        return UNDECIDED
    if share < threshold:
        return UNDECIDED * share / threshold
    # The share that just passes is above the line.
    return max(UNDECIDED + (1 - UNDECIDED) * (share - threshold) / max(1 - threshold, 1e-9), UNDECIDED + 1e-6)


def language(named: str | Language) -> Language:
    """The profile of a tag; a profile of the user's own as it is.

    Raises:
        UserError: It is no tag of a language, or one whose script CLDR does not know.
    """
    return named if isinstance(named, Language) else _of_tag(named)


def usual_profile(code: str) -> Language | None:
    """The profile of a tag; None where nothing is known of it."""
    try:
        return language(code)
    except UserError:
        return None


def is_language(code: str) -> bool:
    """Whether `code` is a tag whose language is registered."""
    return _parsed(code) is not None


def is_same(code: str, other: str) -> bool:
    """Whether two tags are of one language (zho_Hans and zh, khk and mn), in one script and region if both name it."""
    one, two = _parsed(code), _parsed(other)
    if one is None or two is None:
        return False
    apart = any(
        own and other and own != other for own, other in ((one.script, two.script), (one.territory, two.territory))
    )
    return not apart and one.prefer_macrolanguage().language == two.prefer_macrolanguage().language


def is_name(name: str, code: str) -> bool:
    """Whether the language of a tag is called `name`, in English or by its speakers."""
    tag = _parsed(code)
    names = (tag.display_name("en"), tag.autonym()) if tag else ()
    return canonical(name).casefold() in (canonical(own).casefold() for own in names)


def meant(name: str) -> str:
    """A remark on the code of a language that is called `name`; "" where none is."""
    import langcodes

    try:
        return f" (that of {name} is {langcodes.find(name)})"
    except LookupError:
        return ""


def name_in(code: str, spoken: str) -> str:
    """What a language is called in another one; the code where it has no name there."""
    tag = _parsed(code)
    return code if tag is None else str(tag.display_name(spoken))


@functools.cache
def _of_tag(code: str) -> Language:
    tag = _parsed(code)
    if tag is None:
        raise UserError(
            f"language is {code!r}, which is no code of a language{meant(code)}; give one of ISO 639 or a tag of BCP "
            "47, such as pcm, kk-Cyrl or zh-Hant, or write its profile, such as {code: xx, name: Own, scripts: [Latin]}"
        )
    return Language(code=tag.to_tag())


@functools.cache
def _parsed(code: str) -> langcodes.Language | None:
    import langcodes

    try:
        tag = langcodes.Language.get(code)
    except ValueError:
        return None
    known = tag.is_valid() and tag.language and tag.language not in _NO_LANGUAGE
    return tag if known and not tag.language_name("en").startswith("Unknown") else None


def _scripts(code: str) -> tuple[str, ...]:
    """The Unicode names of what a language is usually written in."""
    tag = _parsed(code)
    if tag is not None and not tag.script and not tag.territory and tag.language in _SCRIPTS:
        return _SCRIPTS[tag.language]
    found = unicode_scripts.scripts_of_code(_usual_script(tag)) if tag else ()
    if not found:
        remedy = f"write the script into the tag, such as {code}-Latn, or give" if tag else "give"
        raise UserError(
            f"language is {code!r}, and which script it is written in is not known; {remedy} "
            f"{{code: {code}, scripts: [Latin]}} with the names that Unicode has for its scripts"
        )
    return found


def _usual_script(tag: langcodes.Language) -> str:
    """The code of the tag's own script, or of the likeliest; "" where CLDR knows none."""
    from langcodes.data_dicts import LIKELY_SUBTAGS

    if tag.script:
        return tag.script
    wider = tag.prefer_macrolanguage()
    # For a language that it does not list, langcodes answers as for an unknown one: Latin letters in the US.
    known = next((each for each in (tag, wider) if each.language in LIKELY_SUBTAGS), None)
    return (known.maximize().script or "") if known else ""
