"""What the kernels compute, written down with whole matrices: their tests and benchmarks hold them against this."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from lsemrl.kernels.fused_policy_loss import LossFn


def token_logprobs(
    hidden_MH: Tensor, weight_VH: Tensor, targets_M: Tensor, *, bias_V: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution.

    The logits are rounded to the weight's dtype, what follows is done in float32, or in float64 for a float64 weight.

    Args:
        hidden_MH: Hidden states, one a token.
        weight_VH: The head.
        targets_M: int64 ids in [0, V).
        bias_V: The head's bias.
        temperature: Divides the logits, > 0.

    Returns:
        The log-probabilities [M], and the entropies [M] in nats, which carry no gradient.
    """
    logits_MV = linear(hidden_MH.to(weight_VH.dtype), weight_VH, bias_V)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)) / temperature
    all_logprobs_MV = logits_MV.log_softmax(dim=1)
    entropy_M = torch.special.entr(all_logprobs_MV.detach().exp()).sum(dim=1)
    return all_logprobs_MV.gather(1, targets_M[:, None])[:, 0], entropy_M


def fused_policy_loss(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    loss_fn: LossFn,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`loss_fn` on all tokens at once, differentiated by autograd."""
    logprobs_M, entropy_M = token_logprobs(hidden_MH, weight_VH, targets_M, bias_V=bias_V, temperature=temperature)
    return loss_fn(slice(0, len(targets_M)), logprobs_M, entropy_M)
