"""The lists of rows left out, each of which names those of every source that shares it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from lsemrl.data.sources import Source
from lsemrl.files import write_lines
from lsemrl.reading import Unreadable, read_lines, user_path
from lsemrl.types import UserError

_FIELDS = {"file", "line", "reason", "raw"}


class SkippedRows:
    """What is left out of all that a run reads; one for several sources, else the list of one replaces another's."""

    def __init__(self) -> None:
        self._lists: dict[str, list[dict[str, Any]]] = {}

    def add(self, source: Source, rows: Iterable[dict[str, Any]]) -> None:
        """Write the list of `source`: these rows, behind those of sources before it that have the same list.

        An old list is emptied where there is nothing to name.

        Raises:
            UserError: It cannot be written.
        """
        path = source.skipped
        listed = self._lists.setdefault(os.path.realpath(path), [])
        listed += rows
        if listed or (path.exists() and path.stat().st_size):
            write_lines(path, listed, "skipped_path")


def check_skipped(source: Source) -> None:
    """Refuse to write the rows left out over anything but the same list of an earlier run.

    Raises:
        UserError: `skipped_path` is a file of the user's, or no file.
    """
    if source.on_bad_row == "error":
        return
    path = source.skipped
    told = f"skipped_path is {str(path)!r}, "
    if not os.path.lexists(path):
        return
    for name in (source.path, source.target_path):
        if name is not None and os.path.realpath(user_path(name)) == os.path.realpath(path):
            raise UserError(f"{told}which is the data itself, and would be replaced; name another file")
    try:
        rows = [json.loads(line) for line in read_lines(path) if line.strip()]
        listed = all(isinstance(row, dict) and row.keys() == _FIELDS for row in rows)
    except (ValueError, RecursionError) as reason:
        if isinstance(reason, Unreadable):
            raise UserError(f"{told}which cannot be written ({reason}); name another file") from None
        listed = False
    if not listed:
        raise UserError(f"{told}which holds something else already, and would be replaced; name another file")
