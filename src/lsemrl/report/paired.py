"""Arms and ways of training held against each other, by the seeds that both have."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np

from lsemrl.evaluation.measurement import BASE, UNBOUNDED, Measured
from lsemrl.metrics.corpus import pooled
from lsemrl.report.bootstrap import Interval, half_width, paired_bootstrap, pooled_bootstrap
from lsemrl.report.contrasts import Contrast, SameScore
from lsemrl.report.findings import same_score
from lsemrl.report.records import KEPT, SCORES
from lsemrl.report.rows import Array, counts_of, mean_rows_of, means_of, rows_of, shared, values_of

_CLAIMED = (*(f"target.{name}" for name in SCORES), "target.similarity", *(f"tax.{name}" for name in KEPT), "tax.nll")
"""What they are compared in: seeds that both have are paired."""

_SPANS = {"similarity": 2.0, "similarity_reward": 2.0, "hacking_gap": 3.0}
"""How far one row can be from another in a score that is not in [0, 1]: a cosine, and one minus such a score."""

BySeed = Mapping[int, Mapping[str, Array]]
"""Seed -> metric -> its values."""
Values = Sequence[tuple[Array, Array]]
"""Of one metric, for each seed: one arm's and another's."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two arms that are held against each other, by seeds that both have; see `Contrast`."""

    of: str
    against: str
    seeds: tuple[int, ...]
    left_out: tuple[int, ...] = ()

    def values(self, of: Mapping[str, BySeed], metric: str) -> Values:
        """What both have of it, for each seed; [] where any lacks it."""
        found = [(of[self.of][seed], of[self.against][seed]) for seed in self.seeds]
        there = all(metric in own and metric in others for own, others in found)
        return [(own[metric], others[metric]) for own, others in found] if there else []

    def contrast(self, metric: str, values: Values) -> Contrast:
        """Of a score that each row has, for each seed."""
        own, others = map(np.stack, zip(*values, strict=True))
        return self._contrast(metric, paired_bootstrap(own - others, span=_span(metric)))

    def pooled(self, metric: str, values: Values) -> Contrast:
        """Of a score of a corpus, from what each row adds to it."""
        own, others = map(np.stack, zip(*values, strict=True))
        score = functools.partial(pooled, metric.removeprefix("target."))
        return self._contrast(metric, pooled_bootstrap(own, others, score, span=_span(metric)))

    def _contrast(self, metric: str, found: Interval) -> Contrast:
        return Contrast(**asdict(self), metric=metric, **asdict(found))


def _span(metric: str) -> float | None:
    """How far two arms can be apart in it; None if there is no bound."""
    name = metric.partition(".")[2]
    return None if name in UNBOUNDED else _SPANS.get(name, 1.0)


def pairs_of(groups: Mapping[str, Sequence[Measured]], against: Sequence[str]) -> Iterator[Pair]:
    """Each arm and another that it is held against."""
    seeds = {name: {each.seed for each in measured} for name, measured in groups.items() if name != BASE}
    for name, own in seeds.items():
        for other in against:
            if name == other:
                break  # the cold start is not held against RL
            if other in seeds:
                both, left_out = own & seeds[other], own ^ seeds[other]
                yield Pair(of=name, against=other, seeds=tuple(sorted(both)), left_out=tuple(sorted(left_out)))


def contrasts(groups: Mapping[str, Sequence[Measured]], pairs: Sequence[Pair]) -> Iterator[Contrast]:
    """Every arm against the base in every metric, and each pair in what is claimed of them."""
    rows = {name: {each.seed: rows_of(each) for each in seeds} for name, seeds in groups.items()}
    counts = {name: {each.seed: counts_of(each) for each in seeds} for name, seeds in groups.items()}
    base, before = means_of(rows[BASE].values()), means_of(counts[BASE].values())
    for name in (each for each in groups if each != BASE):
        pair = Pair(of=name, against=BASE, seeds=tuple(rows[name]))
        for metric in (each for each in shared(rows[name].values()) if each in base):
            yield pair.contrast(metric, [(each[metric], base[metric]) for each in rows[name].values()])
        for metric in (each for each in shared(counts[name].values()) if each in before):
            yield pair.pooled(metric, [(each[metric], before[metric]) for each in counts[name].values()])
    for pair in pairs:
        for metric in _CLAIMED if pair.seeds else ():
            if metric in base and (values := pair.values(rows, metric)):
                yield pair.contrast(metric, values)
            elif values := pair.values(counts, metric):
                yield pair.pooled(metric, values)


def same_scores(
    groups: Mapping[str, Sequence[Measured]], paths: Sequence[tuple[str, ...]], metric: str, kept: str
) -> Iterator[SameScore]:
    """The first path beside each of the others, on the seeds in which both come above the base."""
    if not paths:
        return
    base = mean_rows_of(groups[BASE])
    before = float(base[kept].mean())
    start = fmean(values_of(each, base)[metric] for each in groups[BASE])
    by_seed = {name: {each.seed: values_of(each, base) for each in seeds} for name, seeds in groups.items()}

    def points(path: tuple[str, ...], seed: int) -> list[tuple[float, float, float]]:
        """(place on the path, score, what is kept)"""
        measured = [(start, before)]
        measured += [(values[metric], values[kept]) for values in (by_seed[arm][seed] for arm in path)]
        return [(at, *each) for at, each in enumerate(measured)]

    for path in paths[1:]:
        seeds = [set(by_seed[arm]) for arm in (*paths[0], *path)]
        ways = {seed: (points(paths[0], seed), points(path, seed)) for seed in sorted(set.intersection(*seeds))}
        # At the base, where they would be met else, neither has lost anything.
        below, below_against = ([seed for seed in ways if not _best(ways[seed][at]) > start] for at in (0, 1))
        found: dict[int, tuple[float, float, float]] = {}
        for seed in (each for each in ways if each not in (*below, *below_against)):
            if met := same_score(*ways[seed]):
                score, (_, own), (_, others) = met
                found[seed] = (score, before - own, before - others)
        scores, losses, against = zip(*found.values(), strict=True) if found else ((), (), ())
        left_out = sorted(set.union(*seeds) - found.keys())
        more = np.subtract(against, losses)
        low, high = np.nan, np.nan
        if found and len(found) == len(ways):
            low, high = np.clip(more.mean() + half_width(more) * np.array([-1, 1]), -1, 1)
        yield SameScore(
            of=paths[0][-1],
            against=path[-1],
            scores=scores,
            losses=losses,
            losses_against=against,
            low=float(low),
            high=float(high),
            seeds=tuple(found),
            left_out=tuple(left_out),
            below=tuple(below),
            below_against=tuple(below_against),
        )


def _best(way: Sequence[tuple[float, float, float]]) -> float:
    return max(score for _, score, _ in way)
