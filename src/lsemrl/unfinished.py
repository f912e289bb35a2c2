"""What a long command has worked out so far, in a file beside the one that it is for.

A command that was interrupted goes on from there when it is given again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.files import append, write_text
from lsemrl.reading import Unreadable, read_lines


class Unfinished:
    """The results so far, a line for each; the file is gone once its block ends without an error.

    Attributes:
        path: First what they are results of, then they.
        lines: The results.
    """

    def __init__(self, output: Path, asked: Mapping[str, Any], batch_size: int = 1) -> None:
        """
        Args:
            output: The file that they are for.
            asked: Whatever decides the results; those of anything else are not gone on from.
            batch_size: Results that are worked out together; of a batch that is not whole, none is taken up.

        Raises:
            UserError: There are results of another command, or none can be written.
        """
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
                f"{str(self.path)!r} holds what another command worked out ({len(lines):,} lines); move it away, or "
                "give that command again"
            )
        self.lines = lines[: len(lines) // batch_size * batch_size]
        self._before = iter(tuple(self.lines))
        write_text(self.path, "".join(f"{line}\n" for line in (self._head, *self.lines)))

    def take(self) -> str | None:
        """The next of those that there were at the beginning; None after the last."""
        return next(self._before, None)

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
        if kind is None or not self.lines:
            self.path.unlink(missing_ok=True)
        elif issubclass(kind, KeyboardInterrupt):
            raise UserError(
                f"interrupted; what was done is in {str(self.path)!r}, from which the same command goes on"
            ) from None
