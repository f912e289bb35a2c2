"""Reads rows as they were written, whatever the format, each with the place it came from.

A file is decoded as UTF-8 with every alien byte kept apart (surrogateescape), so that one bad line is one bad row.
TSV is read literally: it has no quoting, and a stray quotation mark in a sentence must not swallow the lines after it.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lsemrl import micro
from lsemrl.micro.grammar import Split
from lsemrl.types import UserError

HUB = "hub:"
NOT_UTF8 = "holds bytes that are not UTF-8"
_SURROGATE = re.compile("[\ud800-\udfff]")
_GAP = re.compile(r"[\s,:]*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from, and how its columns are named.

    Example:
        `Source(path="news.jsonl", columns={"title": "headline"})`
    """

    path: str = "micro"
    """A .jsonl, .json, .csv, .tsv or .parquet file; a text file with one row a line, beside `target_path`;
    `hub:owner/name` for a Hugging Face dataset; or `micro` for the embedded world (`micro:test` for one split)."""
    target_path: str | None = None
    """With a text file in `path`: the file whose lines answer its lines (path: a.zh, target_path: a.bo)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field of the task -> column of the file, where the two differ."""
    config: str | None = None
    """Configuration of a Hugging Face dataset."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face dataset."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be used, or leave it out, count it and write it to `skipped_path`."""
    skipped_path: str | None = None
    """JSONL file for the rows left out; by default `path` with `.skipped.jsonl` added."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path is empty; name a file, hub:owner/name, or micro")
        if self.world_split and self.world_split not in get_args(Split):
            raise UserError(f"path is {self.path!r}; the embedded world's splits are {', '.join(get_args(Split))}")
        if self.on_bad_row not in ("error", "skip"):
            raise UserError(f"on_bad_row is {self.on_bad_row!r}; choose error or skip")
        if self.target_path is not None and (self.path.startswith(HUB) or self.world_split is not None):
            raise UserError(f"target_path is {self.target_path!r}, but path {self.path!r} is no file; leave it out")

    @property
    def world_split(self) -> Split | Literal[""] | None:
        """Of the embedded world: the split named, "" for the whole of it; None for any other source."""
        world, _, split = self.path.partition(":")
        return cast(Split, split) if world == micro.NAME else None

    @property
    def skipped(self) -> Path:
        """The file for the rows left out."""
        beside = self.path.removeprefix(HUB).replace("/", "--") if self.path.startswith(HUB) else self.path
        return Path(self.skipped_path or f"{beside}.skipped.jsonl").expanduser()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as it was written.

    Attributes:
        file: What the user called the file.
        line: Its line, or its number where the format has no lines; from 1.
        raw: The text of the row.
        columns: Its values by column.
        fault: Why it cannot be read; empty if it can.
    """

    file: str
    line: int
    raw: str
    columns: dict[str, Any]
    fault: str = ""

    @property
    def place(self) -> str:
        """file:line."""
        return f"{self.file}:{self.line}"


def is_broken(text: str) -> bool:
    """Whether `text` holds bytes that were not UTF-8, or half a character (a lone surrogate)."""
    return _SURROGATE.search(text) is not None


def read_rows(source: Source, pair: tuple[str, str] | None) -> list[Row]:
    """Read every row of `source`.

    Args:
        source: Any but the embedded world.
        pair: The fields that two aligned text files hold; None if the task has more than two.

    Raises:
        UserError: No such file, an empty one, an unknown format, or one that cannot be read as its name says.
    """
    if source.path.startswith(HUB):
        rows = _hub(source)
    elif source.target_path is not None:
        if pair is None:
            raise UserError(f"target_path is {source.target_path!r}, but this task has more than two fields; use JSONL")
        rows = _aligned(source.path, source.target_path, pair)
    else:
        suffix = Path(source.path).suffix.lower()
        if suffix not in _READERS:
            formats = ", ".join(_READERS)
            raise UserError(
                f"path is {source.path!r}, whose format is unknown; name a file that ends in {formats}, "
                "two text files with path and target_path, hub:owner/name, or micro"
            )
        rows = _READERS[suffix](source.path)
    read = list(rows)
    if not read:
        raise UserError(f"path {source.path!r} holds no rows; give a file with at least one")
    return read


def _text(path: str) -> str:
    """The file's text; bytes that are not UTF-8 stay as lone surrogates."""
    try:
        data = _file(path).read_bytes()
    except OSError as error:
        raise UserError(f"path {path!r} cannot be read ({error.strerror}); correct the path or its rights") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"path {path!r} is UTF-16, not UTF-8; save it as UTF-8")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise UserError(f"path {path!r} is empty; give a file with at least one row")
    return text


def _file(path: str) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"path {path!r} is a folder; name one of its files, or write {HUB}{path} for a dataset folder")
    if not file.exists():
        raise UserError(f"path is {path!r}, and there is no such file (looked from {Path.cwd()}); correct the path")
    return file


def _jsonl(path: str) -> Iterator[Row]:
    # Only "\n" ends a line: JSON strings may hold U+2028 and its kin, which str.splitlines would cut at.
    for line, raw in enumerate(_text(path).split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield _json_row(path, line, raw, json.loads(raw))
        except json.JSONDecodeError as error:
            fault = f"is not JSON ({error.msg}, column {error.colno})"
            yield Row(file=path, line=line, raw=raw, columns={}, fault=fault)


def _json_row(path: str, line: int, raw: str, value: object) -> Row:
    if not isinstance(value, dict):
        fault = f"is {type(value).__name__}, not an object with fields"
        return Row(file=path, line=line, raw=raw, columns={}, fault=fault)
    return Row(file=path, line=line, raw=raw, columns=value)


def _json(path: str) -> Iterator[Row]:
    """A list of objects, or an object that holds exactly one list."""
    text = _text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is not JSON ({error.msg}); mend the file, or name it .jsonl") from None
    decoder, start = json.JSONDecoder(), _skip_gap(text, 0)
    if isinstance(document, dict):
        lists = [start for start, value in _members(decoder, text, start + 1) if isinstance(value, list)]
        if len(lists) != 1:
            raise UserError(f"path {path!r} is an object with {len(lists)} lists; give a list of rows, or one list")
        start = lists[0]
    elif not isinstance(document, list):
        raise UserError(f"path {path!r} is a JSON {type(document).__name__}; give a list of objects")
    line, counted = 1, 0
    at = _skip_gap(text, start + 1)
    while text[at] != "]":
        value, end = decoder.raw_decode(text, at)
        line, counted = line + text.count("\n", counted, at), at
        yield _json_row(path, line, text[at:end], value)
        at = _skip_gap(text, end)


def _members(decoder: json.JSONDecoder, text: str, at: int) -> Iterator[tuple[int, object]]:
    """Where each value of an object starts, and the value; `at` is just inside the brace of valid JSON."""
    while text[at := _skip_gap(text, at)] != "}":
        _, at = decoder.raw_decode(text, at)
        start = _skip_gap(text, at)
        value, at = decoder.raw_decode(text, start)
        yield start, value


def _skip_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    assert gap is not None
    return gap.end()


def _table(path: str, **dialect: Any) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), **dialect)
    header: list[str] | None = None
    line = 1
    try:
        for values in reader:
            here, line = line, reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = [name.strip() for name in values]
                if is_broken("".join(header)):
                    raise UserError(f"{path}:{here}: the header {NOT_UTF8}; save the file as UTF-8")
                continue
            fault = f"has {len(values)} values for {len(header)} columns" if len(values) != len(header) else ""
            raw = reader.dialect.delimiter.join(values)
            columns = dict(zip(header, values, strict=False))
            yield Row(file=path, line=here, raw=raw, columns=columns, fault=fault)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: cannot be read as CSV ({error}); mend its quotes, or use JSONL") from None


def _parquet(path: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(_file(path))
    except pyarrow.ArrowException as error:
        raise UserError(f"path {path!r} cannot be read as Parquet ({_first_line(error)}); correct it") from None
    return _numbered(path, table.to_pylist())


def _aligned(path: str, target_path: str, pair: tuple[str, str]) -> Iterator[Row]:
    files = [_text(name).removesuffix("\n").split("\n") for name in (path, target_path)]
    if len(files[0]) != len(files[1]):
        raise UserError(
            f"path {path!r} has {len(files[0])} lines and target_path {target_path!r} has {len(files[1])}; "
            "line n of one must answer line n of the other"
        )
    for line, texts in enumerate(zip(*files, strict=True), start=1):
        raw = "\t".join(texts)
        columns = dict(zip(pair, texts, strict=True))
        yield Row(file=path, line=line, raw=raw, columns=columns)


def _hub(source: Source) -> Iterator[Row]:
    import datasets

    name = source.path.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, source.config, split=source.split, revision=source.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"path {source.path!r} (config {source.config}, split {source.split}, revision {source.revision}) "
            f"cannot be loaded as a Hugging Face dataset: {_first_line(error)}; correct these fields"
        ) from None
    return _numbered(source.path, rows)


def _numbered(path: str, rows: Any) -> Iterator[Row]:
    for number, columns in enumerate(rows, start=1):
        yield Row(file=path, line=number, raw=json.dumps(columns, ensure_ascii=False, default=str), columns=columns)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


_READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": functools.partial(_table, strict=True),
    ".tsv": functools.partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".parquet": _parquet,
}
