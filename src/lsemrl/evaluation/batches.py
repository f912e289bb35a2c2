"""How the rows of a measurement are gone through: in batches, saying how far it is, keeping what is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lsemrl.durations import Pace
from lsemrl.types import Example
from lsemrl.unfinished import Unfinished

T = TypeVar("T")
Say = Callable[[str], None]


def _nobody(line: str) -> None:
    """Who is told where nobody wants to know."""


class Batches:
    """Batches of rows, one after the other.

    Attributes:
        size: Rows in a batch.
        say: Told what is begun, where not all of it is kept already, and every 30 seconds how far it is.
        seconds_before: What the results that were kept already had taken.
        makers: Who worked results out, in order, as far as those that were kept say it.
    """

    def __init__(
        self,
        size: int = 100,
        say: Say = _nobody,
        part: Unfinished | None = None,
        maker: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            size: See the attributes.
            say: See the attributes.
            part: Where results are kept as they come. Those that it holds are taken instead of being worked out again:
                whoever goes through the same rows in the same order gets the same ones.
            maker: What works results out now, as JSON can hold it.
        """
        self.size, self.say, self._part, self._maker = size, say, part, maker or {}
        self.seconds_before, self.makers = 0.0, list[Mapping[str, Any]]()
        self._begun = ""

    def begin(self, what: str) -> None:
        """Say `what` comes now, once a batch of it has to be worked out."""
        self._begun = what

    def each(
        self, examples: Sequence[Example], work: Callable[[Sequence[Example], int], list[T]], size: int | None = None
    ) -> list[T]:
        """Whatever `work` makes of each batch, one after the other.

        Args:
            examples: The rows.
            work: Of a batch and the number of the batch, from 0: what JSON can hold, a result for each row.
            size: Rows in a batch, if other than `size`.
        """
        size = size or self.size
        found: list[T] = []
        pace, begun = Pace(at_once=False), 0
        for number, at in enumerate(range(0, len(examples), size)):
            rows = examples[at : at + size]
            if self._part and (kept := self._part.take()):
                seconds, result, *maker = json.loads(kept)
                self.seconds_before += seconds
                self.makers += maker
                found += result
                pace, begun = Pace(at_once=False), at + len(rows)
                continue
            if self._begun:
                self.say(self._begun)
                self._begun = ""
            if at > begun and pace.due():
                left = pace.left(at - begun, len(examples) - begun)
                self.say(f"measuring: {at:,} of {len(examples):,} rows; {left}")
            started = time.monotonic()
            result = work(rows, number)
            maker = [] if self.makers[-1:] == [self._maker] else [self._maker]
            self.makers += maker
            if self._part:
                self._part.add(json.dumps([time.monotonic() - started, result, *maker]))
            found += result
        return found
