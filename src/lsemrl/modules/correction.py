"""The importance correction between the policy that sampled and the one that is trained, as TRL has it for vLLM.

They have the same weights and still not the same log-probs, once numbers are rounded: to bfloat16, in other shapes, or
in merged weights. A completion counts by how likely the trained policy would have been to write it. Ratios know the
temperature, not top-p or top-k, whose renormalised probabilities would drive the weights of whole sequences to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsemrl.modules.losses import Correction, LossSettings
from lsemrl.modules.ranks import every_rank


def importance_weights(
    old_logprobs_NT: Tensor, sampler_logprobs_NT: Tensor, mask_NT: Tensor, mode: Correction, clip_max: float
) -> tuple[Tensor, Tensor]:
    """What the policy term of each token is multiplied by.

    Args:
        old_logprobs_NT: Of the trained policy before the update.
        sampler_logprobs_NT: As they were when tokens were drawn; NaN where unknown, which is not corrected.
        mask_NT: bool, active tokens.
        mode: One ratio a token, or one a sequence, the product of its tokens' ratios; one above `clip_max` is
            truncated to it, or masked, which is 0.
        clip_max: See `mode`; > 0.

    Returns:
        Weights [N, T], and the K ratios of active tokens, or of sequences that have one.
    """
    difference_NT = (old_logprobs_NT - sampler_logprobs_NT).nan_to_num(nan=0.0).masked_fill(~mask_NT, 0.0)
    if mode.startswith("sequence"):
        ratio_NT = difference_NT.sum(dim=1, keepdim=True).exp().expand_as(difference_NT)
    else:
        ratio_NT = difference_NT.exp()
    if mode.endswith("truncate"):
        weights_NT = ratio_NT.clamp(max=clip_max)
    else:
        weights_NT = ratio_NT.masked_fill(ratio_NT > clip_max, 0.0)
    return weights_NT, _counted(ratio_NT, mask_NT, mode)


def correction(
    old_logprobs_NT: Tensor | None, sampler_logprobs_NT: Tensor, mask_NT: Tensor, settings: LossSettings
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """`importance_weights` of this rank's completions, and metrics over those of all ranks, which must ask together.

    Returns:
        Weights [N, T], and `sampling/logp_difference/{mean,max}`, in nats, over tokens; `sampling/capped`, the share of
        ratios above the limit; `sampling/effective_sample_size`, (sum of weights)^2 / (n * sum of their squares), in
        [0, 1]. The last two are over active tokens, or sequences that have one, as the mode has it. Nothing where
        nothing is known of the trained policy.
    """
    if old_logprobs_NT is None:
        return None, {}
    mode, clip_max = settings.importance_sampling_mode, settings.importance_sampling_clip_max
    assert mode is not None
    weights_NT, ratio_K = importance_weights(old_logprobs_NT, sampler_logprobs_NT, mask_NT, mode, clip_max)
    off_K = (old_logprobs_NT - sampler_logprobs_NT)[mask_NT].abs().nan_to_num(nan=0.0)
    # What is left out, like cut completions, is learned nothing from: as a weight of 1 it would hide what was masked.
    weight_K = _counted(weights_NT, mask_NT, mode)
    most = torch.cat([off_K, off_K.new_zeros(1)]).amax()
    sums = off_K.sum(), (ratio_K > clip_max).sum(), weight_K.sum(), weight_K.square().sum()
    own = torch.stack([most, *sums]).tolist(), len(off_K), len(ratio_K)
    numbers, tokens, ratios = zip(*every_rank(own), strict=True)
    mosts, offs, capped, totals, squares = map(torch.tensor, zip(*numbers, strict=True))
    spread = sum(ratios) * squares.sum()
    return weights_NT, {
        "sampling/logp_difference/mean": offs.sum() / max(sum(tokens), 1),
        "sampling/logp_difference/max": mosts.amax(),
        "sampling/capped": capped.sum() / max(sum(ratios), 1),
        "sampling/effective_sample_size": totals.sum() ** 2 / spread if spread else spread,
    }


def _counted(values_NT: Tensor, mask_NT: Tensor, mode: Correction) -> Tensor:
    """Those of the active tokens, or one of each sequence that has such a token."""
    return values_NT[mask_NT.any(dim=1), 0] if mode.startswith("sequence") else values_NT[mask_NT]
