from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lsemrl.modules.alarms import AlarmSettings, Watched, alarms
from lsemrl.modules.rollout_report import reward_metrics
from lsemrl.rewards import LanguageConsistency, Reward, RewardMix
from lsemrl.rewards.base import add_up, concatenate
from lsemrl.types import Completion, Example, UserError

NAN = math.nan


class Given(Reward):
    """Gives what it was given, whatever the completions are."""

    def __init__(self, scores: Sequence[float] | object, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.scores = torch.tensor(scores, dtype=torch.float32) if isinstance(scores, list) else scores

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return self.scores  # type: ignore[return-value]  # what a user's class may do wrong


class Counting(Given):
    seen = 3

    @property
    def counters(self) -> dict[str, float]:
        return {"seen": float(self.seen)}

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def resume(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


EXAMPLE = Example(id="0", prompt="", source="", references=("",))


def completions(count: int) -> list[Completion]:
    return [Completion(text="", ended=True, example=EXAMPLE)] * count


def total(mix: RewardMix, count: int, num_generations: int | None = None) -> list[float]:
    total_N = mix(completions(count), num_generations or count).total_N
    assert total_N.dtype == torch.float32 and total_N.shape == (count,)
    return total_N.tolist()


def test_sum_is_weighted_and_leaves_out_what_does_not_apply() -> None:
    mix = RewardMix({"a": Given([1.0, 0.5, NAN, NAN], weight=1.5), "b": Given([1.0, NAN, 0.25, NAN], weight=2.0)})
    assert total(mix, 4) == pytest.approx([3.5, 0.75, 0.5, NAN], nan_ok=True)


def test_parts_are_kept_apart_and_unweighted() -> None:
    rewards = RewardMix({"a": Given([1.0, NAN], weight=1.5)})(completions(2), 2)
    assert rewards.parts_N["a"].tolist() == pytest.approx([1.0, NAN], nan_ok=True)


@pytest.mark.parametrize("combine", ["sum", "gate", "normalize_then_sum"])
def test_weight_zero_only_watches(combine: str) -> None:
    watched = {"language": Given([1.0, 1.0]), "a": Given([0.2, 0.8])}
    alone, both = (
        RewardMix(parts, combine=combine) for parts in (watched, {**watched, "watch": Given([NAN, 9.0], weight=0.0)})
    )
    assert total(alone, 2) == total(both, 2)
    assert both(completions(2), 2).parts_N["watch"][1] == 9.0
    assert math.isnan(total(RewardMix({"watch": Given([1.0], weight=0.0)}), 1)[0])


@pytest.mark.parametrize(
    ("parts", "combine"),
    [
        ({"a": Given([1.0], weight=0.0)}, "sum"),
        ({"language": Given([1.0]), "a": Given([1.0], weight=0.0)}, "gate"),  # whose weight plays no role
    ],
)
def test_a_run_that_nothing_would_be_paid_in_is_refused(parts: dict[str, Reward], combine: str) -> None:
    with pytest.raises(UserError, match=r"rewards have a weight of 0 throughout \(a\), so that nothing is rewarded"):
        RewardMix(parts, combine=combine).look_at([EXAMPLE])
    RewardMix({**parts, "b": Given([1.0], weight=-1.0)}, combine=combine).look_at([EXAMPLE])


def test_gate_shuts_out_and_its_weight_plays_no_role() -> None:
    parts = {
        "language": Given([1.0, 0.0, 0.99, NAN, 0.0], weight=7.0),
        "a": Given([0.5, 0.5, 0.5, 0.5, NAN], weight=2.0),
    }
    assert total(RewardMix(parts, combine="gate"), 5) == pytest.approx([1.0, 0.0, 0.0, 1.0, NAN], nan_ok=True)


def test_a_language_gate_that_failed_shuts_nothing_out() -> None:
    assert LanguageConsistency().opens(torch.tensor([NAN, 1.0, 0.5, 0.0])).tolist() == [True, True, False, False]


def test_every_one_of_several_gates_must_stand_open() -> None:
    parts = {"x": Given([1.0, 1.0, 0.0]), "y": Given([1.0, 0.0, 1.0]), "a": Given([0.5, 0.5, 0.5])}
    assert total(RewardMix(parts, combine="gate", gate=["x", "y"]), 3) == [0.5, 0.0, 0.0]
    assert total(RewardMix(parts, combine="gate", gate="x"), 3) == [1.5, 0.5, 0.0]
    found = RewardMix(parts, combine="gate", gate=["x", "y"])(completions(3), 3)
    assert found.open_N.tolist() == [True, False, False]  # a total of 0 may be one that was earned
    both = concatenate([found, RewardMix(parts)(completions(3), 3)])
    assert both.open_N.tolist() == [True, False, False, True, True, True]


def test_normalize_then_sum_by_hand() -> None:
    # Groups of two: of 0 and 1 the mean is .5 and the unbiased deviation 1/sqrt(2), so +-.70711 but for the eps.
    parts = {"a": Given([0.0, 1.0, 5.0, 5.0], weight=2.0), "b": Given([10.0, 0.0, NAN, 3.0])}
    unit = 0.5 / (math.sqrt(0.5) + 1e-4)
    ten = 5 / (math.sqrt(50) + 1e-4)
    assert total(RewardMix(parts, combine="normalize_then_sum"), 4, 2) == pytest.approx(
        [-2 * unit + ten, 2 * unit - ten, 0, 0]
    )
    only = RewardMix({"b": Given([NAN, 3.0])}, combine="normalize_then_sum")
    assert total(only, 2) == pytest.approx([NAN, 0.0], nan_ok=True)


def test_near_ties_are_not_blown_up() -> None:
    mix = RewardMix({"a": Given([0.5, 0.50001]), "b": Given([0.0, 1.0])}, combine="normalize_then_sum")
    alone = RewardMix({"b": Given([0.0, 1.0])}, combine="normalize_then_sum")
    assert total(mix, 2) == total(alone, 2)


def test_one_failure_in_eight_squeezes_the_rest_unless_parts_are_normalized() -> None:
    """Why combine is a setting: added up, one failed language check leaves similarity next to nothing to say."""
    similarity = [0.6, 0.55, 0.6, 0.65, 0.7, 0.6, 0.62, 0.68]
    parts = {"similarity": Given(similarity, weight=1.5), "language": Given([0.0] + [1.0] * 7)}
    added = RewardMix(parts)(completions(8), 8).total_N
    advantages = (added - added.mean()) / added.std(correction=0)
    assert advantages[0] < -2.5 and advantages[1:].max() - advantages[1:].min() < 0.7
    # Similarity alone sets the best of the seven three deviations above the worst, and normalized it still does.
    alone = (torch.tensor(similarity) - torch.tensor(similarity).mean()) / torch.tensor(similarity).std()
    normalized = RewardMix(parts, combine="normalize_then_sum")(completions(8), 8).total_N
    assert (normalized[4] - normalized[1]).item() == pytest.approx(1.5 * (alone[4] - alone[1]).item(), rel=1e-2)
    assert alone[4] - alone[1] > 3


def test_what_is_told_of_a_reward_is_its_plain_sum() -> None:
    """Normalized totals are 0 on the average, whether anything is learned or not."""
    parts = {"a": Given([0.5, 1.0, NAN, NAN], weight=1.5), "b": Given([0.25, NAN, 0.75, NAN])}
    normalized = RewardMix(parts, combine="normalize_then_sum")(completions(4), 2)
    assert normalized.plain_N.tolist() == pytest.approx(total(RewardMix(parts), 4, 2), nan_ok=True)
    logged = reward_metrics(normalized, 2)
    assert float(logged["reward"]) == pytest.approx((1.0 + 1.5 + 0.75) / 3)
    assert "unrewarded" not in alarms([logged] * 10, Watched(paid=("a", "b"), free=(), language=()), AlarmSettings())


def test_a_sibling_without_a_reward_costs_its_group_no_deviation() -> None:
    mix = RewardMix({"a": Given([0.0, 1.0, NAN, 0.25, 0.75, 0.5, NAN, NAN, 0.5])})
    logged = reward_metrics(mix(completions(9), 3), 3)
    assert float(logged["reward_std"]) == pytest.approx((0.5**0.5 + 0.25) / 2)  # the third group has nothing to compare


@given(st.lists(st.floats(-5, 5, width=32), min_size=8, max_size=8), st.floats(0.5, 4), st.floats(-3, 3))
def test_normalized_totals_ignore_scale_and_offset_of_a_part(scores: list[float], scale: float, offset: float) -> None:
    spread = [max(group) - min(group) for group in (scores[:4], scores[4:])]
    if any(0 < width < 0.1 for width in spread):
        return
    moved = [scale * score + offset for score in scores]
    first, second = (
        total(RewardMix({"a": Given(part)}, combine="normalize_then_sum"), 8, 4) for part in (scores, moved)
    )
    assert first == pytest.approx(second, abs=2e-2)
    assert sum(first[:4]) == pytest.approx(0, abs=1e-3) and sum(first[4:]) == pytest.approx(0, abs=1e-3)


def test_counters_are_named_by_part() -> None:
    assert RewardMix({"a": Given([1.0]), "b": Counting([1.0])}).counters == {
        "rewards/a/failures": 0.0,
        "rewards/b/seen": 3.0,
        "rewards/b/failures": 0.0,
    }


def test_what_no_checkpoint_can_hold_is_told_before_anything_is_trained() -> None:
    def mix(seen: object) -> RewardMix:
        part = Counting([1.0])
        part.seen = seen  # type: ignore[assignment]
        return RewardMix({"mine": part})

    for seen, says in (
        ({1, 2}, r"rewards\.mine is Counting, whose counters are no numbers \(float\(\) argument must be"),
        (torch.zeros(2), "whose counters are no numbers"),
        (np.float32(3), r"whose state\(\) no checkpoint can hold \(Object of type float32 is not JSON serializable\)"),
        (torch.tensor(3.0), r"whose state\(\) no checkpoint can hold \(Object of type Tensor"),
    ):
        with pytest.raises(UserError, match=says):
            mix(seen).look_at([EXAMPLE])


def test_counts_of_ranks_that_are_no_more_are_counted_on() -> None:
    ranks = [RewardMix({"b": Counting([1.0])}) for _ in range(3)]
    for seen, mix in enumerate(ranks):
        mix.parts["b"].seen = seen + 1  # type: ignore[attr-defined]
    first, then = RewardMix({"b": Counting([1.0])}), RewardMix({"b": Counting([1.0])})
    first.resume(add_up([mix.state() for mix in ranks]))
    assert first.parts["b"].counters == {"seen": 1.0}
    assert first.counters == {"rewards/b/seen": 6.0, "rewards/b/failures": 0.0}
    first.parts["b"].seen += 4  # type: ignore[attr-defined]
    then.resume(first.state())
    assert then.counters["rewards/b/seen"] == 10
    then.resume(add_up([]))  # of a rank that is new
    then.resume({"b": {"class": "Counting", "failures": 1, "own": {"seen": 2}}})  # as an earlier lsemrl wrote it
    assert then.counters == {"rewards/b/seen": 2.0, "rewards/b/failures": 1.0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RewardMix({}), "rewards is empty"),
        (lambda: RewardMix({"a": Given([1.0])}, combine="product"), "combine is 'product'"),  # type: ignore[arg-type]
        (lambda: RewardMix({"a": Given([1.0])}, combine="gate"), "gate is 'language': name one of the rewards, a"),
        (lambda: RewardMix({"a": Given([1.0])}, combine="gate", gate="a"), "leave at least one to gate"),
        (lambda: RewardMix({"a": Given([1.0])}, gate="a"), "gate is 'a', but combine is 'sum', which adds gates up"),
        (lambda: RewardMix({"a": Given([1.0])}, combine="gate", gate=[]), "name at least one"),
        (lambda: Given([1.0], weight=math.inf), "weight is inf in Given"),
        (lambda: Given([1.0], weight=NAN), "weight is nan in Given"),
    ],
)
def test_bad_settings_are_told(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(3), r"'mine' gave shape \(3,\) for 2"),
        (torch.zeros(2, 1), r"'mine' gave shape \(2, 1\) for 2"),
        (torch.tensor([1, 0]), "'mine' gave a tensor of torch.int64"),
        (torch.tensor([True, False]), "'mine' gave a tensor of torch.bool"),
        ((0.5, 0.5), "'mine' gave tuple"),
        (torch.tensor([math.inf, 0.0]), "'mine' gave an infinite number"),
        (torch.tensor([1e300, 0.0], dtype=torch.float64), "'mine' gave an infinite number"),
    ],
)
def test_what_a_users_reward_may_not_give_is_told(scores: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardMix({"mine": Given(scores)})(completions(2), 2)


def test_weights_that_make_a_total_infinite_are_told() -> None:
    """Also where two infinities would cancel, which reads as not scored."""
    for weights in ((1e38, 0.0), (1e38, -1e38)):
        parts = {name: Given([1e3, 2.0], weight) for name, weight in zip("ab", weights, strict=True)}
        with pytest.raises(UserError, match=r"total of the rewards is infinite .* lower their weights \(a 1e\+38, b "):
            RewardMix(parts)(completions(2), 2)


def test_parts_are_tied_by_the_resolution_that_was_asked_for() -> None:
    parts = {"a": Given([0.5, 0.55])}
    assert total(RewardMix(parts, "normalize_then_sum", resolution=0.1), 2) == [0, 0]
    assert min(map(abs, total(RewardMix(parts, "normalize_then_sum"), 2))) > 0.7


def test_other_precisions_and_gradients_are_taken_off() -> None:
    scores = torch.tensor([0.25, 0.5], dtype=torch.float64, requires_grad=True)
    part_N = RewardMix({"mine": Given(scores)})(completions(2), 2).parts_N["mine"]
    assert part_N.dtype == torch.float32 and not part_N.requires_grad


class Free(Given):
    reads_references = False


def test_parts_that_read_references_are_not_asked_where_there_are_none() -> None:
    answered, bare = completions(1)[0], replace(completions(1)[0], example=replace(EXAMPLE, references=()))
    mix = RewardMix({"compared": Given([0.5]), "free": Free([0.1, 0.2])})
    found = mix([bare, answered], 2)
    assert found.parts_N["compared"].isnan().tolist() == [True, False]
    torch.testing.assert_close(found.total_N, torch.tensor([0.1, 0.7]))
    nothing = mix([bare, bare], 2)
    assert bool(nothing.parts_N["compared"].isnan().all()) and nothing.total_N.tolist() == pytest.approx([0.1, 0.2])


def test_a_part_that_counts_and_would_never_be_asked_is_refused() -> None:
    rows = [EXAMPLE, replace(EXAMPLE, references=())]
    with pytest.raises(
        UserError, match=r"^rewards\.compared is Given, which reads references, and 1 of 2 rows have none"
    ):
        RewardMix({"free": Free([0.0]), "compared": Given([0.0])}).look_at(rows)
    assert RewardMix({"free": Free([0.0]), "compared": Given([0.0], weight=0.0)}).look_at(rows) == []
    with pytest.raises(UserError, match=r"^rewards\.compared is Given"):  # a gate counts whatever its weight
        RewardMix({"free": Free([0.0]), "compared": Given([0.0], weight=0.0)}, "gate", "compared").look_at(rows)
