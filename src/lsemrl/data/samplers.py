"""The order of training rows, a function of the seed and the epoch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import cast

import torch
from torch.utils.data import Dataset, DistributedSampler

# Seeds this far apart: epoch e of one seed is never epoch 0 of the next, as with seed + epoch.
_SEED_STRIDE = 1_000_003


def epoch_sampler(count: int, seed: int) -> DistributedSampler[int]:
    """An order of `count` rows that depends on seed and epoch alone; each rank takes its share.

    Lightning sets the epoch of a DistributedSampler, and leaves it alone otherwise.
    """
    return _order(count, seed, *_rank_and_replicas())


def _order(count: int, seed: int, rank: int = 0, replicas: int = 1) -> DistributedSampler[int]:
    return DistributedSampler(
        cast("Dataset[int]", range(count)), replicas, rank, shuffle=True, seed=seed * _SEED_STRIDE, drop_last=True
    )


def _rank_and_replicas() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class ReplaySampler(DistributedSampler[int]):
    """Every main row once an epoch, with others between them at an even pace; each rank takes its share of the whole.

    Indices below `main` are main rows, those from there on the others, kind after kind. Of any n indices in sequence,
    over all ranks, `share` * n are of a kind, to within one for each kind, so batches of every size keep the shares. No
    row of a kind comes again before all have come, in an epoch.
    """

    def __init__(self, *, main: int, others: Sequence[tuple[int, float]], seed: int) -> None:
        """Order rows.

        Args:
            main: How many main rows there are.
            others: How many there are of each other kind, and its share.
            seed: Orders them, together with the epoch.
        """
        # In whole numbers, so that length and order agree to the row.
        self.shares = [Fraction(str(share)) for _, share in others]
        part, whole = sum(self.shares, Fraction(0)).as_integer_ratio()
        rank, replicas = _rank_and_replicas()
        count = main * whole // (whole - part)
        super().__init__(cast("Dataset[int]", range(count)), replicas, rank, drop_last=True)
        self.main = _order(main, seed)
        self.begins = [main, *itertools.accumulate((rows for rows, _ in others), initial=main)][1:]
        self.others = [_order(rows, seed) for rows, _ in others]

    def __iter__(self) -> Iterator[int]:
        # One order is dealt: as many, each with the shares at its own places, would round alike and add up.
        return itertools.islice(self._mixed(), self.rank, self.total_size, self.num_replicas)

    def _mixed(self) -> Iterator[int]:
        self.main.set_epoch(self.epoch)
        main, others = iter(self.main), [self._endless(one) for one in self.others]
        for at in itertools.count():
            kind = self._kind(at)
            if kind is not None:
                yield self.begins[kind] + next(others[kind])
            elif (row := next(main, None)) is not None:
                yield row
            else:
                return

    def _kind(self, at: int) -> int | None:
        """Which of the others has the place `at`; None for a main row."""
        left = sum(self.shares, Fraction(0))
        if not _due(at, left):
            return None
        at = math.floor(at * left)  # among the others
        for kind in range(len(self.shares) - 1, 0, -1):
            part = self.shares[kind] / left
            if _due(at, part):
                return kind
            at -= math.floor(at * part)
            left -= self.shares[kind]
        return 0

    def _endless(self, one: DistributedSampler[int]) -> Iterator[int]:
        for turn in itertools.count():
            one.set_epoch((self.epoch << 16) + turn)
            yield from one


def _due(at: int, share: Fraction) -> bool:
    return math.floor((at + 1) * share) > math.floor(at * share)
