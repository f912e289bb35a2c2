"""How long the runs of an experiment take together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush

from lsemrl.experiment.plan import Run


def parents_of(runs: Sequence[Run]) -> list[list[int]]:
    """For each of all runs, those that it builds on, by their places here."""
    places = {run.folder: at for at, run in enumerate(runs)}
    return [[places[folder] for folder in run.parents] for run in runs]


def seconds_until_all_end(
    seconds: Sequence[float], parents: Sequence[Sequence[int]], parallel: int, at_work: Collection[int] = ()
) -> float:
    """The seconds until the last run ends, where each starts in its turn, once all it builds on has ended.

    Args:
        seconds: What each run still takes; 0 where it has ended, or nobody knows.
        parents: See `parents_of`.
        parallel: Runs at a time, at least 1.
        at_work: Those that have started.
    """
    working = [(seconds[run], run) for run in at_work]
    heapify(working)
    waiting = [run for run in range(len(seconds)) if run not in at_work]
    now, ended = 0.0, set[int]()
    while working or waiting:
        for run in list(waiting):
            if len(working) < parallel and ended.issuperset(parents[run]):
                heappush(working, (now + seconds[run], run))
                waiting.remove(run)
        now, first = heappop(working)
        ended.add(first)
    return now
