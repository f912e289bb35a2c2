"""A row as it was written, with the place it came from; and the files that rows are read from, packed or not."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from lsemrl.layouts import HUB, PACKED
from lsemrl.reading import Unreadable, check_file, decode, lines, memory_of_machine, read_bytes, user_path
from lsemrl.types import UserError

Text = TypeVar("Text", str, list[str])
_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it was written.

    Attributes:
        file: What the user called the file.
        line: Its line, or its number where the format has no lines; from 1.
        raw: The text of the row.
        columns: Its values by column.
        fault: Why it cannot be read; empty if it can.
        number: Of the rows of its file, from 1, where one before it has its line (a .json of one line); otherwise 0.
    """

    file: str
    line: int
    raw: str
    columns: dict[str, Any]
    fault: str = ""
    number: int = 0

    @property
    def at(self) -> str:
        """Where it is in its file, as no other row of it is: its line, and its number where it has one."""
        return f"{self.line}#{self.number}" if self.number else str(self.line)

    @property
    def place(self) -> str:
        """file:line, and its number where it has one."""
        return f"{self.file}:{self.at}"


def told_apart(rows: Iterable[Row]) -> Iterator[Row]:
    """`rows`, in the order of their files, with a number where the line is that of the row before."""
    file, line, count = "", 0, 0
    for row in rows:
        count = count + 1 if row.file == file else 1
        number = count if (row.file, row.line) == (file, line) else 0
        file, line = row.file, row.line
        yield row if row.number == number else replace(row, number=number)


def numbered(path: str, number: int, columns: dict[str, Any], fault: str = "") -> Row:
    """A row of a format without lines."""
    raw = json.dumps(columns, ensure_ascii=False, default=str)
    return Row(file=path, line=number, raw=raw, columns=columns, fault=fault)


def first_line(error: BaseException) -> str:
    """What a library says, short enough for a sentence."""
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__


def check_path(path: str) -> None:
    """Refuse what no file of rows is at.

    Raises:
        UserError: There is nothing, a folder, or a file that cannot be read.
    """
    if os.path.isdir(user_path(path)):
        raise UserError(f"path {path!r} is a folder; name one of its files, or write {HUB}{path} for a dataset folder")
    try:
        check_file(path)
    except Unreadable as reason:
        if isinstance(reason.__cause__, FileNotFoundError):
            where = f"(looked from {Path.cwd()})"
            raise UserError(f"path is {path!r}, and there is no such file {where}; correct the path") from None
        raise _unreadable(path, reason) from None


def pieces_of(path: str) -> Iterator[bytes]:
    """The bytes of a file as they come, unpacked where its name ends as those of packed files do.

    Raises:
        UserError: It cannot be read, is torn, or holds more than the memory of this machine.
    """
    check_path(path)
    if not path.lower().endswith(PACKED):
        try:
            yield read_bytes(path)
        except Unreadable as reason:
            raise _unreadable(path, reason) from None
        return
    line, size = 1, 0
    try:
        with closing(_unpacked(path)) as file:
            while piece := file.read(_PIECE):
                line, size = line + piece.count(b"\n"), size + len(piece)
                if size > memory_of_machine():
                    raise UserError(f"path {path!r} unpacks to more than the memory of this machine; give a part of it")
                yield piece
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        way = "gzip" if path.lower().endswith(PACKED[0]) else "zstd"
        raise UserError(
            f"{path}:{line}: from here on the file is no {way}, or torn ({first_line(error)}); fetch it again, or "
            "give it the name that it should have"
        ) from None


def _unpacked(path: str) -> gzip.GzipFile | IO[bytes]:
    if path.lower().endswith(PACKED[0]):
        return gzip.open(user_path(path))
    import pyarrow  # `datasets` brings it, and it brings zstd

    unpacked: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(str(user_path(path))), "zstd")
    return unpacked


def lines_of(path: str) -> list[str]:
    """See `reading.lines`.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    return _decoded(path, lambda data: list(lines(io.BytesIO(data))))


def text_of(path: str) -> str:
    """See `reading.decode`.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    return _decoded(path, decode)


def _decoded(path: str, how: Callable[[bytes], Text]) -> Text:
    data = b"".join(pieces_of(path))
    try:
        found = how(data)
    except Unreadable as reason:
        raise _unreadable(path, reason) from None
    if not any(map(str.strip, found)):
        raise UserError(f"path {path!r} is empty; give a file with at least one row")
    return found


def _unreadable(path: str, reason: object) -> UserError:
    return UserError(f"path {path!r} cannot be read ({reason}); correct the path, its rights, or the file")
