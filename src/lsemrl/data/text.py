"""Plain text in a language that the base model knows, read as beginnings and what follows them."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lsemrl import micro
from lsemrl.data.columns import text_of, value_of
from lsemrl.data.sources import LINES, Source, alone, read_rows
from lsemrl.data.splits import evenly
from lsemrl.layouts import format_of
from lsemrl.micro import corpus
from lsemrl.reading import fault_of
from lsemrl.types import Example, UserError

OnBadRow = Literal["error", "skip"]
_SENTENCE = re.compile(r".*?(?:[。！？!?།\n]+|\.(?=\s))", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class PlainText:
    """Where plain text comes from, and how much of each is used."""

    path: str = micro.NAME
    """A .txt file with one text a line, whatever else `data.source.path` names, or "micro" for the held-out
    Chinese of the embedded world."""
    column: str = "text"
    """The column of the text, where the file has columns; dots lead into nested ones."""
    rows: int = 100
    """Take this many texts, at even distances over the file; fewer where it has fewer."""
    max_characters: int = 1000
    """Cut longer texts here."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be used, or leave it out and say how many."""

    def __post_init__(self) -> None:
        if self.on_bad_row not in get_args(OnBadRow):
            raise UserError(f"text.on_bad_row is {self.on_bad_row!r}; choose error or skip")
        for name, least in (("rows", 1), ("max_characters", 2)):
            if getattr(self, name) < least:
                raise UserError(f"text.{name} is {getattr(self, name)}; give {least} or more")

    def examples(self) -> list[Example]:
        """Each text as its first sentence and what follows; one of a single sentence is cut in the middle.

        Texts of fewer than two characters are left out.

        Raises:
            UserError: The file cannot be read, holds a broken row, or holds no text.
        """
        examples = []
        for name, text in self._texts():
            text = text.strip()[: self.max_characters]
            if len(text) > 1:
                sentence = _SENTENCE.match(text)
                cut = sentence.end() if sentence else len(text)
                cut = cut if cut < len(text) else len(text) // 2
                examples.append(Example(id=name, prompt=text[:cut], source=text[:cut], references=(text[cut:],)))
        if not examples:
            raise UserError(f"text.path {self.path!r} holds no text; name a file with at least one")
        return evenly(examples, self.rows)

    def _texts(self) -> list[tuple[str, str]]:
        if self.path == micro.NAME:
            return [(str(row["id"]), str(row["text"])) for row in corpus.chinese_text("test", self.rows, seed=0)]
        return read_texts(self.path, self.column, on_bad_row=self.on_bad_row)


def read_texts(path: str, column: str, *, header: bool = True, on_bad_row: OnBadRow = "error") -> list[tuple[str, str]]:
    """Every text of a file, with its place; of a text file blank lines too.

    Args:
        path: A .txt file with one text a line, or whatever else `Source.path` names.
        column: Where the text is, where the file has columns; of a list of accepted ones the first is taken.
        header: As in `Source`.
        on_bad_row: Whether a broken row is an error, or left out, with a warning of how many.

    Raises:
        UserError: The file cannot be read, or holds a broken row.
    """
    source = alone(Source(path=path) if format_of(path) == LINES else Source(path=path, header=header))
    rows = read_rows(source, (column,))
    texts, bad = [], 0
    for row in rows:
        fault = row.fault or fault_of(row.raw)
        try:
            text = text_of(value_of(row.columns, column))
        except ValueError as reason:
            text, fault = None, fault or f"column {column!r} {reason}"
        fault = fault or ("" if text is None else fault_of(text))
        if not fault and (text is None or not (text.strip() or source.target_path)):
            fault = f"has no text in the column {column!r}"
        if fault and on_bad_row == "error":
            raise UserError(f"{row.place}: {fault}; mend the row, name another column, or set on_bad_row to skip")
        if fault or text is None:
            bad += 1
            continue
        texts.append((f"{Path(row.file).name}:{row.at}", text))
    if bad:
        told = f"{bad:,} of {len(rows):,} rows of {path} have no text in {column!r} and are left out"
        warnings.warn(told, stacklevel=2)
    return texts
