"""What is said of a report's numbers, on cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lsemrl.report.colours import colours
from lsemrl.report.findings import (
    MISSING,
    MatchedTax,
    comparisons,
    finding,
    hacking,
    number,
    path,
    tax_at_matched_score,
)
from lsemrl.report.records import Arm, Report


def bare(name: str, *points: tuple[float, float, float], f1: float, em: float, steps: int = 100) -> Arm:
    """An arm with a trajectory of (step, meaning F1, exact match) and nothing else."""
    keys = ("step", "meaning_f1", "em")
    return Arm(
        name=name, label=name, trained_by="", seconds=1.0, steps=steps, target={"meaning_f1": f1},
        general={"em": em}, kl={}, trajectory=tuple(dict(zip(keys, point, strict=True)) for point in points),
    )  # fmt: skip


BASE = bare("base", f1=0.0, em=0.9, steps=0)


def matched_tax(a: Arm, b: Arm) -> MatchedTax | None:
    return tax_at_matched_score(a, b, base=BASE)


def test_tax_is_compared_at_the_lower_best_score_by_linear_interpolation() -> None:
    rl = bare("rl", (0, 0.4, 0.88), f1=0.6, em=0.86)
    # .6 lies halfway between .5 at step 40 and .7 at step 60, where exact match falls from .80 to .70.
    sft = bare("sft", (0, 0.4, 0.88), (40, 0.5, 0.80), (60, 0.7, 0.70), f1=0.8, em=0.5)
    same = matched_tax(rl, sft)
    assert same is not None
    assert same.score == 0.6
    assert (same.step_a, same.step_b) == pytest.approx((100, 50))
    assert (same.loss_a, same.loss_b) == pytest.approx((0.04, 0.15))
    swapped = matched_tax(sft, rl)
    assert swapped is not None
    assert (swapped.loss_a, swapped.loss_b) == pytest.approx((0.15, 0.04))


def test_tax_is_read_where_a_score_is_first_reached() -> None:
    # Reaches .5 at step 10, wanders off and comes back: who trains for .5 would have stopped at step 10.
    wandering = bare("rl", (0, 0.3, 0.9), (10, 0.5, 0.85), (20, 0.2, 0.6), (30, 0.7, 0.5), f1=0.6, em=0.5)
    same = matched_tax(wandering, bare("sft", (0, 0.3, 0.9), f1=0.5, em=0.7))
    assert same is not None
    assert (same.step_a, same.loss_a) == pytest.approx((10, 0.05))


def test_best_score_may_be_passed_before_the_end() -> None:
    fallen = bare("rl", (0, 0.2, 0.9), (50, 0.6, 0.8), f1=0.1, em=0.1)
    same = matched_tax(fallen, bare("sft", (0, 0.2, 0.9), f1=0.8, em=0.6))
    assert same is not None
    assert same.score == 0.6
    assert (same.step_a, same.loss_a) == pytest.approx((50, 0.1))


def test_final_evaluation_stands_for_the_last_step() -> None:
    arm = bare("rl", (0, 0.2, 0.9), (100, 0.99, 0.99), f1=0.6, em=0.8)
    assert path(arm, "meaning_f1") == [(0, 0.2, 0.9), (100, 0.6, 0.8)]


def test_no_tax_is_made_up_where_trajectories_do_not_overlap() -> None:
    above = bare("rl", (0, 0.7, 0.9), f1=0.8, em=0.9)
    assert matched_tax(above, bare("sft", (0, 0.1, 0.9), f1=0.5, em=0.6)) is None
    assert matched_tax(above, replace(above, name="sft", general={}, trajectory=())) is None
    assert matched_tax(above, bare("sft", f1=math.nan, em=0.6)) is None


COLD = bare("cold_start", f1=0.5, em=0.88)
RL = bare("rl", f1=0.621, em=0.868)
SFT = bare("sft", f1=0.703, em=0.7)


def report_of(*arms: Arm) -> Report:
    return Report(
        lsemrl="0",
        created="",
        task="",
        seed=0,
        command="",
        machine={},
        versions={},
        signatures={},
        seconds=0.0,
        arms=arms,
    )


def test_finding_is_made_of_the_numbers() -> None:
    assert finding(report_of(BASE, COLD, RL, SFT)) == (
        "rl gained 12.1 points of meaning F1 over the cold start and lost 3.2 points of Chinese QA against the base; "
        "sft gained 20.3 and lost 20.0"
    )
    assert finding(report_of(BASE, COLD, bare("rl", f1=0.434, em=0.912))) == (
        "rl fell by 6.6 points of meaning F1 from the cold start and gained 1.2 points of Chinese QA against the base"
    )
    above = replace(BASE, target={"meaning_f1": 0.55})
    fallen = [bare("rl", f1=0.54, em=0.868), bare("rs", f1=0.45, em=0.7), SFT]
    assert finding(report_of(above, COLD, *fallen)) == (
        "rl gained 4.0 points of meaning F1 over the cold start (1.0 below the base) and lost 3.2 points of Chinese QA "
        "against the base; rs fell by 5.0 (10.0 below the base) and lost 20.0; sft gained 20.3 and lost 20.0"
    )
    assert finding(report_of(BASE, COLD)).startswith("cold_start gained 50.0 points of meaning F1 over the base")
    assert finding(report_of(BASE, bare("rl", f1=math.nan, em=0.5))).startswith("No arm has both")
    assert finding(report_of(BASE)) == "Only the base was measured"


def test_means_of_other_seeds_are_not_held_against_each_other() -> None:
    one, two = replace(COLD, seeds=(1,)), replace(RL, seeds=(1, 2))
    assert finding(report_of(BASE, one, two)).startswith("cold_start gained 50.0 points of meaning F1 over the base")
    same = finding(report_of(BASE, one, replace(RL, seeds=(1,))))
    assert same.startswith("rl gained 12.1 points of meaning F1 over the cold start")


def test_a_loss_that_is_not_finite_hides_no_gain() -> None:
    broken = replace(RL, general={"em": math.nan})
    assert finding(report_of(BASE, COLD, broken, SFT)) == (
        "rl gained 12.1 points of meaning F1 over the cold start and lost not finite points of Chinese QA against the "
        "base; sft gained 20.3 and lost 20.0"
    )
    unmeasured = replace(RL, general={})
    assert finding(report_of(BASE, COLD, unmeasured, SFT)).startswith("sft gained 20.3")


def test_no_loss_is_told_where_none_is_left_after_rounding() -> None:
    for drift, told in ((0.004, False), (0.02, True)):
        arms = (replace(BASE, general={"em": 0.0, "nll": 3.0}), replace(RL, general={"em": 0.0, "nll": 3.0 + drift}))
        assert ("nats a token" in finding(report_of(*arms))) == told


def test_an_arm_of_several_ways_has_one_colour() -> None:
    arms = [replace(RL, name=name, label=name) for name in ("one", "two", "three")]
    for paths in ((("one", "two"), ("one", "two", "three")), (("one", "two", "three"), ("one", "two"))):
        found = colours(replace(report_of(BASE, *arms), paths=paths))
        assert len({found["two"], found["three"]}) == 2


def test_finding_uses_chrf_without_an_oracle() -> None:
    arms = [replace(arm, target={"chrf": 0.5 + at / 100}) for at, arm in enumerate((BASE, COLD, RL))]
    assert finding(report_of(*arms)).startswith("rl gained 1.0 points of chrF over the cold start")


def test_rl_is_compared_with_every_alternative_but_its_own_start() -> None:
    start = (0, 0.5, 0.88)
    arms = (
        BASE,
        COLD,
        bare("rl", start, f1=0.6, em=0.86),
        bare("sft", start, f1=0.7, em=0.7),
        replace(bare("sft_replay", f1=0.5, em=0.8), label="replay"),
    )
    assert comparisons(report_of(*arms)) == [
        "At the same meaning F1 of 60.0, rl has lost 4.0 points of Chinese QA and sft 11.0 (at steps 100 and 50).",
        "At the same meaning F1 of 50.0, rl has lost 2.0 points of Chinese QA and replay 10.0 (at steps 0 and 100).",
    ]


def test_what_never_came_above_the_base_has_lost_nothing_there_to_compare() -> None:
    start = (0, 0.5, 0.8)
    arms = bare("base", f1=0.5, em=0.8, steps=0), bare("rl", start, f1=0.4, em=0.6), bare("sft", start, f1=0.7, em=0.2)
    assert comparisons(report_of(*arms)) == [
        "rl and sft cannot be compared at the same meaning F1: one never came above the base, or was always above the "
        "other, or they were not both measured."
    ]


def test_hacking_gap_is_the_reward_running_away_from_the_oracle() -> None:
    curve = tuple({"rollout_step": step, "similarity": 0.5 + step / 40, "meaning_f1": 0.6} for step in range(20))
    words = hacking(replace(RL, curve=curve))
    # First tenth: steps 0 and 1, similarity .5125; last: steps 18 and 19, .9625.
    assert "from 0.51 to 0.96" in words and "from 0.60 to 0.60" in words and "gap moved by +0.45" in words
    assert hacking(replace(RL, curve=({"rollout_step": 1, "similarity": 0.5},))) == ""


def test_numbers_for_people() -> None:
    assert [number(value, 1, "+") for value in (None, math.nan, -math.inf, -0.04, 0.04, -1.26)] == [
        MISSING, "not finite", "not finite", "0.0", "0.0", "\N{MINUS SIGN}1.3",
    ]  # fmt: skip
