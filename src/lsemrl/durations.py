"""Durations for people."""

from __future__ import annotations

import time

_EVERY = 30.0
"""Seconds between two lines on progress."""


def spoken(seconds: float) -> str:
    """Seconds below a minute and a half, then minutes, then hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Pace:
    """When another line on progress is due, and what it says of the time that is left.

    Args:
        at_once: Whether the first line is due right away, rather than after 30 seconds.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self._began = time.monotonic()
        self._said = self._began - _EVERY if at_once else self._began

    def due(self, *, anyhow: bool = False) -> bool:
        """Whether 30 seconds have passed since this was last so; always, if asked `anyhow`."""
        now = time.monotonic()
        if now - self._said < _EVERY and not anyhow:
            return False
        self._said = now
        return True

    def left(self, done: float, total: float) -> str:
        """At the pace so far, of work of which `done` (above 0) was done since the beginning."""
        return f"about {spoken((time.monotonic() - self._began) / done * (total - done))} left"
