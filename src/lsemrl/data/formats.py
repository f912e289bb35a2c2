"""Reads the rows of files as they were written, each with the place it came from.

A file is decoded as UTF-8 with every alien byte kept apart (see `reading`), so that one bad line is one bad row.
TSV is read literally: it has no quoting, and a stray quotation mark in a sentence must not swallow the lines after it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lsemrl.data.rows import Row, check_path, first_line, lines_of, numbered, pieces_of, text_of
from lsemrl.layouts import PACKED
from lsemrl.reading import Json, Unreadable, fault_of, user_path, whole_number
from lsemrl.types import UserError

_GAP = re.compile(r"[\s,:]*")
_LONGEST = 2**31 - 1  # what csv can count to on every system


def _jsonl(path: str) -> Iterator[Row]:
    reader = Json()
    for line, raw in enumerate(lines_of(path), start=1):
        if not raw.strip():
            continue
        try:
            yield _json_row(path, line, raw, reader.parse(raw))
        except Unreadable as fault:
            yield Row(file=path, line=line, raw=raw, columns={}, fault=str(fault))


def _json_row(path: str, line: int, raw: str, value: object, twice: str | None = None) -> Row:
    fault = "" if isinstance(value, dict) else f"is {type(value).__name__}, not an object with fields"
    if twice is not None:
        fault = f"has the field {twice!r} twice"
    return Row(file=path, line=line, raw=raw, columns=value if isinstance(value, dict) else {}, fault=fault)


def _json(path: str) -> Iterator[Row]:
    """A list of objects, or an object that holds exactly one list."""
    text, reader = text_of(path), Json()
    try:
        document = json.loads(text, parse_int=whole_number)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is not JSON ({error.msg}); mend the file, or name it .jsonl") from None
    except RecursionError:
        raise UserError(f"path {path!r} is nested too deep; give a list of flat objects") from None
    start = _skip_gap(text, 0)
    if isinstance(document, dict):
        lists = [start for start, value in _members(reader, text, start + 1) if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(f"path {path!r} is an object with {len(lists)} lists; give a list of rows, or one list")
        start = lists[0]
    elif not isinstance(document, list):
        raise UserError(f"path {path!r} is a JSON {type(document).__name__}; give a list of objects")
    line, counted = 1, 0
    at = _skip_gap(text, start + 1)
    while text[at] != "]":
        value, end = reader.parse_from(text, at)
        line, counted = line + text.count("\n", counted, at), at
        yield _json_row(path, line, text[at:end], value, reader.twice)
        at = _skip_gap(text, end)


def _members(reader: Json, text: str, at: int) -> Iterator[tuple[int, object]]:
    """Where each value of an object starts, and the value; `at` is just inside the brace of valid JSON."""
    while text[at := _skip_gap(text, at)] != "}":
        _, at = reader.parse_from(text, at)
        start = _skip_gap(text, at)
        value, at = reader.parse_from(text, start)
        yield start, value


def _skip_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    assert gap is not None
    return gap.end()


def _tsv(path: str, header: bool = True) -> Iterator[Row]:
    cells = ((line, text.split("\t")) for line, text in enumerate(lines_of(path), start=1) if text)
    yield from _table(path, cells, "\t", header)


def _csv(path: str, header: bool = True) -> Iterator[Row]:
    text = text_of(path)
    with _long_fields():
        yield from _table(path, _cells(path, text), ",", header)


def _cells(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line of a CSV file, and the values of the row that begins there."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for values in reader:
            if values:
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: cannot be read as CSV ({error}); mend its quotes, or use JSONL") from None


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(path: str, cells: Iterable[tuple[int, list[str]]], delimiter: str, named: bool) -> Iterator[Row]:
    header: list[str] = []
    for line, values in cells:
        if not header and not named:
            header = [str(number) for number, _ in enumerate(values, start=1)]
        if not header:
            header = [name.strip() for name in values]
            twice = [name for name in header if name and header.count(name) > 1]
            if fault := fault_of("".join(header)) or (f"has the column {twice[0]!r} twice" if twice else ""):
                raise UserError(f"{path}:{line}: the header {fault}; mend it, and save the file as UTF-8")
            continue
        fault = f"has {len(values)} values for {len(header)} columns" if len(values) != len(header) else ""
        if named and [value.strip() for value in values] == header:
            fault = "is the header again, as where files were joined"
        columns = dict(zip(header, values, strict=False))
        yield Row(file=path, line=line, raw=delimiter.join(values), columns=columns, fault=fault)


def read_parquet(path: str) -> Iterator[Row]:
    """The rows of a Parquet file, by their numbers.

    Raises:
        UserError: It cannot be read, or has two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    check_path(path)
    packed = path.lower().endswith(PACKED)
    file = pyarrow.BufferReader(b"".join(pieces_of(path))) if packed else user_path(path)
    try:
        table = pyarrow.parquet.ParquetFile(file).read()
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise UserError(f"path {path!r} cannot be read as Parquet ({first_line(error)}); correct it") from None
    if len(set(table.column_names)) < len(table.column_names):
        raise UserError(f"path {path!r} has two columns of one name ({', '.join(table.column_names)}); rename one")
    columns = {name: _column(name, table.column(name)) for name in table.column_names}
    for at in range(table.num_rows):
        values = {name: column[at] for name, column in columns.items()}
        faults = [str(value) for value in values.values() if isinstance(value, Unreadable)]
        yield numbered(path, at + 1, values, faults[0] if faults else "")


def _column(name: str, column: Any) -> list[Any]:
    """The values of a column; in place of one that Python cannot hold, why."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError, ArithmeticError, TypeError):
        return [_cell(name, cell) for cell in column]


def _cell(name: str, cell: Any) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, ArithmeticError, TypeError) as error:
        return Unreadable(f"holds in the column {name!r} what cannot be read ({first_line(error)})")


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": read_parquet,
}
"""By the end of a file's name."""
TABLES: dict[str, Callable[[str, bool], Iterator[Row]]] = {".csv": _csv, ".tsv": _tsv}
"""Those of which it can be said whether the first line names the columns."""
