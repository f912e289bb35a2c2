"""How far `lsemrl demo` has come: a bar on a terminal, plain lines into a log, `tee` or SLURM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lsemrl.durations import Pace


class Shown(Protocol):
    """Whatever shows how far the work has come."""

    def say(self, text: str) -> None:
        """Name what is going on."""

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""


class Lines:
    """A line at the start, and at most every 30 seconds."""

    def __init__(self, console: Console, total: float) -> None:
        self.console, self.total, self.done = console, total, 0.0
        self._pace = Pace()

    def say(self, text: str) -> None:
        """Name what is going on, if it is time, and what is left."""
        if self._pace.due():
            left = f"; {self._pace.left(self.done, self.total)}" if self.done else ""
            self.console.print(f"{text}{left}", markup=False, highlight=False, soft_wrap=True)

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""
        self.done += cost


class Lane:
    """One of several pieces of work side by side: what all of them say is said together; the longest is counted."""

    def __init__(
        self, show: Callable[[str], None], count: Callable[[float], None] | None, said: dict[int, str], number: int
    ) -> None:
        self._show, self._count, self._said, self._number = show, count, said, number

    def say(self, text: str) -> None:
        """Name what is going on; nothing, where it is done."""
        self._said[self._number] = text
        told = [self._said[number] for number in sorted(self._said) if self._said[number]]
        if told:
            self._show(" | ".join(told))

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""
        if self._count:
            self._count(cost)


@contextmanager
def progress(console: Console, totals: Sequence[float]) -> Iterator[list[Lane]]:
    """What shows pieces of work of these costs, side by side, to whoever reads `console`."""
    said: dict[int, str] = {}
    longest, most = totals.index(max(totals)), max(totals)

    def lanes(show: Callable[[str], None], count: Callable[[float], None]) -> list[Lane]:
        return [Lane(show, count if number == longest else None, said, number) for number in range(len(totals))]

    if not console.is_terminal:
        lines = Lines(console, most)
        yield lanes(lines.say, lines.advance)
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as shown:
        bar = shown.add_task("starting", total=most)
        yield lanes(lambda text: shown.update(bar, description=text), partial(shown.advance, bar))
