"""Advantages: how much better than its siblings a completion did (GRPO, arXiv 2402.03300).

Pure functions on tensors. A group is the G completions of one prompt; it teaches only through the differences
between its rewards, so a group whose differences are below what the reward can resolve teaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from lsemrl.types import UserError

Scale = Literal["group", "batch", "none"]

_EPS = 1e-4  # TRL's; the resolution, not this, is what keeps a near-tie from being blown up.


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings:
    """How rewards become advantages.

    Raises:
        UserError: A field is out of range, or two fields contradict each other.
    """

    scale_rewards: Scale = "group"
    """What the centred rewards are divided by: the standard deviation of their group (GRPO), of the whole batch
    (arXiv 2508.08221), or none (Dr. GRPO, arXiv 2503.20783)."""
    resolution: float = 1e-3
    """The smallest difference of rewards that means something: a group whose best and worst reward lie no further
    apart gets zero advantage, where dividing by a tiny deviation would amplify noise. In units of the reward, >= 0."""
    leave_one_out: bool = False
    """Compare each completion with the mean of its siblings instead of the group's (RLOO, arXiv 2402.14740);
    only with scale_rewards none."""
    clip: float | None = None
    """Cut advantages to [-clip, clip], after everything else; > 0, or null."""

    def __post_init__(self) -> None:
        if self.scale_rewards not in get_args(Scale):
            raise UserError(f"scale_rewards is {self.scale_rewards!r}: choose one of {', '.join(get_args(Scale))}")
        if not 0 <= self.resolution < float("inf"):
            raise UserError(f"resolution is {self.resolution}: set it to 0 or more")
        # With one outlier the siblings' mean is far off while the deviation is small: the quotient explodes.
        if self.leave_one_out and self.scale_rewards != "none":
            raise UserError(
                f"leave_one_out is true with scale_rewards {self.scale_rewards!r}: set scale_rewards to 'none', "
                "since dividing a leave-one-out advantage by a standard deviation explodes"
            )
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise UserError(f"clip is {self.clip}: set it above 0, or to null for no clipping")


def validate_group(num_generations: int, settings: AdvantageSettings) -> None:
    """Refuse a group in which nothing can be compared.

    Args:
        num_generations: G.
        settings: What the group will be scaled by.

    Raises:
        UserError: G < 2. Every scaling is refused: without siblings the baseline of a completion is its own reward,
            so even scale_rewards none would train on zeros without a word.
    """
    if num_generations < 2:
        baseline = "leave_one_out" if settings.leave_one_out else f"scale_rewards {settings.scale_rewards!r}"
        raise UserError(
            f"num_generations is {num_generations}: set it to 2 or more, since an advantage ({baseline}) compares "
            "a completion with its siblings"
        )


def group_advantages(rewards_BG: Tensor, settings: AdvantageSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards minus their baseline, scaled; zero wherever there is nothing to learn.

    A = (r - mean of the group) / (std + 1e-4), std unbiased, as in TRL; leave_one_out takes the mean of the siblings.

    Args:
        rewards_BG: float32, or float64 of float32's range, siblings in a row; NaN where no reward applies, never
            infinite. With scale_rewards batch it must hold the rewards of all ranks, as the deviation is that of what
            it holds.
        settings: See there.

    Returns:
        Advantages [B, G] of the same dtype, and metrics, scalars in [0, 1] except the last:
        `frac_reward_zero_std`, the share of groups whose rewards, two or more, are all equal; `frac_reward_near_tie`,
        the share whose rewards are no further apart than the resolution, or fewer than two, so that all their
        advantages are zero; `advantages/mean_abs`, over all completions. A NaN reward counts in no mean and no
        deviation and gets zero advantage.
    """
    assert rewards_BG.ndim == 2 and not rewards_BG.isinf().any(), "rewards are [B, G] and never infinite"
    dtype, rewards_BG = rewards_BG.dtype, rewards_BG.double()  # in float32 the squares of large rewards overflow
    scored_BG = ~rewards_BG.isnan()
    count_B1 = scored_BG.sum(dim=1, keepdim=True)
    sum_B1 = rewards_BG.nansum(dim=1, keepdim=True)
    best_B1 = rewards_BG.masked_fill(~scored_BG, -float("inf")).amax(dim=1, keepdim=True)
    worst_B1 = rewards_BG.masked_fill(~scored_BG, float("inf")).amin(dim=1, keepdim=True)
    # By spread and not by the computed deviation, which rounding keeps from being zero for equal rewards;
    # with nothing scored, best - worst is -inf.
    spread_B1 = (best_B1 - worst_B1).clamp(min=0)
    tied_B1 = spread_B1 <= settings.resolution

    if settings.leave_one_out:
        baseline_BG = (sum_B1 - rewards_BG) / (count_B1 - 1).clamp(min=1)
    else:
        baseline_BG = sum_B1 / count_B1.clamp(min=1)
    advantages_BG = rewards_BG - baseline_BG
    if settings.scale_rewards == "group":
        advantages_BG = advantages_BG / (_std(rewards_BG) + _EPS)
    elif settings.scale_rewards == "batch":
        advantages_BG = advantages_BG / (_std(rewards_BG.reshape(1, -1)) + _EPS)
    advantages_BG = advantages_BG.masked_fill(tied_B1 | ~scored_BG, 0.0)
    if settings.clip is not None:
        advantages_BG = advantages_BG.clamp(-settings.clip, settings.clip)
    return advantages_BG.to(dtype), {
        "frac_reward_zero_std": ((spread_B1 == 0) & (count_B1 > 1)).float().mean(),
        "frac_reward_near_tie": tied_B1.float().mean(),
        "advantages/mean_abs": advantages_BG.abs().float().mean(),
    }


def _std(rewards_BG: Tensor) -> Tensor:
    """The unbiased standard deviation of each row without its NaNs, [B, 1]; 0 where fewer than two are left."""
    count_B1 = (~rewards_BG.isnan()).sum(dim=1, keepdim=True)
    mean_B1 = rewards_BG.nansum(dim=1, keepdim=True) / count_B1.clamp(min=1)
    return (((rewards_BG - mean_B1) ** 2).nansum(dim=1, keepdim=True) / (count_B1 - 1).clamp(min=1)).sqrt()
