"""How far `lsemrl demo` has come: a bar on a terminal, plain lines into a log, `tee` or SLURM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class Bar:
    """One progress bar."""

    def __init__(self, progress: Progress, total: float) -> None:
        self.progress, self.task = progress, progress.add_task("starting", total=total)

    def say(self, text: str) -> None:
        """Name what is going on."""
        self.progress.update(self.task, description=text)

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""
        self.progress.advance(self.task, cost)


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

    def __init__(self, shown: Shown, said: dict[int, str], number: int, *, longest: bool) -> None:
        self._shown, self._said, self._number, self._longest = shown, said, number, longest

    def say(self, text: str) -> None:
        """Name what is going on; nothing, where it is done."""
        self._said[self._number] = text
        told = [self._said[number] for number in sorted(self._said) if self._said[number]]
        if told:
            self._shown.say(" | ".join(told))

    def advance(self, cost: float) -> None:
        """Count `cost` as done."""
        if self._longest:
            self._shown.advance(cost)


@contextmanager
def progress(console: Console, totals: Sequence[float]) -> Iterator[list[Lane]]:
    """What shows pieces of work of these costs, side by side, to whoever reads `console`."""
    said: dict[int, str] = {}

    def lanes(shown: Shown) -> list[Lane]:
        longest = totals.index(max(totals))
        return [Lane(shown, said, number, longest=number == longest) for number in range(len(totals))]

    if not console.is_terminal:
        yield lanes(Lines(console, max(totals)))
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as shown:
        yield lanes(Bar(shown, max(totals)))
