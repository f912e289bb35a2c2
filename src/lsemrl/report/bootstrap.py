"""Intervals of paired differences, over rows and over seeds. Dimensions: S seeds, N rows, R draws, K counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Array = NDArray[np.float64]

_LEVEL, _SEED = 0.95, 0
_DRAWS = 5_000
_POOLED_DRAWS = 1_000
"""Of corpora, whose scores are computed one by one; as many as sacreBLEU takes."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the interval around it.

    Attributes:
        value: The mean.
        low: Its lower bound; NaN where there is none.
        high: Its upper bound.
    """

    value: float
    low: float
    high: float


def paired_bootstrap(
    differences_SN: Array, *, span: float | None = None, level: float = _LEVEL, draws: int = _DRAWS, seed: int = _SEED
) -> Interval:
    """The mean of paired differences and its bootstrap interval; NaN where a difference is not finite.

    A single row has no interval: every draw is that row, and none would look like certainty.

    A draw takes N rows with replacement, the same ones for every seed. Where there are several seeds it also moves by
    what their means differ: by Student's t with S - 1 degrees of freedom times their standard error. Drawing the seeds
    themselves with replacement would do for many; of three, no draw leaves the range of the three, which holds the
    truth three times in four only.

    Where no row differs from another, every draw is the same, and none would look like certainty again. There the rule
    of three gives the interval (Hanley and Lippman-Hand 1983): what was seen in none of N rows is a share of less than
    3 / N, and moves the mean by no more than that times `span`. Without one there is no interval.

    Args:
        differences_SN: float64, one arm's score minus the other's for each seed and row.
        span: How far a row of one arm can be from the other's; None if there is no bound.
        level: Share of repetitions in which the interval should hold the truth.
        draws: How many, R.
        seed: The same arguments give the same interval.

    Raises:
        ValueError: There is nothing to draw from, or `level` is not in (0, 1).
    """
    if differences_SN.ndim != 2 or not differences_SN.size:
        raise ValueError(f"differences must have a seed and a row at least, got shape {differences_SN.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if not np.isfinite(differences_SN).all():
        return Interval(value=np.nan, low=np.nan, high=np.nan)
    rows = differences_SN.shape[1]
    mean_N = differences_SN.mean(axis=0)
    if rows == 1:
        return Interval(value=float(mean_N.mean()), low=np.nan, high=np.nan)
    if np.ptp(differences_SN) == 0:
        few, value = float(-np.log(1 - level) / rows) * (np.nan if span is None else span), float(mean_N[0])
        found = Interval(value=value, low=value - few, high=value + few)
    else:
        # Around the mean, so that rows which do not differ leave no rounding.
        means_R = mean_N.mean() + _drawn_rows(rows, draws, seed) @ (mean_N - mean_N.mean()) / rows
        found = _interval(differences_SN.mean(axis=1), means_R, level, seed)
    return _within(found, span)


def pooled_bootstrap(
    counts_SNK: Array, others_SNK: Array, score: Callable[[Array], Array], *, span: float | None = None
) -> Interval:
    """The difference of a corpus score between two arms, and its interval by the paired bootstrap of Koehn (2004).

    Rows and seeds are drawn as in `paired_bootstrap`; of the rows drawn the counts are summed, and the sums scored.
    Where every draw is the same, as of a single row, or of two arms whose BLEU is 0 throughout, there is no interval.

    Args:
        counts_SNK: What each row of an arm adds to its score.
        others_SNK: Likewise, of the arm that it is held against.
        score: Of sums [R, K].
        span: How far it can be from the other arm's; None if there is no bound.
    """
    rows = counts_SNK.shape[1]
    differences_S = score(counts_SNK.sum(axis=1)) - score(others_SNK.sum(axis=1))
    drawn_RN = _drawn_rows(rows, _POOLED_DRAWS, _SEED).astype(np.float64)  # float32 would round large sums
    pairs = zip(counts_SNK, others_SNK, strict=True)
    drawn_SR = [score(drawn_RN @ own_NK) - score(drawn_RN @ other_NK) for own_NK, other_NK in pairs]
    if not np.ptp(drawn_SR, axis=1).any():
        return Interval(value=float(differences_S.mean()), low=np.nan, high=np.nan)
    return _within(_interval(differences_S, np.mean(drawn_SR, axis=0), _LEVEL, _SEED), span)


def _within(found: Interval, span: float | None) -> Interval:
    """Student's t of two or three seeds may go beyond what there can be."""
    return found if span is None else replace(found, low=max(found.low, -span), high=min(found.high, span))


def _interval(differences_S: Array, drawn_R: Array, level: float, seed: int) -> Interval:
    """Around the mean over seeds, with what these differ by added to the draws."""
    seeds = len(differences_S)
    if seeds > 1:
        error = differences_S.std(ddof=1) / np.sqrt(seeds)
        drawn_R = drawn_R + error * np.random.default_rng(seed).standard_t(seeds - 1, size=len(drawn_R))
    low, high = np.quantile(drawn_R, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value=float(differences_S.mean()), low=float(low), high=float(high))


@functools.lru_cache(maxsize=4)
def _drawn_rows(rows: int, draws: int, seed: int) -> NDArray[np.float32]:
    """How often each row is in each draw, [R, N]; the same for every metric and pair of arms, so made once."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float32)


def half_width(values: Array) -> float:
    """Of the 95% interval of their mean, by Student's t; NaN of a single one, and where none differs from another."""
    if np.ptp(values) < 1e-12:  # but for rounding
        return np.nan
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
