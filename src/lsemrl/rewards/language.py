"""Whether a completion is written in the language asked for, by its script and by what tells it from others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsemrl import languages
from lsemrl.languages import MOST, UNDECIDED, Language, passing
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion, Example, UserError

_DOUBTFUL = 0.02
"""Share of sources that pass, or of references that do not, above which a rule is doubtful."""


class LanguageConsistency(Reward):
    """R_lang of the paper (arXiv 2605.14366): 1 where enough letters are of the language's scripts, else 0.

    Where the profile names an identifier, a completion that passes by script gets what that makes of it instead: how
    much of it is in the language, in [0, 1], passing above 0.5, and 0.5 where it cannot tell, as of a name. As a gate
    the part is open above 0.5, so that what cannot be told opens none.

    A completion cut at the length limit is judged by what is there. Digits, punctuation and symbols are neutral; an
    empty text, or one without a letter, gets 0; U+FFFD and mathematical letters (𝐚) count as foreign.

    Args:
        weight: 1.0 in the paper.
        language: A tag such as bo or pcm, or a profile.
        threshold: The share of letters from which on a text passes by script, in (0, 1]; the profile's if None.

    Raises:
        UserError: Unknown language, or a threshold out of range.
    """

    reads_references = False

    def __init__(self, weight: float = 1.0, language: str | Language = "bo", threshold: float | None = None) -> None:
        super().__init__(weight)
        self.language = languages.language(language)
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(
                f"threshold is {threshold} in LanguageConsistency: set it above 0 and at most 1, or to null"
            )
        self.threshold = threshold
        self._undecided = 0

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]; each 0 or 1 without an identifier."""
        verdicts = self.language.verdicts([completion.text for completion in completions], self.threshold)
        self._undecided += verdicts.count(UNDECIDED)
        return torch.tensor(verdicts, dtype=torch.float32)

    def opens(self, scores_N: Tensor) -> Tensor:
        """Where a text passes, and where the part failed."""
        return scores_N.isnan() | (scores_N > UNDECIDED)

    def look_at(self, examples: Sequence[Example]) -> str:
        """By which rule completions are judged, and what it makes of sources and references.

        Raises:
            UserError: Untranslated sources pass, although they are in another language; or references do not.
        """
        references, sources, found = passing(self.language, examples, self.threshold)
        rule = f"({self.language}; {found})"
        if sources >= MOST and self.decides:
            if references < MOST:
                raise UserError(
                    f"rewards: LanguageConsistency goes by the language of the sources {rule}, so that copies would "
                    "earn what right answers should; name the language of the references, such as language: pcm"
                )
            raise UserError(
                f"rewards: LanguageConsistency cannot tell an untranslated source {rule}, so that copying would be "
                "rewarded; if it is in another language, fit an identifier (lsemrl fit-language) and name it, such as "
                f"language: {{code: {self.language.code}, identifier: runs/language}}, or set the weight of the part "
                "to 0"
            )
        if references < MOST and self.decides:
            raise UserError(
                f"rewards: LanguageConsistency would pay nothing for most right answers {rule}; name the language of "
                "the references, such as language: pcm, or set the weight of the part to 0"
            )
        doubt = "; a copy may earn it" if sources > _DOUBTFUL else ""
        doubt += "; right answers that do not pass earn less" if references < 1 - _DOUBTFUL else ""
        return f"{self.language}; {found}{doubt}" if found else f"{self.language}"

    @property
    def counters(self) -> dict[str, float]:
        """`undecided`: completions of which the identifier could not tell."""
        return {"undecided": float(self._undecided)} if self.language.identifier else {}

    def state(self) -> dict[str, Any]:
        """The counter."""
        return {"undecided": self._undecided}

    def resume(self, state: dict[str, Any]) -> None:
        """Count on; a run from before there was a counter begins at nothing."""
        self._undecided = state.get("undecided", 0)
