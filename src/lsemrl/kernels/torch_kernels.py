"""The passes over a chunk of logits in plain torch, for every device; `dispatch.Kernels` says what they compute.

They pass over it several times and keep a float32 copy, so chunks should be small: see `head.default_chunk_tokens`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -200.0


def sum_rows(logits_CV: Tensor, targets_C: Tensor, inverse_temperature: float, sums_4C: Tensor) -> Tensor:
    """See `dispatch.Kernels`. Keeps exp(z), which costs more than all the rest together."""
    top_C, at_target_C, others_C, weighted_C = sums_4C
    targets_C1 = targets_C[:, None]
    top_C1 = logits_CV.amax(dim=1, keepdim=True).float()
    z_CV = logits_CV.float().sub_(top_C1).mul_(inverse_temperature)
    top_C.copy_(top_C1[:, 0])
    at_target_C.copy_(z_CV.gather(1, targets_C1)[:, 0])
    exp_CV = z_CV.clamp_(min=LOWEST).exp().scatter_(1, targets_C1, 0.0)
    others_C.copy_(exp_CV.sum(dim=1))
    weighted_C.copy_(z_CV.mul_(exp_CV).sum(dim=1))
    return exp_CV


def make_gradient(
    kept_CV: Tensor, targets_C: Tensor, inverse_temperature: float, terms_3C: Tensor, dtype: torch.dtype
) -> Tensor:
    """See `dispatch.Kernels`."""
    _, factor_C1, at_target_C1 = terms_3C[:, :, None]
    return kept_CV.mul_(factor_C1).scatter_(1, targets_C[:, None], at_target_C1).to(dtype)
