"""Log-probs of completions as a policy says them, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsemrl.modules.gradients import in_step
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy import Policy
from lsemrl.types import Sequences


def score(policy: Policy, whole: Sequences, batches: Sequence[MicroBatch], temperature: float) -> Tensor:
    """Log-probs of completions, without gradients: float32 [N, T], 0 where no batch has them.

    Args:
        policy: As it stands; the reference where that is on.
        whole: The completions.
        batches: Of them.
        temperature: Divides the logits.
    """
    mask_NT = whole.completion_mask_NT
    logprobs_NT = torch.zeros(mask_NT.shape, device=mask_NT.device)
    with policy.inference():
        for batch, counts in in_step(batches, policy, mask_NT.device):
            piece_NT, _ = policy.logprobs(batch.sequences, temperature)
            if counts:
                logprobs_NT[batch.rows, : piece_NT.shape[1]] = piece_NT
    return logprobs_NT
