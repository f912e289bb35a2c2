"""Intervals of paired differences: on a case that can be counted out by hand, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from lsemrl.report.bootstrap import paired_bootstrap
from matrix import slow_cases_but


def test_two_rows_by_hand() -> None:
    # A draw of two rows out of {0, 1} has mean 0, 1/2 or 1 with shares 1/4, 1/2 and 1/4.
    found = paired_bootstrap(np.array([[0.0, 1.0]]), level=0.6)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    found = paired_bootstrap(np.array([[0.0, 1.0]]), level=0.4)
    assert (found.low, found.high) == (0.5, 0.5)


def test_seeds_alone_give_students_interval() -> None:
    # Three seeds that differ by 1 on all rows alike: 2 +- t(2, .975) * sd / sqrt(3) = 4.303 * 1 / 1.732.
    differences_SN = np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)
    found = paired_bootstrap(differences_SN, draws=200_000)
    assert found.value == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=0.05)


def test_rows_are_paired_over_seeds() -> None:
    # What differs from row to row cancels within a row, so pairing leaves nothing to vary.
    hard_N = np.random.default_rng(0).normal(size=100)
    found = paired_bootstrap((hard_N + 0.25)[None] - hard_N[None])
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(("seeds", "luck"), slow_cases_but([(1, 0.0), (3, 0.0), (3, 0.1), (5, 0.1)], [(3, 0.1)]))
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, luck: float) -> None:
    rng, held, trials = np.random.default_rng(seeds), 0, 400
    for trial in range(trials):
        differences_SN = (
            0.2
            + luck * rng.standard_normal((seeds, 1))
            + 0.5 * rng.standard_normal(80)
            + 0.3 * rng.standard_normal((seeds, 80))
        )
        found = paired_bootstrap(differences_SN, draws=500, seed=trial)
        held += found.low <= 0.2 <= found.high
    assert 0.915 <= held / trials <= 0.99


@pytest.mark.parametrize(("share", "seeds"), slow_cases_but([(0.01, 1), (0.005, 1), (0.01, 3)], [(0.01, 1)]))
def test_of_rows_right_or_wrong_that_never_differ_it_holds_the_truth_too(share: float, seeds: int) -> None:
    rng, held, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        lost_SN = np.repeat((rng.random((1, 200)) < share).astype(float), seeds, axis=0)
        found = paired_bootstrap(lost_SN, span=1.0, draws=200, seed=trial)
        held += found.low <= share <= found.high
    assert held / trials >= 0.93


def test_shares_differ_by_all_at_the_most() -> None:
    nearly_all_SN = np.ones((3, 100))
    nearly_all_SN[0, :2] = 0.0
    found = paired_bootstrap(nearly_all_SN, span=1.0)
    assert found.low < found.value < found.high == 1.0 < paired_bootstrap(nearly_all_SN).high


def test_the_rule_of_three_by_hand() -> None:
    same = paired_bootstrap(np.zeros((2, 100)), span=1.0)
    assert (same.value, same.low, same.high) == pytest.approx((0, -0.03, 0.03), abs=1e-4)
    gained = paired_bootstrap(np.ones((1, 100)), span=1.0)
    assert (gained.value, gained.low, gained.high) == pytest.approx((1, 0.97, 1), abs=1e-4)
    cosine = paired_bootstrap(np.zeros((1, 100)), span=2.0)
    assert (cosine.value, cosine.low, cosine.high) == pytest.approx((0, -0.06, 0.06), abs=1e-4)
    # One row that differs is drawn as ever, and where nothing bounds a row nothing is known.
    one_SN = np.eye(1, 100)
    assert paired_bootstrap(one_SN, span=1.0) == paired_bootstrap(one_SN)
    unbounded = paired_bootstrap(np.zeros((1, 100)))
    assert unbounded.value == 0 and np.isnan([unbounded.low, unbounded.high]).all()


def test_same_arguments_same_interval() -> None:
    differences_SN = np.random.default_rng(0).normal(size=(3, 40))
    assert paired_bootstrap(differences_SN) == paired_bootstrap(differences_SN.copy())
    assert paired_bootstrap(differences_SN) != paired_bootstrap(differences_SN, seed=1)


def test_what_is_not_finite_is_not_hidden() -> None:
    found = paired_bootstrap(np.array([[0.0, np.inf]]))
    assert np.isnan([found.value, found.low, found.high]).all()


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 0)])
def test_nothing_to_draw_from(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a seed and a row at least"):
        paired_bootstrap(np.zeros(shape))
