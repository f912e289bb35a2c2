"""Whether a completion is written in the language asked for, by its script."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsemrl import languages
from lsemrl.languages import Language
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion, UserError


class LanguageConsistency(Reward):
    """R_lang of the paper (arXiv 2605.14366): 1 where enough letters are of the language's scripts, else 0.

    Only the script is judged, so a completion cut at the length limit is judged by what is there. Digits, punctuation
    and symbols are neutral; an empty text, or one without a letter, gets 0; U+FFFD counts as a foreign letter.

    Args:
        weight: 1.0 in the paper.
        language: A code of `lsemrl.languages`, or a profile.
        threshold: The share of letters from which on a text passes, in (0, 1]; the language profile's if None.

    Raises:
        UserError: Unknown language, or a threshold out of range.
    """

    def __init__(self, weight: float = 1.0, language: str | Language = "bo", threshold: float | None = None) -> None:
        super().__init__(weight)
        self.language = languages.language(language)
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(
                f"threshold is {threshold} in LanguageConsistency: set it above 0 and at most 1, or to null"
            )
        self.threshold = threshold

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N], each 0 or 1."""
        return torch.tensor(
            [self.language.accepts(completion.text, self.threshold) for completion in completions], dtype=torch.float32
        )
