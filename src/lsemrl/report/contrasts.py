"""What one arm has over another, and of which seeds that is; the records of `records` that are of two arms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What one arm scored more than another on the same rows, with a 95% interval (see `bootstrap`).

    Attributes:
        of: An arm's name.
        against: Another's.
        metric: A field of `records.Arm` and a key in it, such as "target.meaning_f1"; or "tax." with one of
            `records.KEPT`, what was lost of it, and "tax.nll", mean NLL drift, both counted against the base.
        value: The mean difference.
        low: Lower bound.
        high: Upper bound.
        seeds: What is compared, by their seeds; empty in files that did not tell yet.
        left_out: The seeds that only one of the two was trained from.
    """

    of: str
    against: str
    metric: str
    value: float
    low: float
    high: float
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SameScore:
    """What two ways of training had lost when they scored the same, seed by seed.

    Attributes:
        of: The last arm of one path (see `records.Report.paths`).
        against: That of the other.
        scores: Where the two paths of each of `seeds` are compared: the lower of their two best.
        losses: The base's main score of general ability minus the first path's there, a fraction.
        losses_against: The other's.
        low: Lower bound of what the other lost more, 95% by Student's t over seeds; NaN of a single seed, of equal
            ones, and where one that both have cannot be compared: those that can may be the lucky ones.
        high: Upper bound.
        seeds: What is compared, by their seeds; empty in files that did not tell yet.
        left_out: The other seeds that an arm of either path was trained from.
        below: Those of them in which the first path never came above the base.
        below_against: Likewise, the other.
    """

    of: str
    against: str
    scores: tuple[float, ...]
    losses: tuple[float, ...]
    losses_against: tuple[float, ...]
    low: float
    high: float
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()
    below: tuple[int, ...] = ()
    below_against: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """One score of one task of lm-evaluation-harness, in the harness's own unit; means over seeds.

    Attributes:
        before: Of the base.
        after: Of the arm.
        low: Lower bound of after minus before, 95%: by Student's t over seeds; of a single seed, by the standard error
            over its questions. NaN where neither is known, and of seeds that do not differ.
        high: Upper bound.
        seeds: That were asked; empty in files that did not tell yet.
        left_out: The other seeds that the arm was trained from.
    """

    before: float
    after: float
    low: float
    high: float
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge gave to an arm, RL and strong SFT against each other; means over verdicts.

    Attributes:
        win: Share of rows that it won.
        rows: Of all verdicts together, those that could be read; 0 in files that did not tell yet.
        seeds: Whose outputs were judged; empty where that is not known.
        left_out: The other seeds that the arm was trained from.
    """

    win: float
    rows: int = 0
    seeds: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()


Compared = Contrast | SameScore | HarnessScore


def part_of(of: Compared | Judged) -> str:
    """Of which seeds a comparison is, where that is not all; "" where it is."""
    if not of.left_out:
        return ""
    compared = len(of.seeds)
    return f"seed {of.seeds[0]} alone" if compared == 1 else f"{compared} of {compared + len(of.left_out)} seeds"
