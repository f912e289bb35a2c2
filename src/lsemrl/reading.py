"""How whatever a user brings is read: files, standard input, and the text, JSON and YAML in them.

Each gives what is there, or `Unreadable` with the reason; whoever asked names the field and the remedy. Imports nothing
heavy, for the command line stands on it.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lsemrl.errors import reason_of

NOT_UTF8 = "holds bytes that are not UTF-8"
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
_FOREIGN = {
    b"\xff\xfe": "not UTF-8 but UTF-16: save it as UTF-8",
    b"\xfe\xff": "not UTF-8 but UTF-16: save it as UTF-8",
    b"\x1f\x8b": "packed by gzip: unpack it",
    b"BZh91AY&SY": "packed by bzip2: unpack it",
    b"\xfd7zXZ": "packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
    b"PK\x03\x04": "a ZIP or Excel file: unpack it, or save it as CSV in UTF-8",
    b"PAR1": "Parquet: name it .parquet",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
}
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_MOST_NODES = 100_000
_DEEPEST = 100


class Unreadable(ValueError):
    """Why something cannot be read, to stand in brackets or behind "which"."""


def user_path(path: str | Path) -> Path:
    """`path` with the user's home in it; a home that nobody has stays as it is written."""
    return Path(os.path.expanduser(path))


def check_file(path: str | Path) -> None:
    """Refuse what cannot be read as a file.

    Raises:
        Unreadable: It is not there, no file (a pipe would be waited for, a device has no end), or larger than memory.
    """
    try:
        found = os.stat(user_path(path))
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise Unreadable(getattr(error, "strerror", None) or str(error)) from error
    if stat.S_ISDIR(found.st_mode):
        raise Unreadable("Is a directory")
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise Unreadable(f"it is {kind}, not a file: write what it holds to a file")
    if found.st_size > memory_of_machine():
        raise Unreadable(f"it has {found.st_size:,} bytes, more than the memory of this machine")


def memory_of_machine() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_bytes(path: str | Path) -> bytes:
    """All of a file.

    Raises:
        Unreadable: See `check_file`; or the user may not read it.
    """
    check_file(path)
    try:
        return user_path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from error
    except MemoryError:
        raise Unreadable("it is larger than the memory that is left") from None


def decode(data: bytes) -> str:
    """Text of UTF-8, with every alien byte as a lone surrogate.

    The byte order mark is dropped, and so is that of each file where several were joined.

    Raises:
        Unreadable: The bytes are known to be something else.
    """
    _refuse_foreign(data)
    return _MARKS.sub("", data.decode("utf-8", errors="surrogateescape"))


def read_text(path: str | Path) -> str:
    """A file that is UTF-8 throughout.

    Raises:
        Unreadable: See `read_bytes` and `decode`; or a line is not UTF-8.
    """
    text = decode(read_bytes(path))
    if bad := _SURROGATE.search(text):
        raise Unreadable(f"line {text.count(chr(10), 0, bad.start()) + 1} {NOT_UTF8}")
    return text


def lines(file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a binary file as they come, each without its end; alien bytes and order marks as `decode` has them.

    A line ends at a line feed, before which a carriage return is dropped, and nowhere else: texts may hold U+2028.
    Where there is no line feed at all, carriage returns end the lines.

    Raises:
        Unreadable: The first bytes are known to be something else.
    """
    for at, raw in enumerate(file):
        if at == 0:
            _refuse_foreign(raw)
        text = raw.decode("utf-8", errors="surrogateescape").lstrip("\ufeff")
        line = text.removesuffix("\n").removesuffix("\r")
        yield from line.split("\r") if at == 0 and not text.endswith("\n") else [line]


def read_lines(path: str | Path) -> list[str]:
    """The `lines` of a file.

    Raises:
        Unreadable: See `read_bytes` and `lines`.
    """
    return list(lines(io.BytesIO(read_bytes(path))))


def fault_of(text: str) -> str:
    """Why `text` cannot be text that somebody wrote; empty if it can."""
    if _BYTE.search(text):
        return NOT_UTF8
    if _SURROGATE.search(text):
        return f"{NOT_UTF8}, or half a character (a lone surrogate)"
    return "holds NUL characters, as torn files and UTF-16 do" if "\0" in text else ""


class Json:
    """JSON as it was written: a field that is there twice is noticed, and a number of any length is read.

    Attributes:
        twice: The field that the last value had twice; None if none.
    """

    def __init__(self) -> None:
        self.twice: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._fields, parse_int=whole_number)

    def parse(self, text: str) -> Any:
        """All of `text`.

        Raises:
            Unreadable: It is not JSON, nested beyond measure, or has a field twice.
        """
        self.twice = None
        try:
            value = self._decoder.decode(text)
        except json.JSONDecodeError as error:
            raise Unreadable(f"is not JSON ({error.msg}, column {error.colno})") from error
        except RecursionError:
            raise Unreadable("is nested too deep") from None
        if self.twice is not None:
            raise Unreadable(f"has the field {self.twice!r} twice")
        return value

    def parse_from(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends, of text that `json` can read; see `twice`."""
        self.twice = None
        return self._decoder.raw_decode(text, at)

    def _fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            self.twice = next(name for name in names if names.count(name) > 1)
        return fields


def whole_number(digits: str) -> float:
    """An integer of JSON; infinity where it has more digits than Python turns into one."""
    try:
        return int(digits)
    except ValueError:
        return math.inf


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        Unreadable: See `read_text` and `Json.parse`.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_int=whole_number)
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {error.lineno} is not JSON: {error.msg}") from error
    except RecursionError:
        raise Unreadable("is nested too deep") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        Unreadable: See `read_text`; or it is not YAML, has a field twice, or is nested or repeated beyond measure.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(read_text(path))  # libyaml's is ten times as fast, and crashes on what is nested deep
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, ())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise Unreadable(reason_of(error, None)) from error
    except RecursionError:
        raise Unreadable("it is nested too deep") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        if isinstance(error, Unreadable):
            raise
        # A date that cannot be, or `!!int` before what is none: the parser lets Python say so.
        raise Unreadable(f"it holds a value that cannot be ({reason_of(error)})") from error


def _check_node(node: Any, above: tuple[Any, ...], seen: int = 0) -> int:
    """Count what a node stands for once aliases are followed, and refuse what is twice or has no end."""
    line = node.start_mark.line + 1
    if node in above or len(above) > _DEEPEST:
        raise Unreadable(f"line {line} is nested without end, or too deep")
    if seen > _MOST_NODES:
        raise Unreadable(f"line {line} repeats its parts more than {_MOST_NODES:,} times")
    if isinstance(node.value, str):
        return seen + 1
    names: set[str] = set()
    for inner in node.value:
        key = inner[0] if isinstance(inner, tuple) else None
        if key is not None and isinstance(key.value, str):
            if key.value in names:
                raise Unreadable(f"line {key.start_mark.line + 1} has the field {key.value!r} a second time")
            names.add(key.value)
        for part in inner if isinstance(inner, tuple) else (inner,):
            seen = _check_node(part, (*above, node), seen + 1)
    return seen


def _refuse_foreign(data: bytes) -> None:
    for start, kind in _FOREIGN.items():
        if data.startswith(start):
            raise Unreadable(f"it is {kind}")
