"""Rewards by overlap with the reference wording, for the paper's ablations; sentence level, as sacrebleu defines them.

Both lie in [0, 1] and take every reference of the example. A text is scored as it stands, whether or not it ended;
U+FFFD matches nothing, and an empty text gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsemrl import languages
from lsemrl.canonical import canonical
from lsemrl.languages import Language
from lsemrl.rewards.base import Reward
from lsemrl.scripts import splits, units
from lsemrl.types import Completion


class Bleu(Reward):
    """Sentence BLEU-4 over the units of the language, smoothed as sacreBLEU does where an order has no match.

    Orders for which an output is too short are left out (effective order).

    NaN, and counted as `unsplit`, where no reference can be cut into units, for BLEU would be 0 whatever is said.

    Args:
        weight: What it counts in the mix.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: Unknown language.
    """

    def __init__(self, weight: float = 1.0, language: str | Language = "bo") -> None:
        super().__init__(weight)
        from sacrebleu.metrics.bleu import BLEU

        self.language = languages.language(language)
        self._bleu = BLEU(tokenize="none", effective_order=True)
        self._unsplit = 0

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]."""
        return torch.tensor([self._score(completion) for completion in completions], dtype=torch.float32)

    @property
    def counters(self) -> dict[str, float]:
        """`unsplit`: completions whose references could not be cut into units."""
        return {"unsplit": float(self._unsplit)}

    def state(self) -> dict[str, Any]:
        """The counter."""
        return {"unsplit": self._unsplit}

    def resume(self, state: dict[str, Any]) -> None:
        """Count on."""
        self._unsplit = state["unsplit"]

    def _score(self, completion: Completion) -> float:
        whole = [text for text in completion.example.references if splits(text)]
        references = [" ".join(cut) for text in whole if (cut := units(text))]  # an emoji has none
        if not references:
            self._unsplit += 1
            return math.nan
        output = " ".join(units(completion.text))
        return self._bleu.sentence_score(output, references).score / 100


class Chrf(Reward):
    """Sentence chrF2: F2 over character 1- to 6-grams, spaces left out. It needs no tokenizer.

    Args:
        weight: What it counts in the mix.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        from sacrebleu.metrics.chrf import CHRF

        self._chrf = CHRF()

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]."""
        return torch.tensor([self._score(completion) for completion in completions], dtype=torch.float32)

    def _score(self, completion: Completion) -> float:
        output, *references = map(canonical, (completion.text, *completion.example.references))
        score: float = self._chrf.sentence_score(output, references).score
        return score / 100
