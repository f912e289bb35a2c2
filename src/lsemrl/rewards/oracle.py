"""What the oracle of the embedded world makes of an output, as a part of the reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsemrl.micro.oracle import meaning
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion


class OracleMeaning(Reward):
    """F1 over filled slots, in [0, 1], against the first reference.

    With its default weight of 0 it only watches: what the reward gains and this does not is reward hacking.
    """

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__(weight)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Score each completion: float32 [N]."""
        return torch.tensor([meaning(completion.text, completion.example.reference).f1 for completion in completions])
