"""CMRC 2018 for lm-evaluation-harness: our reader, our prompt and the official scorer behind its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from lsemrl import micro
from lsemrl.data.comprehension import TASK
from lsemrl.data.records import Record, read_records, to_record
from lsemrl.data.sources import Source
from lsemrl.data.task import MicroRows
from lsemrl.errors import UserError
from lsemrl.metrics import cmrc as official
from lsemrl.metrics.corpus import means_of


def records(cmrc: str) -> list[Record]:
    """The questions in `cmrc`: a JSON file nested as the release is, a flat JSONL file, or "micro".

    Raises:
        UserError: There is no such file, or it holds no such questions.
    """
    if cmrc == micro.NAME:
        rows = MicroRows()
        drawn = TASK.micro("test", rows.test, rows.seed)
        return [to_record(row, "micro:test", TASK.fields) for row in drawn]
    try:
        found, _ = read_records(Source(path=cmrc), TASK.fields)
    except UserError as error:
        raise UserError(f"cmrc is {cmrc!r}, which cannot be used: {error}") from None
    return found


def read(cmrc: str | None = None, **_: Any) -> dict[str, Dataset]:
    """What the harness calls for its data set, with the metadata it was given.

    Raises:
        UserError: No file was named, or it cannot be used.
    """
    if cmrc is None:
        raise UserError("cmrc is null, and cmrc2018 is read from a file of yours; name its JSON, or micro")
    # Without their ids, which may be where they lie: the harness tells questions apart by all that is in them.
    rows = [{**record.inputs, "answers": list(record.targets)} for record in records(cmrc)]
    return {"test": Dataset.from_list(rows)}


def prompt(doc: Mapping[str, Any]) -> str:
    """The question as our own evaluation asks it."""
    return TASK.template.format_map(doc)


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Exact match, F1 and their average in [0, 1], and the answer's characters, for the one answer in `results`."""
    means = means_of(official.score(results, [doc["answers"]]))
    return {name: means[name] for name in ("em", "f1", "average", "answer_length")}
