"""What a long command has worked out so far, in a file beside the one that it is for.

A command that was interrupted goes on from there when it is given again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.files import append, told
from lsemrl.locks import hold


class Unfinished:
    """The results so far, a line for each; the file is gone once its block ends without an error.

    Attributes:
        path: First what they are results of, then they.
        lines: The results; none before `take_up`.
    """

    def __init__(self, output: Path) -> None:
        """
        Args:
            output: The file that they are for.

        Raises:
            UserError: Another process adds to them, or none can be written.
        """
        self.path = output.with_name(f"{output.name}.unfinished")
        self.lines: list[str] = []
        self._given = 0  # of them lie elsewhere
        self._before: Iterator[str] | None = None
        with told(self.path):
            self._held = self.path.open("ab")
        try:
            hold(self._held, self.path)
        except BaseException:
            self._held.close()
            raise

    def take_up(self, asked: Mapping[str, Any], batch_size: int = 1, given: Sequence[str] = ()) -> None:
        """Go on from what there is.

        Args:
            asked: Whatever decides the results; those of anything else are not gone on from.
            batch_size: Results that are worked out together; of a batch that is not whole, none is taken up.
            given: Results of the same that lie elsewhere, gone on from where there are none here.

        Raises:
            UserError: There are results of another command, or none can be written.
        """
        self.lines = self._left(json.dumps(asked, sort_keys=True), batch_size)
        self._given = 0 if self.lines else len(given)
        for line in given[: self._given]:
            self.add(line)
        self._before = iter(tuple(self.lines))

    def _left(self, head: str, batch_size: int) -> list[str]:
        """The lines there are, of whole batches; the file is cut behind them."""
        written = self.path.read_bytes()
        try:
            text = written[: written.rfind(b"\n") + 1].decode()  # a kill may leave half a line
        except UnicodeDecodeError:
            raise UserError(f"{str(self.path)!r} is not as it was written; move it away") from None
        was, *lines = text.split("\n")[:-1] or [""]
        if was != head and lines:
            raise UserError(
                f"{str(self.path)!r} holds what another command worked out ({len(lines):,} lines); move it away, or "
                "give that command again"
            )
        kept = lines[: len(lines) // batch_size * batch_size] if was == head else []
        whole = [head, *kept] if was == head else []
        with told(self.path):
            os.truncate(self.path, sum(len(line.encode()) + 1 for line in whole))
        if not whole:
            append(self.path, f"{head}\n")
        return kept

    def take(self) -> str | None:
        """The next of those that there were at the beginning; None after the last."""
        return next(self._before or iter(()), None)

    def add(self, line: str) -> None:
        """Keep one more.

        Raises:
            UserError: It cannot be written.
        """
        append(self.path, f"{line}\n")
        self.lines.append(line)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        left = self.path.stat().st_size if self._before is None else len(self.lines) - self._given
        if kind is None or not left:
            self.path.unlink(missing_ok=True)
        self._held.close()
        if kind and issubclass(kind, KeyboardInterrupt) and self.lines:
            raise UserError(
                f"interrupted; what was done is in {str(self.path)!r}, from which the same command goes on"
            ) from None
