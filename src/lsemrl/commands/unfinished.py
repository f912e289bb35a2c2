"""Answers as they come, in a file beside the one that they are for.

A command that was interrupted goes on from them when it is given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.files import append, write_text
from lsemrl.reading import Unreadable, read_lines


class Unfinished:
    """The answers so far; where the block ends without an error they take the place that they are for.

    Attributes:
        path: The file of the answers so far: first what they are answers to, then a line for each.
        lines: The answers.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], batch_size: int, wanted: int) -> None:
        """
        Args:
            output: The file that they are for.
            asked: Whatever decides the answers; those to anything else are not gone on from.
            batch_size: Answers in a batch; of one that is not whole, none is taken up.
            wanted: How many there will be.

        Raises:
            UserError: There are answers of another command, or none can be written.
        """
        self._output, self._wanted = output, wanted
        self.path = output.with_name(f"{output.name}.unfinished")
        self._head = json.dumps(asked, sort_keys=True)
        head, lines = self._head, list[str]()
        if self.path.exists():
            try:
                head, *lines = read_lines(self.path)
            except (Unreadable, ValueError) as reason:
                raise UserError(f"{str(self.path)!r} cannot be taken up ({reason}); move it away") from None
        if head != self._head and lines:
            raise UserError(
                f"{str(self.path)!r} holds {len(lines):,} answers of another command; move it away, or give that "
                "command again"
            )
        self.lines = lines[: len(lines) // batch_size * batch_size]
        write_text(self.path, "".join(f"{line}\n" for line in (self._head, *self.lines)))
        if self.lines:
            print(f"{len(self.lines):,} of {wanted:,} texts were answered already", file=sys.stderr)

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
        if kind is None:
            write_text(self._output, "".join(f"{line}\n" for line in self.lines), "--output")
        if kind is None or not self.lines:
            self.path.unlink(missing_ok=True)
        elif issubclass(kind, KeyboardInterrupt):
            raise UserError(
                f"interrupted; {len(self.lines):,} of {self._wanted:,} answers are in {str(self.path)!r}, from which "
                "the same command goes on"
            ) from None
