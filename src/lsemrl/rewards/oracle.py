"""What the oracle of the embedded world makes of an output, as a part of the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lsemrl.micro.oracle import foreign, meaning, parse
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion, Example, UserError


class OracleMeaning(Reward):
    """F1 over filled slots, in [0, 1], against the first reference; NaN where that is none of the embedded world.

    With its default weight of 0 it only watches: what the reward gains and this does not is reward hacking.
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__(weight)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Score each completion: float32 [N]."""
        return torch.tensor([_f1(completion.text, completion.example.reference) for completion in completions])

    def look_at(self, examples: Sequence[Example]) -> str:
        """Rows that the oracle cannot read."""
        unread = foreign([example.reference for example in examples if example.references])
        if unread and self.decides:
            raise UserError(f"OracleMeaning is among the rewards, but {unread}; leave it out, or set its weight to 0")
        return f"OracleMeaning is left out where it cannot be had: {unread}" if unread else ""


def _f1(output: str, reference: str) -> float:
    return meaning(output, reference).f1 if parse(reference).whole else math.nan
