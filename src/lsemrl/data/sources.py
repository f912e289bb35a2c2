"""Where rows come from, and how their columns are named."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from lsemrl import micro
from lsemrl.data.formats import HUB, READERS, TABLES, Row, check_path, read_aligned, read_hub
from lsemrl.micro.grammar import Split
from lsemrl.reading import Unreadable, read_lines, user_path
from lsemrl.types import UserError

SKIPPED = {"file", "line", "reason", "raw"}
"""What is written of a row left out."""


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
    """Field of the task -> column of the file, where the two differ. Dots lead into nested columns
    (zh: translation.zh), and into turns by their role (zh: messages.user, bo: messages.assistant)."""
    header: bool = True
    """Whether the first line of a .csv or .tsv file names the columns; otherwise they are called 1, 2, …"""
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
        if not self.header and Path(self.path).suffix.lower() not in TABLES:
            raise UserError(f"header is false, but path is {self.path!r}, which is no .csv or .tsv file; leave it out")
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
        return user_path(self.skipped_path or f"{beside}.skipped.jsonl")


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
        listed = all(isinstance(row, dict) and row.keys() == SKIPPED for row in rows)
    except (ValueError, RecursionError) as reason:
        if isinstance(reason, Unreadable):
            raise UserError(f"{told}which cannot be written ({reason}); name another file") from None
        listed = False
    if not listed:
        raise UserError(f"{told}which holds something else already, and would be replaced; name another file")


def check_source(source: Source) -> None:
    """Refuse files that are not there or of no known format; a dataset of the hub is only looked for when it is read.

    Raises:
        UserError: The first of them.
    """
    if source.world_split is not None or source.path.startswith(HUB):
        return
    if source.target_path is None and Path(source.path).suffix.lower() not in READERS:
        formats = ", ".join(READERS)
        raise UserError(
            f"path is {source.path!r}, whose format is unknown; name a file that ends in {formats}, "
            "two text files with path and target_path, hub:owner/name, or micro"
        )
    for path in (source.path, source.target_path):
        if path is not None:
            check_path(path)


def read_rows(source: Source, pair: tuple[str, str] | None) -> list[Row]:
    """Read every row of `source`.

    Args:
        source: Any but the embedded world.
        pair: The fields that two aligned text files hold; None if the task has more than two.

    Raises:
        UserError: No such file, an empty one, an unknown format, or one that cannot be read as its name says.
    """
    check_source(source)
    if source.path.startswith(HUB):
        rows = read_hub(source.path, source.config, source.split, source.revision)
    elif source.target_path is not None:
        if pair is None:
            raise UserError(f"target_path is {source.target_path!r}, but this task has more than two fields; use JSONL")
        rows = read_aligned(source.path, source.target_path, pair)
    else:
        suffix = Path(source.path).suffix.lower()
        rows = TABLES[suffix](source.path, source.header) if suffix in TABLES else READERS[suffix](source.path)
    read = list(rows)
    if not read:
        raise UserError(f"path {source.path!r} holds no rows; give a file with at least one")
    return read
