"""What a person sees while an experiment runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lsemrl.foreign import visible

LAST_LINES = 12
"""Of what a process printed, where it failed."""


def tell(console: Console, text: str) -> None:
    """Print a text, in which nothing is markup."""
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Shows nothing, where there is no terminal to draw on; the crew then reports starts as lines."""

    live = False

    def update(self, text: str, settled: float, left: str) -> None:
        """Show what is going on."""


class Bar(Display):
    """One bar over all runs."""

    live = True

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.task = progress, progress.add_task("starting", total=total, left="")

    def update(self, text: str, settled: float, left: str) -> None:
        """Show what is at work, how many runs are settled, and what is left."""
        self.progress.update(self.task, description=text, completed=settled, left=left)


@contextmanager
def shown(console: Console, total: int) -> Iterator[Display]:
    """A bar on a terminal; nothing elsewhere."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Display()
        return
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    named = TextColumn("{task.description}", markup=False)
    with Progress(named, *columns, console=console, transient=True) as progress:
        yield Bar(progress, total)
