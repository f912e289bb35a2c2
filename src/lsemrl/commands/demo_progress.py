"""How far `lsemrl demo` has come: a bar on a terminal, plain lines into a log, `tee` or SLURM."""

from __future__ import annotations

from collections.abc import Iterator
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
    """One progress bar over all stages."""

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


@contextmanager
def progress(console: Console, total: float) -> Iterator[Shown]:
    """What shows `total` seconds of work to whoever reads `console`."""
    if not console.is_terminal:
        yield Lines(console, total)
        return
    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as shown:
        yield Bar(shown, total)
