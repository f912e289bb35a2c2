"""How likely a policy holds given texts, by a head in float32 whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lsemrl.modules.policy import Policy
from lsemrl.types import Sequences

CHUNK = 1024
"""Tokens whose distributions over the vocabulary are held at once."""


def nll_of(policy: Policy, sequences: Sequences) -> Tensor:
    """Negative log-likelihoods of completions, float32 [N, T], in nats; padding holds 0.

    Logits that a head in bfloat16 has rounded would add their rounding to every drift, and tie choices that differ.
    """
    mask_NT = sequences.completion_mask_NT
    with policy.inference():
        logits, targets_M = policy.predictions(sequences), sequences.completion_ids_NT[mask_NT]
        cuts = [slice(at, at + CHUNK) for at in range(0, len(targets_M), CHUNK)]
        nll_M = torch.cat([cross_entropy(logits(cut), targets_M[cut], reduction="none") for cut in cuts])
    return torch.zeros(mask_NT.shape, device=mask_NT.device).masked_scatter(mask_NT, nll_M)
