"""Which columns of a user's file a task takes, by what is said of them and by what is in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from lsemrl.data.base import TaskData
from lsemrl.data.headline import HeadlineData
from lsemrl.data.instruction import InstructionData
from lsemrl.data.sources import Source, alone, check_source
from lsemrl.data.splits import Splits
from lsemrl.data.survey import Column, Survey, find_column, survey
from lsemrl.data.translation import TranslationData
from lsemrl.types import UserError

Task = Literal["translation", "headline", "instruction"]
CLASSES: dict[Task, Callable[..., TaskData]] = {
    "translation": TranslationData,
    "headline": HeadlineData,
    "instruction": InstructionData,
}
_USUAL: dict[Task, dict[str, tuple[str, ...]]] = {
    "headline": {"content": ("content", "article", "text"), "title": ("title", "headline")},
    "instruction": {
        "prompt": ("prompt", "instruction", "messages.user"),
        "response": ("response", "output", "messages.assistant"),
    },
}
"""The fields of a task, and the names that their columns usually have."""
_GOES_ON = {"instruction": "input"}
"""Usual names, and those of the columns in which their texts go on."""
Columns = dict[str, tuple[Column, ...]]
"""By the task's fields: those that a field is read from."""


def task_of(found: Survey, task: Task | None, from_: str | None) -> Task:
    """What is learned from a file: what the user says, else what its columns are named for, which is then said.

    Args:
        found: The file.
        task: As the user says.
        from_: The language that is translated from, which headlines and instructions have none of.
    """
    if task or from_:
        return task or "translation"
    names = {column.name for column in found.columns}
    for other, fields in _USUAL.items():
        usual = [next((name for name in each if name in names), "") for each in fields.values()]
        if all(usual):
            print(f"--task {other}, as the columns {' and '.join(usual)} say", file=sys.stderr)
            return other
    return "translation"


def columns_of_task(found: Survey, task: Task, from_: str, to: str, source: str | None, target: str | None) -> Columns:
    """The columns of what is asked and of the answers, by the task's fields.

    Args:
        found: The file.
        task: What is learned.
        from_: Of a translation, the language that is translated from.
        to: The language that is learned.
        source: The column of what is asked, if the user names it.
        target: That of the answers, likewise.

    Raises:
        UserError: One cannot be told.
    """
    if task == "translation":
        if from_ == to:
            raise UserError(f"--from and --to are both {to!r}; name two, or give --task headline or instruction")
        answers = find_column(found, to, target)
        return {from_: (find_column(found, from_, source, [answers.name], "--source-column"),), to: (answers,)}
    named = {column.name: column for column in found.columns}
    chosen: Columns = {}
    for (field, usual), asked in zip(_USUAL[task].items(), (source, target), strict=True):
        option = "--target-column" if chosen else "--source-column"
        if asked is not None:
            taken = [column.name for own in chosen.values() for column in own]
            chosen[field] = (find_column(found, field, asked, taken, option),)
            continue
        name = next((name for name in usual if name in named), None)
        if name is None:
            listed = "; ".join(map(str, found.columns))
            raise UserError(f"which column holds the {field} cannot be told; give {option}, one of: {listed}")
        more = named.get(_GOES_ON.get(name, ""))
        chosen[field] = (named[name], more) if more else (named[name],)
    return chosen


def renamed(columns: Columns) -> dict[str, str | list[str]]:
    """What a `Source` is told of columns."""
    names = {field: [column.name for column in own] for field, own in columns.items()}
    return {field: own if len(own) > 1 else own[0] for field, own in names.items() if own != [field]}


def sources_of(
    found: Survey, columns: Columns, path: str, validation: str | None, test: str | None
) -> dict[str, Source]:
    """A file, and those that are held out beside it, as a data module is told of them; see `held_out_of`."""
    rows = Source(path=path, columns=renamed(columns), header=found.header, on_bad_row="skip")
    given = {"source": path, "validation": validation, "test": test}
    return {name: replace(rows, path=own) for name, own in given.items() if own}


def fields_of(task: Task, columns: Columns) -> dict[str, str]:
    """What a data module is told of its fields, where they are named for languages."""
    return dict(zip(("source_field", "target_field"), columns, strict=True)) if task == "translation" else {}


def unread(found: Survey, columns: Columns) -> str:
    """A sentence on the texts of a file that are left out; "" where there are none, or which is plain.

    Of a translation memory one reads two languages; and turns of a conversation are read, or refused, by themselves.
    """
    taken = {"id", *(column.name for own in columns.values() for column in own)}
    if not columns.keys() <= {field for fields in _USUAL.values() for field in fields}:
        return ""
    turns = tuple(f"{name.rpartition('.')[0]}." for name in taken if "." in name)
    left = [each for each in found.columns if each.name not in taken and not each.name.startswith(turns)]
    listed = ", ".join(f"{each.name!r} ({each.filled:,} rows)" for each in left)
    return f"Columns that are not read: {listed}" if left else ""


def held_out_of(rows: int, validation: str | None, test: str | None) -> Splits:
    """How a file is divided, whether it is looked at or trained on: enough held out to see a difference, and no more.

    Args:
        rows: How many it has.
        validation: Where rows for validation are given, so that none are taken from it.
        test: Rows for the test, likewise.
    """

    def share(given: str | None, wanted: int) -> float:
        return 0.0 if given else round(min(max(wanted / rows, 0.01), 0.1), 3)

    return Splits(validation_fraction=share(validation, 100), test_fraction=share(test, 300))


def check_untranslated(path: str | None, task: Task) -> None:
    """Refuse sentences without a translation where nothing is translated.

    Raises:
        UserError: There are some.
    """
    if path and task != "translation":
        raise UserError(f"--untranslated is {path!r}, but the task is {task}; leave it out")


def untranslated_of(path: str, from_: str, column: str) -> Source:
    """Sentences without a translation: a text file, or rows of whatever columns.

    Args:
        path: Where they are.
        from_: The language of the sentences.
        column: That of the language in the rows that have a translation, which may be there too.

    Raises:
        UserError: There is no such file, or it cannot be told which column they are in.
    """
    source = Source(path=path, on_bad_row="skip")
    check_source(alone(source))
    if source.world_split is not None or alone(source).target_path:  # neither has columns to choose from
        return source
    option = "a text file"
    found = survey(source, (from_,), (column,), option)
    names = [each.name for each in found.columns]
    only = names[0] if len(names) == 1 else column if column in names else None
    name = only or find_column(found, from_, None, option=option).name
    return replace(source, columns={from_: name} if name != from_ else {}, header=found.header)
