"""A batch of rollouts in several optimizer steps: which rows each takes, and what is logged of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lsemrl.modules.losses import LossSettings, WindowCounts


def active_rows(window: Tensor, mask_NT: Tensor) -> Tensor:
    """The rows of a window that have an active token.

    A rank with nothing to learn from still logs what the others log, of one row that weighs nothing.
    """
    active = window[mask_NT[window].any(dim=1)]
    return active if len(active) else window[:1]


def over_windows(
    windows: Sequence[tuple[Mapping[str, Tensor], WindowCounts]], settings: LossSettings
) -> dict[str, Tensor]:
    """Metrics of several windows as if they were one, each weighted by as much as it is a mean over.

    Args:
        windows: Of each its loss, the metrics of `packed_policy_loss` and others, which are of a step and weigh alike;
            and its counts.
        settings: As there.

    Returns:
        What is a mean over tokens or rows is NaN where no window has an active token: nothing was measured.
    """
    tokens = [counts.tokens for _, counts in windows]
    # Among others a window without an active token is so many rows that add nothing, as in `token_weights`.
    rows = [counts.rows if any(tokens) else 0 for _, counts in windows]
    clipped = rows if settings.importance_sampling_level == "sequence" else tokens
    weights = {
        "loss": tokens if settings.loss_type in ("dapo", "bnpo") else rows,
        "kl": tokens,
        "entropy": tokens,
        **dict.fromkeys(("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"), clipped),
    }

    def mean(name: str) -> Tensor:
        values_W = torch.stack([metrics[name] for metrics, _ in windows])
        weights_W = torch.tensor(weights.get(name, [1] * len(windows)), device=values_W.device)
        return (values_W * weights_W).sum() / weights_W.sum()

    return {name: mean(name) for name in windows[0][0]}
