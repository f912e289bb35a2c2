"""What is in a file of a user's, before anybody says what it is: columns, scripts, lengths, rows that are alike."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from fontTools import unicodedata

from lsemrl.data.columns import names_in, text_of, value_of
from lsemrl.data.formats import TABLES
from lsemrl.data.rows import Row
from lsemrl.data.sources import Source, read_rows, texts_of
from lsemrl.data.splits import content_key
from lsemrl.languages import Language, is_name, is_same, usual_profile
from lsemrl.layouts import format_of
from lsemrl.scripts import scripts_of
from lsemrl.types import UserError

_SHOWN, _LEAST = 2000, 0.05
_NAME, _LONGEST_NAME = 20, 60
"""Characters that the name of a column hardly, and never, has more of."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The texts of one column.

    Attributes:
        name: As `records` takes it, with dots where it lies within others.
        filled: In how many rows it is a text that is not blank.
        scripts: Unicode names of scripts -> share of the letters, the most frequent first.
        mean_length: Characters.
        keys: What equal texts have in common, of each row.
    """

    name: str
    filled: int
    scripts: dict[str, float]
    mean_length: float
    keys: tuple[int, ...] = field(repr=False)

    def share(self, language: Language) -> float:
        """The share of letters in the scripts of `language`."""
        return sum(self.scripts.get(script, 0.0) for script in language.scripts)

    def __str__(self) -> str:
        found = ", ".join(f"{share:.0%} {script}" for script, share in self.scripts.items() if share >= _LEAST)
        return f"{self.name} ({found or 'no letters'})"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A file.

    Attributes:
        rows: How many can be read.
        faults: Places and reasons of those that cannot.
        columns: Those that hold texts.
        header: Whether the first line of a table names them.
        table: Whether it is one that may lack that line.
    """

    rows: int
    faults: tuple[str, ...]
    columns: tuple[Column, ...]
    header: bool = True
    table: bool = False


def survey(
    source: Source,
    languages: Sequence[str | None] = (),
    named: Sequence[str | None] = (),
    option: str = "--source-column and --target-column",
) -> Survey:
    """Look into `source`; where the first line of two columns is beyond doubt a row, it is taken for one.

    Args:
        source: What to read.
        languages: Those that are looked for, or the names of their columns: what else lies beside their texts
            (train.bak) is not read.
        named: What the user calls columns: a first line that has one of these, or what a language is called, holds
            names.
        option: Where the user names columns.

    Raises:
        UserError: It cannot be read, nor can any of its rows, is the embedded world, or its first line may as well be
            a row as the names of columns.
    """
    if source.world_split is not None:
        raise UserError(f"path is {source.path!r}, the embedded world, which is no file; name one of your own")
    rows = read_rows(source, texts_of(source, languages))
    sound = [row for row in rows if not row.fault]
    if not sound:
        raise UserError(
            f"none of the {len(rows):,} rows of {source.path!r} can be read, and the first, {rows[0].place}, "
            f"{rows[0].fault}; mend the file"
        )
    names = list(dict.fromkeys(itertools.chain.from_iterable(names_in(row.columns) for row in sound[:_SHOWN])))
    columns = tuple(column for name in names if (column := _column(name, sound)).filled)
    called = {column.name for column in columns if any(is_name(column.name, code) for code in languages if code)}
    doubtful = [] if called | {column.name for column in columns} & set(named) else _like_texts(source, columns)
    if doubtful:
        beyond_doubt = max(len(column.name) for column in doubtful) > _NAME
        if not (beyond_doubt and len(columns) == 2 and all(len(each.name) >= each.mean_length / 2 for each in columns)):
            between = "<TAB>" if format_of(source.path) == ".tsv" else ","
            names_line = between.join(f"column_{number}" for number, _ in enumerate(sound[0].columns, start=1))
            raise UserError(
                f"the first line of {source.path!r} may be a row or the names of columns; if it is a row, put a line "
                f"such as {names_line} before it; if it is names, give {option}"
            )
        return survey(replace(source, header=False))
    return Survey(
        rows=len(sound),
        faults=tuple(f"{row.place}: {row.fault}" for row in rows if row.fault),
        columns=columns,
        header=source.header,
        table=format_of(source.path) in TABLES,
    )


def alike(columns: Iterable[Column]) -> int:
    """How many rows say in all of `columns` what one before them says."""
    keys = list(zip(*(column.keys for column in columns), strict=True))
    return len(keys) - len(set(keys))


def profile_of(code: str, column: Column) -> Language:
    """What `code` is like: the profile of its tag where its texts are written so, else one by their letters.

    Raises:
        UserError: The texts hold no letters.
    """
    usual = usual_profile(code)
    if usual and usual.threshold and column.share(usual) >= usual.threshold:
        return usual
    scripts = tuple(script for script, share in column.scripts.items() if share >= 0.2)
    if not scripts:
        raise UserError(
            f"column {column.name!r} holds no letters, by which {code!r} could be told; name another column"
        )
    # Foreign names and the like stay below what the texts themselves hold of other letters.
    own = sum(column.scripts[script] for script in scripts)
    threshold = round(min(0.8, max(0.5, own - 0.1)), 2)
    return Language(code=code, scripts=scripts, threshold=threshold)


def find_column(
    found: Survey, code: str, asked: str | None, besides: Sequence[str] = (), option: str = "--target-column"
) -> Column:
    """The column of texts in a language.

    Args:
        found: The file.
        code: The language's.
        asked: The column that the user names, if any.
        besides: Columns that are taken.
        option: Where the user names one.

    Raises:
        UserError: There is none, or several could be.
    """
    free = [column for column in found.columns if column.name not in besides]
    listed = "; ".join(map(str, free)) or "none that holds text"
    nameless = found.table and found.header and len(found.columns) == 2
    row = "; if the first line is a row, put a line with names before it" if nameless else ""
    if asked is not None:
        named = next((column for column in free if column.name == asked), None)
        if named is None:
            raise UserError(f"{option} is {asked!r}, and there is no such column; give one of: {listed}{row}")
        return named
    for matches in (operator.eq, is_same, is_name):
        found_by = [column for column in free if matches(column.name.rpartition(".")[2], code)]
        if len(found_by) == 1:
            return found_by[0]
    profile = usual_profile(code)
    alike = [column for column in free if profile and column.share(profile) >= 0.5]
    if len(alike) == 1:
        return alike[0]
    if len(found.columns) == 1:
        only = found.columns[0].name
        sign = next((sign for sign in ";|,\t" if sign in only), "")
        apart = f"it seems to be divided by {sign!r}, but .csv is read by commas and .tsv by tabs" if sign else ""
        raise UserError(
            f"which column holds {code!r} cannot be told, for there is only one, {only!r}; "
            f"{apart or 'give a file with another'}"
        )
    raise UserError(f"which column holds {code!r} cannot be told; give {option}, one of: {listed}{row}")


def _column(name: str, rows: Sequence[Row]) -> Column:
    every = [_text(row, name) for row in rows]
    texts = [text for text in every if text]
    return Column(
        name=name,
        filled=len(texts),
        scripts=scripts_of(*texts[:_SHOWN]),
        mean_length=sum(map(len, texts)) / max(len(texts), 1),
        keys=tuple(hash(content_key(text)) for text in every),
    )


def _text(row: Row, name: str) -> str:
    try:
        value = value_of(row.columns, name)
    except ValueError:
        return ""
    return (text_of(value) or "").strip()


def _like_texts(source: Source, columns: Sequence[Column]) -> list[Column]:
    """Columns whose name is in the script that the texts below it are in, unless that is Latin, or longer than any."""
    if not source.header or format_of(source.path) not in TABLES:
        return []
    found = []
    for column in columns:
        main = next(iter(column.scripts), "Latin")
        own = {unicodedata.script_name(unicodedata.script(each)) for each in column.name if each.isalpha()}
        if len(column.name) > _LONGEST_NAME or (main != "Latin" and main in own):
            found.append(column)
    return found
