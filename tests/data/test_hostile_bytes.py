"""Whatever bytes a file holds, reading it gives records or one sentence, and nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lsemrl.data.columns import names_in
from lsemrl.data.comprehension import TASK
from lsemrl.data.records import Fields, read_records
from lsemrl.data.sources import Source
from lsemrl.data.text import PlainText
from lsemrl.errors import UserError

ROWS = [
    {"id": "a", "zh": "老师买了书。", "bo": 'དགེ་རྒན།"', "n": 1, "in": {"x": [1, None]}},
    {"id": 2, "zh": "一，二", "bo": ["ཀ", "ཁ"], "messages": [{"role": "user", "content": "x"}]},
    {"id": "c", "paragraphs": [{"context": "c", "qas": [{"id": "q", "question": "?", "answers": {"text": ["a"]}}]}]},
]
SPICE = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"\\",
    b"\\ud800",
    b"\r",
    b"\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\t",
    b"NaN",
)
SPICE += (b"NaN", b"9" * 5_000, b"[" * 2_000, b"null", b"1e999", b'{"zh": 1, "zh": 2}', b'"content": {}', b"-", b": ")


def valid(suffix: str, path: Path) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    if suffix == ".json":
        return json.dumps({"version": 1, "data": ROWS}, ensure_ascii=False, indent=1).encode()
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"zh": "一", "bo": "ཀ", "t": {"a": [1]}}] * 20), path)
        return path.read_bytes()
    cell = "\t" if suffix == ".tsv" else ","
    return f'id{cell}zh{cell}bo\na{cell}"老师"{cell}ཀ\nb{cell}一{cell}ཁ\n'.encode()


def mutate(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            found[at:at] = chance.choice(SPICE)
        elif kind == 1:
            del found[at : at + chance.randint(1, 20)]
        elif kind == 2:
            found[at : at + 1] = bytes([chance.randrange(256)])
        else:
            del found[at if chance.random() < 0.3 else len(found) :]
    return bytes(found)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"])
def test_nothing_but_a_sentence_escapes(suffix: str, tmp_path: Path) -> None:
    path, chance = tmp_path / f"file{suffix}", random.Random(suffix)
    good = valid(suffix, path)
    read = 0
    for _ in range(80):
        path.write_bytes(mutate(good, chance))
        for bad_row in ("error", "skip"):
            try:
                if suffix == ".txt":
                    PlainText(path=str(path)).examples()
                else:
                    columns = {"zh": "messages.user"} if chance.random() < 0.2 else {}
                    source = Source(path=str(path), on_bad_row=bad_row, columns=columns)  # type: ignore[arg-type]
                    read_records(source, Fields(inputs=("zh",), target="bo"))
                read += 1
            except UserError as error:
                assert str(error)
        if suffix in (".jsonl", ".json"):
            try:
                read_records(Source(path=str(path), on_bad_row="skip"), TASK.fields)
            except UserError as error:
                assert str(error)
    assert read > 0  # so that the reading itself was tried, not only refusals


def test_names_of_a_hostile_row_end() -> None:
    assert names_in({"a": {"b": {"c": {"d": 1}}}}) == ["a", "a.b", "a.b.c"]
