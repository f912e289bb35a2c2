"""Validates rows into records; a row that cannot be used is named as file:line with its field and the reason.

Text is kept as it was written but for white space at its ends: normalising it would change what is learned and scored.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex

from lsemrl.canonical import canonical
from lsemrl.data.choices import chosen, fault_of_choices, labels_of, listed
from lsemrl.data.columns import names_in, value_of
from lsemrl.data.rows import Row, told_apart
from lsemrl.data.skipped import SkippedRows, check_skipped
from lsemrl.data.sources import FORMATS, Source, alone, read_rows
from lsemrl.layouts import format_of
from lsemrl.reading import fault_of, user_path
from lsemrl.types import UserError

_MOST_NAMED = 40
_SEEN = regex.compile(r"[^\p{Z}\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}]")
Flatten = Callable[[dict[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What is read of a row.

    Attributes:
        inputs: The text fields that it must have.
        target: The field of the output: a text or a list of accepted texts, also as [{"text": ...}] or {"text": [...]};
            "" for rows without outputs, which may then be the lines of one text file.
        flatten: Turns a nested row into flat ones, raising ValueError with the reason if it cannot.
        choices: The field of what there is to choose from, if any; the output is then one of it (see `choices.chosen`).
        in_parts: Whether an input may be in several columns, which are joined with an empty line between those that
            are filled in; otherwise it has one.
    """

    inputs: tuple[str, ...]
    target: str
    flatten: Flatten | None = None
    choices: str = ""
    in_parts: bool = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """One valid row.

    Attributes:
        id: Its own id, or its place where it has none or that of another row.
        place: That in the file (see `rows.Row.place`), with the row's own id if it has one.
        inputs: What the policy is shown, by field, in the task's order.
        targets: The accepted outputs; none where the rows were read without.
        choices: What there is to choose from, the target among it; empty where the task gives no choice.
    """

    id: str
    place: str
    inputs: dict[str, str]
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()


class _BadRow(ValueError):
    """Why one row cannot be used."""


def read_records(source: Source, fields: Fields, lists: SkippedRows | None = None) -> tuple[list[Record], int]:
    """Read and validate every row of `source`.

    Args:
        source: Any but the embedded world.
        fields: What is read of a row.
        lists: Those of the sources that are read beside this one.

    Returns:
        The records, and how many rows were skipped; those are in `source.skipped`.

    Raises:
        UserError: Nothing to read, a field that no row has, or a bad row where `on_bad_row` is error.
    """
    records, skipped = [], []
    for row in read_fields(source, fields):
        try:
            records.append(_record(row, source, fields))
        except _BadRow as reason:
            if source.on_bad_row == "error":
                raise UserError(f"{_place(row, source)}: {reason}; mend the row, or set on_bad_row to skip") from None
            skipped.append({"file": row.file, "line": row.line, "reason": str(reason), "raw": row.raw})
    if source.on_bad_row == "skip":
        (lists or SkippedRows()).add(source, skipped)
    if not records:
        first = skipped[0]
        raise UserError(
            f"every row of {source.path!r} is bad ({len(skipped)} are listed in {str(source.skipped)!r}), the first "
            f"because line {first['line']} {first['reason']}; correct the file or columns"
        )
    # A document's id may be that of each of its sentences, by which no row could be told from another.
    often = Counter(record.id for record in records)
    return [replace(each, id=each.place) if often[each.id] > 1 else each for each in records], len(skipped)


def read_fields(source: Source, fields: Fields) -> list[Row]:
    """Read the rows of `source`, some of which have each field; whether one can be used is not looked at.

    Args:
        source: Any but the embedded world.
        fields: What is read of a row.

    Raises:
        UserError: Nothing to read, or a field that no row has.
    """
    needed = (*fields.inputs, *filter(None, (fields.target, fields.choices)))
    names = ("id", *needed)
    unknown = [name for name in source.columns if name not in names]
    if unknown:
        raise UserError(f"columns names the field {unknown[0]!r}; the fields of this task are {', '.join(names)}")
    _check_two(source, fields)
    check_skipped(source)
    rows = read_rows(source if fields.target else alone(source), needed)
    if fields.flatten is not None:
        rows = list(told_apart(flat for row in rows for flat in _flat(row, fields.flatten)))
    _check_columns(source, rows, (*needed, *(["id"] if "id" in source.columns else [])))
    return rows


def to_record(values: dict[str, Any], place: str, fields: Fields) -> Record:
    """A record of values that are known to be good, as the embedded world writes them."""
    return _record(Row(file=place, line=0, raw="", columns=values), Source(), fields)


def _flat(row: Row, flatten: Flatten) -> Iterator[Row]:
    if row.fault:
        yield row
        return
    try:
        flats = flatten(row.columns)
    except (ValueError, RecursionError) as reason:
        yield replace(row, fault=str(reason))
        return
    for columns in flats:
        nested = columns is not row.columns
        yield replace(row, columns=columns, raw=json.dumps(columns, ensure_ascii=False) if nested else row.raw)


def _check_two(source: Source, fields: Fields) -> None:
    """Refuse a source in which the output would be the input, or a line of a table, or of no use."""
    inputs, target = fields.inputs, fields.target
    several = [*filter(None, (target,)), *(inputs if fields.in_parts else ())]
    if not target and source.target_path is not None:
        raise UserError(f"target_path is {source.target_path!r}, but outputs are not read here; leave it out")
    for name in (*source.columns, *inputs):
        if len(source.columns_of(name)) != 1 and (name not in several or not source.columns_of(name)):
            raise UserError(
                f"columns give {name!r} {source.columns[name]!r}; name one column"
                + (f" (several only of {' or '.join(map(repr, several))})" if several else "")
            )
    for name in inputs:
        for column in set(source.columns_of(name)).intersection(source.columns_of(target)):
            raise UserError(f"columns give {name!r} and {target!r} the same column {column!r}; name one for each")
    if source.target_path is None:
        return
    for path in (source.path, source.target_path):
        if (kind := format_of(path)) in FORMATS:
            raise UserError(
                f"target_path is {source.target_path!r}, but {path!r} is no plain text: rows of {kind} "
                "hold every field, so that path alone names them"
            )
    if len({os.path.realpath(user_path(path)) for path in (source.path, source.target_path)}) == 1:
        raise UserError(f"target_path is {source.target_path!r}, which is path itself; name the file of the answers")


def _check_columns(source: Source, rows: list[Row], fields: tuple[str, ...]) -> None:
    whole = [row.columns for row in rows if not row.fault]
    if not whole:
        return  # every row is bad, and each says why
    for name, column in [(field, column) for field in fields for column in source.columns_of(field)]:
        if not any(_holds(columns, column) for columns in whole):
            present = list(dict.fromkeys(each for columns in whole for each in names_in(columns)))
            raise UserError(
                f"no row of {source.path!r} has the column {column!r} for the field {name!r}; its columns are "
                f"{', '.join(map(repr, present[:_MOST_NAMED]))}: name the right one in columns "
                f"(columns: {{{name}: ...}})"
            )


def _holds(columns: dict[str, Any], column: str) -> bool:
    try:
        return column in columns or value_of(columns, column) is not None
    except ValueError:
        return True  # and the row will say what is wrong with it


def _record(row: Row, source: Source, fields: Fields) -> Record:
    if fault := row.fault or fault_of(row.raw):
        raise _BadRow(fault)

    def read(name: str, column: str = "") -> tuple[str, Any]:
        column = column or source.columns_of(name)[0]
        label = f"field {name!r}" + (f" (column {column!r})" if column != name else "")
        try:
            return label, value_of(row.columns, column)
        except ValueError as reason:
            raise _BadRow(f"{label} {reason}") from None

    label, own = read("id")
    if own is not None and (not isinstance(own, str | int) or isinstance(own, bool)):
        raise _BadRow(f"{label} is {type(own).__name__}, not text or a whole number")
    name = "" if own is None else str(own).strip()
    if fault := fault_of(name):
        raise _BadRow(f"{label} {fault}")
    options, labels = _options(*read(fields.choices)) if fields.choices else ((), [])
    shown = {
        field: "\n\n".join(_text(*each) for each in _filled([read(field, own) for own in source.columns_of(field)]))
        for field in fields.inputs
    }
    targets: tuple[str, ...] = ()
    if fields.choices:
        targets = (_right(*read(fields.target), options, labels),)
    elif fields.target:
        targets = _accepted([read(fields.target, column) for column in source.columns_of(fields.target)])
    return Record(id=name or row.place, place=_place(row, source), inputs=shown, targets=targets, choices=options)


def _place(row: Row, source: Source) -> str:
    """Where it is, and the row's own id."""
    own = row.columns.get(source.columns_of("id")[0])
    return f"{row.place} ({own})" if isinstance(own, str | int) and not fault_of(str(own)) else row.place


def _text(label: str, value: object) -> str:
    if value is None:
        raise _BadRow(f"{label} is missing")
    if not isinstance(value, str):
        raise _BadRow(f"{label} is {type(value).__name__}, not text")
    if fault := fault_of(value):
        raise _BadRow(f"{label} {fault}")
    text = value.strip()
    if not text:
        raise _BadRow(f"{label} is empty")
    if not _SEEN.search(text):
        raise _BadRow(f"{label} holds nothing that is seen, only such as U+{ord(text[0]):04X}")
    return text


def _options(label: str, value: object) -> tuple[tuple[str, ...], list[str]]:
    """What there is to choose from, and what it is called."""
    options, labels = _texts(label, listed(value)), labels_of(value)
    if fault := fault_of_choices(options):
        raise _BadRow(f"{label} {fault}")
    if len(labels) not in (0, len(options)):
        raise _BadRow(f"{label} has {len(labels)} labels for {len(options)} choices")
    if len(set(labels)) < len(labels):
        raise _BadRow(f"{label} has a label twice among {', '.join(labels)}")
    return options, labels


def _right(label: str, value: object, options: tuple[str, ...], labels: list[str]) -> str:
    """The choice that `value` means."""
    try:
        return options[chosen(value, options, labels)]
    except ValueError as reason:
        raise _BadRow(f"{label} {reason}") from None


def _filled(given: Sequence[tuple[str, object]]) -> Sequence[tuple[str, object]]:
    """The columns that are filled in; the first where none is, which says so."""
    filled = [
        (label, value)
        for label, value in given
        if not (value is None or (isinstance(value, str) and not value.strip()))
    ]
    return filled or given[:1]


def _accepted(given: Sequence[tuple[str, object]]) -> tuple[str, ...]:
    """The texts of every column that is filled in, each once, as it was written first."""
    texts: dict[str, str] = {}
    for label, value in _filled(given):
        for text in _texts(label, value):
            texts.setdefault(canonical(text), text)
    return tuple(texts.values())


def _texts(label: str, value: object) -> tuple[str, ...]:
    """One text or several, in the forms that question answering files use."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list | tuple):
        return (_text(label, value),)
    if not value:
        raise _BadRow(f"{label} is empty")
    return tuple(_text(label, item.get("text") if isinstance(item, dict) else item) for item in value)
