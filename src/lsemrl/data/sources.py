"""Where rows come from, and how their columns are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal, cast, get_args

from lsemrl import micro
from lsemrl.data.aligned import read_aligned
from lsemrl.data.folders import read_hub, read_parquets, read_saved
from lsemrl.data.formats import READERS, TABLES
from lsemrl.data.rows import Row, check_path, told_apart
from lsemrl.data.tmx import TMX, read_tmx
from lsemrl.languages import is_same
from lsemrl.layouts import HUB, PACKED, Layout, format_of, layout_of, name_among
from lsemrl.micro.grammar import Split
from lsemrl.reading import user_path
from lsemrl.types import UserError

FORMATS = (*READERS, TMX)
"""Ends of the names of files that hold whole rows."""
LINES = ".txt"
"""That of a text file, of which a line is a row of one field."""
_TEXTS = {".jsonl", ".json", ".csv", ".tsv", ".tmx", ".txt"}
_SMALL = 4_000_000
"""Bytes."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from, and how its columns are named.

    Example:
        `Source(path="news.jsonl", columns={"title": "headline"})`
    """

    path: str = "micro"
    """A .jsonl, .json, .csv, .tsv, .parquet or .tmx file, also packed (.gz, .zst); a text file with one row a line,
    beside `target_path`; what the names of such files begin with (bible.bo-zh for bible.bo-zh.bo and bible.bo-zh.zh);
    a folder of one for each language (bod_Tibt.dev), of Parquet files, or that `datasets` saved; `hub:owner/name` for a
    Hugging Face dataset; or `micro` for the embedded world (`micro:test` for one split)."""
    target_path: str | None = None
    """With a text file in `path`: the file whose lines answer its lines (path: a.zh, target_path: a.bo)."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Field of the task -> column of the file, where the two differ. Dots lead into nested columns
    (zh: translation.zh), and into turns by their role (zh: messages.user, bo: messages.assistant). Of outputs also a
    list (bo: [first, second]): each that is filled in is an accepted one. Of inputs too, but for translation: those
    that are filled in are one text, with an empty line between them (prompt: [instruction, input])."""
    header: bool = True
    """Whether the first line of a .csv or .tsv file names the columns; otherwise they are called 1, 2, …"""
    config: str | None = None
    """Configuration of a Hugging Face dataset."""
    split: str = "train"
    """Split of a Hugging Face dataset, or of a folder that holds several."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face dataset."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a row that cannot be used, or leave it out, count it and write it to `skipped_path`."""
    skipped_path: str | None = None
    """JSONL file for the rows left out, which sources may share; by default `path` with `.skipped.jsonl` added."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path is empty; name a file, hub:owner/name, or micro")
        if self.world_split and self.world_split not in get_args(Split):
            raise UserError(f"path is {self.path!r}; the embedded world's splits are {', '.join(get_args(Split))}")
        if self.on_bad_row not in ("error", "skip"):
            raise UserError(f"on_bad_row is {self.on_bad_row!r}; choose error or skip")
        if not self.header and format_of(self.path) not in TABLES:
            raise UserError(f"header is false, but path is {self.path!r}, which is no .csv or .tsv file; leave it out")
        for name in ("config", "revision"):
            if getattr(self, name) is not None and not self.path.startswith(HUB):
                raise UserError(f"{name} is {getattr(self, name)!r}, but path {self.path!r} is no {HUB}; leave it out")
        one = self.world_split is not None or (self.of_files and format_of(self.path) in FORMATS)
        if self.split != "train" and one:
            raise UserError(f"split is {self.split!r}, but path {self.path!r} has no splits; leave it out")
        if self.target_path is not None and not self.of_files:
            raise UserError(f"target_path is {self.target_path!r}, but path {self.path!r} is no file; leave it out")

    @property
    def world_split(self) -> Split | Literal[""] | None:
        """Of the embedded world: the split named, "" for the whole of it; None for any other source."""
        world, _, split = self.path.partition(":")
        return cast(Split, split) if world == micro.NAME else None

    @property
    def of_files(self) -> bool:
        """Whether its rows lie in files or folders that are read here: not in the embedded world or on the hub."""
        return self.world_split is None and not self.path.startswith(HUB)

    def columns_of(self, field: str) -> tuple[str, ...]:
        """The columns that hold `field`: one, but where outputs are in several."""
        found = self.columns.get(field, field)
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def skipped(self) -> Path:
        """The file for the rows left out."""
        hub = self.path.startswith(HUB)
        beside = self.path.removeprefix(HUB).replace("/", "--") if hub else self.path.rstrip("/")
        return user_path(self.skipped_path or f"{beside}.skipped.jsonl")


def check_source(source: Source) -> None:
    """Refuse files that are not there or of no known format; a dataset of the hub is only looked for when it is read.

    Raises:
        UserError: The first of them.
    """
    if not source.of_files:
        return
    if source.target_path is not None:
        check_path(source.path)
        check_path(source.target_path)
    elif _layout(source) is None:
        if format_of(source.path) not in FORMATS:
            raise UserError(
                f"path is {source.path!r}, whose format is unknown; name a file that ends in {', '.join(FORMATS)} (or "
                f"these with {' or '.join(PACKED)} behind), two text files with path and target_path, what the names "
                "of several begin with, a folder of them, hub:owner/name, or micro"
            )
        check_path(source.path)


def alone(source: Source) -> Source:
    """`source` for rows of one field: a text file as if it were aligned with itself, and anything else as it is."""
    if not source.of_files:
        return source
    kind = format_of(source.path)
    # As train.zh is, where it is one of two; a text file that is not there is missed by its name.
    text = kind == LINES or (kind not in FORMATS and user_path(source.path).is_file())
    return replace(source, target_path=source.path) if text else source


def is_small(source: Source) -> bool:
    """Whether its rows are text in one file, or two, that are read in a fifth of a second or so."""
    if not source.of_files:
        return False
    files = [user_path(name) for name in (source.path, source.target_path) if name is not None]
    if not all(file.is_file() and file.suffix in _TEXTS for file in files):
        return False
    return sum(file.stat().st_size for file in files) < _SMALL


def _layout(source: Source) -> Layout | None:
    return None if os.path.isfile(user_path(source.path)) else layout_of(source.path)


def texts_of(source: Source, languages: Sequence[str | None]) -> list[str] | None:
    """What files of texts by language are called that may be those of `languages`; None for all there is.

    That is where one of them is not known yet, or there is no file of it, and of any other source.
    """
    if not source.of_files or source.target_path is not None:
        return None
    layout = _layout(source)
    if layout is None or layout.kind != "texts":
        return None
    known = [language for language in languages if language is not None]
    found = [[name for name in layout.files if name == each or is_same(name, each)] for each in known]
    whole = known and len(known) == len(languages) and all(found)
    return list(dict.fromkeys(chain.from_iterable(found))) if whole else None


def read_rows(source: Source, fields: Sequence[str] | None) -> list[Row]:
    """Read every row of `source`.

    Args:
        source: Any but the embedded world.
        fields: What rows must have: of aligned text files and translation memories only these columns are read, also
            where a file names the language by another tag. None for all there is, as the files call it.

    Raises:
        UserError: No such file, an empty one, an unknown format, or one that cannot be read as its name says.
    """
    check_source(source)
    read = list(told_apart(_rows(source, fields)))
    if not read:
        raise UserError(f"path {source.path!r} holds no rows; give a file with at least one")
    return read


def _rows(source: Source, fields: Sequence[str] | None) -> Iterator[Row]:
    path, kind = source.path, format_of(source.path)
    if path.startswith(HUB):
        return read_hub(path, source.config, source.split, source.revision)
    columns = None if fields is None else [column for name in fields for column in source.columns_of(name)]
    if source.target_path is not None:
        pair = ("source", "target") if fields is None else fields
        pair = pair if len(pair) > 1 else (*pair, *pair)
        if len(pair) > 2:
            raise UserError(f"target_path is {source.target_path!r}, but this task has more than two fields; use JSONL")
        return read_aligned(dict(zip(pair, (path, source.target_path), strict=True)))
    layout = _layout(source)
    if layout is None:
        if kind == TMX:
            return read_tmx(path, columns)
        return TABLES[kind](path, source.header) if kind in TABLES else READERS[kind](path)
    match layout.kind:
        case "saved":
            return read_saved(path, source.split)
        case "parquet":
            return read_parquets(path, layout.files, source.split)
        case "texts":
            asked = {name: layout.files[name_among(layout.files, name, path)] for name in columns or layout.files}
            for column, file in asked.items():
                if (kind := format_of(file)) in FORMATS:
                    raise UserError(
                        f"path is {path!r}, and {file.name!r}, which {column!r} means there, is no plain text: rows of "
                        f"{kind} hold every field; give a text file for each language, or one file with both columns"
                    )
            return read_aligned({column: str(file) for column, file in asked.items()})
