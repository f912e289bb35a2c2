"""Advantages against numbers worked out by hand, and the ways they are known to go wrong elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsemrl.rewards.advantages import AdvantageSettings, Scale, group_advantages, validate_group
from lsemrl.types import UserError

NAN = math.nan
SCALES: tuple[Scale, ...] = ("group", "batch", "none")


def advantages(
    rewards: list[list[float]],
    scale_rewards: Scale = "group",
    resolution: float = 1e-3,
    leave_one_out: bool = False,
    clip: float | None = None,
) -> Tensor:
    how = AdvantageSettings(scale_rewards=scale_rewards, resolution=resolution, leave_one_out=leave_one_out, clip=clip)
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), how)[0]


def close(actual: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


# Two groups of two. Means 0.5 and 2. Centred -0.5 0.5 and -1 1.
PAIRS = [[0.0, 1.0], [1.0, 3.0]]


def test_group_scale_by_hand() -> None:
    # Unbiased deviations: sqrt((.25 + .25) / 1) = sqrt(.5), sqrt((1 + 1) / 1) = sqrt(2); each plus 1e-4.
    first, second = 0.5 / (math.sqrt(0.5) + 1e-4), 1.0 / (math.sqrt(2.0) + 1e-4)
    assert first == pytest.approx(0.7070068)
    close(advantages(PAIRS, "group"), [[-first, first], [-second, second]])


def test_batch_scale_by_hand() -> None:
    # All four: mean 1.25, squared distances 1.5625 .0625 .0625 3.0625 = 4.75, over 3 = 1.58333.
    std = math.sqrt(4.75 / 3) + 1e-4
    close(advantages(PAIRS, "batch"), [[-0.5 / std, 0.5 / std], [-1 / std, 1 / std]])


def test_no_scale_by_hand() -> None:
    close(advantages(PAIRS, "none"), [[-0.5, 0.5], [-1.0, 1.0]])


def test_leave_one_out_by_hand() -> None:
    # 0 - (3 + 6) / 2, 3 - (0 + 6) / 2, 6 - (0 + 3) / 2
    close(advantages([[0.0, 3.0, 6.0]], "none", leave_one_out=True), [[-4.5, 0.0, 4.5]])


def test_clip_comes_last() -> None:
    # Unclipped -4.5 0 4.5; had the rewards been clipped to [-2, 2] instead, the middle would not be 0.
    close(advantages([[0.0, 3.0, 6.0]], "none", leave_one_out=True, clip=2.0), [[-2.0, 0.0, 2.0]])


@pytest.mark.parametrize("scale", SCALES)
def test_a_near_tie_teaches_nothing(scale: Scale) -> None:
    """Field note 12: dividing a gap of 1e-5 by its own deviation gave verl .62."""
    gap = 5e-6 / (1e-5 / math.sqrt(2) + 1e-6)
    assert gap == pytest.approx(0.62, abs=0.01)  # what its formula makes of this group
    rewards = [[0.5, 0.5 + 1e-5], [0.0, 1.0]]
    result, metrics = group_advantages(torch.tensor(rewards), AdvantageSettings(scale_rewards=scale))
    assert result[0].tolist() == [0.0, 0.0]
    assert result[1].abs().min() > 0.4
    assert metrics["frac_reward_near_tie"] == 0.5
    assert metrics["frac_reward_zero_std"] == 0.0


def test_a_coarse_reward_may_say_so() -> None:
    assert advantages([[0.0, 0.2]], resolution=0.25).tolist() == [[0.0, 0.0]]
    assert advantages([[0.0, 0.2]], resolution=0.15).abs().min() > 0.5


def test_resolution_zero_is_plain_grpo() -> None:
    # The deviation of the gap, 1e-5 / sqrt(2), is drowned by the 1e-4 added to it: 5e-6 / 1.0707e-4.
    close(advantages([[0.5, 0.5 + 1e-5]], resolution=0.0), [[-0.0466980, 0.0466980]])


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0, -3.3])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("resolution", [0.0, 1e-3])
def test_equal_rewards_give_exactly_zero_whatever_their_mean(value: float, scale: Scale, resolution: float) -> None:
    """Field note 14: a group is dead by its spread, not by its mean; and .1 summed seven times is not .7."""
    rewards = torch.tensor([[value] * 7, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.5]])
    result, metrics = group_advantages(rewards, AdvantageSettings(scale_rewards=scale, resolution=resolution))
    assert result[0].tolist() == [0.0] * 7
    assert metrics["frac_reward_zero_std"] == 0.5


def test_a_group_of_mean_zero_or_one_half_is_alive() -> None:
    assert advantages([[-1.0, 1.0], [0.0, 1.0]]).abs().min() > 0.5


def test_metrics_by_hand() -> None:
    # Spreads 0, 5e-4, 2, 4. Unscaled advantages 0 0, 0 0 (near-tie), -1 1, -2 2: mean |A| = 6 / 8.
    rewards = torch.tensor([[0.3, 0.3], [0.1, 0.1005], [0.0, 2.0], [0.0, 4.0]])
    _, metrics = group_advantages(rewards, AdvantageSettings(scale_rewards="none"))
    assert metrics["frac_reward_zero_std"] == 0.25
    assert metrics["frac_reward_near_tie"] == 0.5
    assert metrics["advantages/mean_abs"] == pytest.approx(0.75)


@pytest.mark.parametrize("scale", SCALES)
def test_a_completion_without_reward_is_not_there(scale: Scale) -> None:
    with_gap = advantages([[0.0, NAN, 1.0, 2.0]], scale)
    without = advantages([[0.0, 1.0, 2.0]], scale)
    assert with_gap[0, 1] == 0.0
    torch.testing.assert_close(with_gap[:, [0, 2, 3]], without)


def test_a_completion_without_reward_is_nobody_s_sibling() -> None:
    # Siblings of 0 are 3 and 6 alone.
    close(advantages([[0.0, NAN, 3.0, 6.0]], "none", leave_one_out=True), [[-4.5, 0.0, 0.0, 4.5]])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("group", [[NAN, NAN, NAN], [NAN, 5.0, NAN]])
def test_fewer_than_two_rewards_compare_nothing(scale: Scale, group: list[float]) -> None:
    result, metrics = group_advantages(torch.tensor([group]), AdvantageSettings(scale_rewards=scale))
    assert result.tolist() == [[0.0, 0.0, 0.0]]
    assert (metrics["frac_reward_zero_std"], metrics["frac_reward_near_tie"]) == (0.0, 1.0)


@pytest.mark.parametrize("value", [-0.5, 0.5])
def test_a_gap_hides_no_tie(value: float) -> None:
    result, metrics = group_advantages(torch.tensor([[value, NAN, value]]), AdvantageSettings())
    assert result.tolist() == [[0.0, 0.0, 0.0]]
    assert metrics["frac_reward_zero_std"] == metrics["frac_reward_near_tie"] == 1.0


def test_one_silent_group_leaves_the_others_alone() -> None:
    alone = advantages(PAIRS, "batch")
    torch.testing.assert_close(advantages([*PAIRS, [NAN, NAN]], "batch")[:2], alone)


def test_an_infinite_reward_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="infinite"):
        advantages([[0.0, math.inf]])


def test_leave_one_out_alone_is_bounded_by_the_spread() -> None:
    """Field note 13: 1 among 63 times 0 is 1 above its siblings; over the deviation, 1 / 8, that would be 8."""
    rewards = [[1.0] + [0.0] * 63]
    assert advantages(rewards, "none", leave_one_out=True).abs().max() == pytest.approx(1.0)
    assert torch.tensor(rewards).std() == pytest.approx(1 / 8)


# Differences of at least .01 keep a group's spread on one side of the resolution.
reward = st.one_of(st.integers(-200, 200).map(lambda hundredths: hundredths / 100), st.just(NAN))
batch = st.integers(2, 5).flatmap(
    lambda size: st.lists(st.lists(reward, min_size=size, max_size=size), min_size=1, max_size=4)
)


@settings(deadline=None)
@given(rewards=batch, scale=st.sampled_from(SCALES), loo=st.booleans(), data=st.data())
def test_sibling_order_does_not_matter(
    rewards: list[list[float]], scale: Scale, loo: bool, data: st.DataObject
) -> None:
    scale = "none" if loo else scale
    order = data.draw(st.permutations(range(len(rewards[0]))))
    shuffled = advantages([[group[i] for i in order] for group in rewards], scale, leave_one_out=loo)
    torch.testing.assert_close(shuffled, advantages(rewards, scale, leave_one_out=loo)[:, order])


@settings(deadline=None)
@given(rewards=batch, scale=st.sampled_from(SCALES), shift=st.integers(-5, 5))
def test_a_constant_added_to_every_reward_changes_nothing(rewards: list[list[float]], scale: Scale, shift: int) -> None:
    moved = advantages([[value + shift for value in group] for group in rewards], scale)
    torch.testing.assert_close(moved, advantages(rewards, scale), rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(rewards=batch, scale=st.sampled_from(SCALES))
def test_advantages_of_a_group_sum_to_zero_and_follow_the_rewards(rewards: list[list[float]], scale: Scale) -> None:
    result = advantages(rewards, scale)
    assert result.isfinite().all()
    torch.testing.assert_close(result.sum(dim=1), torch.zeros(len(rewards), dtype=torch.float64), rtol=0, atol=1e-6)
    for group, row in zip(rewards, result.tolist(), strict=True):
        scored = sorted((value, advantage) for value, advantage in zip(group, row, strict=True) if value == value)
        assert [advantage for _, advantage in scored] == sorted(advantage for _, advantage in scored)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"leave_one_out": True}, "leave_one_out .*'group'.*scale_rewards to 'none'"),
        ({"leave_one_out": True, "scale_rewards": "batch"}, "leave_one_out .*'batch'"),
        ({"resolution": -0.1}, "resolution is -0.1: set it to 0 or more"),
        ({"resolution": NAN}, "resolution is nan"),
        ({"clip": 0.0}, "clip is 0.0: set it above 0"),
        ({"clip": NAN}, "clip is nan"),
        ({"scale_rewards": "std"}, "scale_rewards is 'std': choose one of group, batch, none"),
    ],
)
def test_bad_settings_give_one_sentence(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        AdvantageSettings(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_is_refused(scale: Scale) -> None:
    how = AdvantageSettings(scale_rewards=scale)
    with pytest.raises(UserError, match=rf"num_generations is 1: set it to 2 or more.*'{scale}'") as error:
        validate_group(1, how)
    assert "\n" not in str(error.value)
    validate_group(2, how)


def test_a_group_of_one_is_refused_under_leave_one_out() -> None:
    how = AdvantageSettings(scale_rewards="none", leave_one_out=True)
    with pytest.raises(UserError, match=r"num_generations is 1.*leave_one_out"):
        validate_group(1, how)
    validate_group(2, how)


@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("unit", [1e10, 1e30, 3e38])
def test_large_rewards_teach_what_small_ones_do(scale: Scale, unit: float) -> None:
    """In float32 the square of 1e20 is infinite, and an advantage over an infinite deviation is zero."""
    small_BG = torch.tensor([[0.0, 1.0, 0.5, 0.25], [1.0, 0.0, 0.0, 0.0]])
    large_BG, _ = group_advantages(small_BG * unit, AdvantageSettings(scale_rewards=scale))
    expected_BG, _ = group_advantages(small_BG, AdvantageSettings(scale_rewards=scale))
    torch.testing.assert_close(large_BG, expected_BG, rtol=1e-3, atol=0)


def test_a_spread_of_just_the_resolution_is_a_tie() -> None:
    advantages_BG, metrics = group_advantages(torch.tensor([[0.0, 0.25]]), AdvantageSettings(resolution=0.25))
    assert advantages_BG.tolist() == [[0, 0]] and metrics["frac_reward_near_tie"] == 1
    _, metrics = group_advantages(torch.full((1, 3), 0.1), AdvantageSettings(resolution=0.0))
    assert metrics["frac_reward_near_tie"] == 1
