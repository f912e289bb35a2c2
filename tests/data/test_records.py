"""A bad row is named with its line, field and reason; a skipped one is written down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsemrl.data.records import Fields, Record, read_records
from lsemrl.data.sources import Source
from lsemrl.types import UserError

Write = Callable[..., str]
GOOD = {"id": "a", "content": "ཀ", "title": "ཁ"}


def read(path: str, **settings: Any) -> tuple[list[Record], int]:
    return read_records(Source(path=path, **settings), Fields(inputs=("content",), target="title"))


def test_good_rows_keep_their_text(write: Write) -> None:
    decomposed = "e\u0301"
    rows = [{"id": 7, "content": f" {decomposed}\n二 ", "title": "ཁ"}, {"content": "x", "title": ["y", "z"]}]
    (first, second), skipped = read(path := write("rows.jsonl", rows))
    assert skipped == 0
    assert (first.id, first.inputs, first.targets) == ("7", {"content": f"{decomposed}\n二"}, ("ཁ",))
    assert (second.id, second.targets) == (f"{path}:2", ("y", "z"))


def test_an_id_that_several_rows_have_tells_none_from_another(write: Write) -> None:
    """As of sentences that have their document's: files of what a policy says to them would have two rows of one id."""
    texts = [("news-1", "a"), ("news-1", "b"), ("news-2", "c")]
    records, _ = read(path := write("rows.jsonl", [{"id": own, "content": text, "title": "x"} for own, text in texts]))
    assert [record.id for record in records] == [f"{path}:1 (news-1)", f"{path}:2 (news-1)", "news-2"]


@pytest.mark.parametrize("answers", [["a", "b"], [{"text": "a"}, {"text": "b"}], {"text": ["a", "b"]}])
def test_accepted_outputs_in_every_form(write: Write, answers: object) -> None:
    (record,), _ = read(write("rows.jsonl", [GOOD | {"title": answers}]))
    assert record.targets == ("a", "b")


def test_one_text_in_two_unicode_forms_is_accepted_once_as_it_was_written_first(write: Write) -> None:
    whole, parts = "caf\u00e9", "cafe\u0301"
    (record,), _ = read(write("rows.jsonl", [GOOD | {"title": [parts, whole, "b"]}]))
    assert record.targets == (parts, "b")


def test_column_map(write: Write) -> None:
    (record,), _ = read(
        write("rows.csv", "key,body,head\n1,ཀ,ཁ\n"), columns={"id": "key", "content": "body", "title": "head"}
    )
    assert (record.id, record.inputs, record.targets) == ("1", {"content": "ཀ"}, ("ཁ",))


BAD = [
    (b'{"id": "b", "content": "x"', "is not JSON"),
    (b"[1, 2]", "is list, not an object"),
    (b'{"id": "b", "content": "x"}', "field 'title' is missing"),
    (b'{"id": "b", "content": null, "title": "x"}', "field 'content' is missing"),
    (b'{"id": "b", "content": 3, "title": "x"}', "field 'content' is int, not text"),
    (b'{"id": "b", "content": "x", "title": " \\n"}', "field 'title' is empty"),
    (b'{"id": "b", "content": "x", "title": []}', "field 'title' is empty"),
    (b'{"id": "b", "content": "x", "title": ["y", 1]}', "field 'title' is int, not text"),
    (b'{"id": "b", "content": "x", "title": "\\ud800"}', "field 'title' holds bytes that are not UTF-8"),
    (b'{"id": "b", "content": "\xff", "title": "x"}', "holds bytes that are not UTF-8"),
    (b'{"id": 1.5, "content": "x", "title": "x"}', "field 'id' is float"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_row_stops_the_run_by_name(write: Write, line: bytes, reason: str) -> None:
    path = write("rows.jsonl", json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=f"{path}:2.*{reason}.*on_bad_row"):
        read(path)


def test_bad_rows_are_skipped_counted_and_written_down(write: Write, tmp_path: Path) -> None:
    lines = [json.dumps(GOOD, ensure_ascii=False).encode(), *(line for line, _ in BAD)]
    path = write("rows.jsonl", b"\n".join(lines))
    records, skipped = read(path, on_bad_row="skip")
    assert ([record.id for record in records], skipped) == (["a"], len(BAD))
    written = [json.loads(line) for line in Path(f"{path}.skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["line"]) for row in written] == [(path, 2 + at) for at in range(len(BAD))]
    for row, (line, reason) in zip(written, BAD, strict=True):
        assert reason in row["reason"]
        if b"\xff" not in line:
            assert row["raw"].encode() == line

    assert read(path, on_bad_row="skip", skipped_path=str(tmp_path / "elsewhere.jsonl"))[1] == len(BAD)
    assert len((tmp_path / "elsewhere.jsonl").read_text(encoding="utf-8").splitlines()) == len(BAD)


def test_short_and_long_lines_of_a_table(write: Write) -> None:
    path = write("rows.csv", "id,content,title\na,b,c\nd,e\nf,g,h,i\n")
    records, skipped = read(path, on_bad_row="skip")
    assert ([record.id for record in records], skipped) == (["a"], 2)
    with pytest.raises(UserError, match=r"rows.csv:3 \(d\): has 2 values for 3 columns"):
        read(path)


def test_missing_column_names_those_that_are_there(write: Write) -> None:
    path = write("rows.jsonl", [{"id": "a", "content": "x", "headline": "y"}])
    with pytest.raises(UserError, match=r"column 'title' .* 'id', 'content', 'headline'"):
        read(path, on_bad_row="skip")
    with pytest.raises(UserError, match="column 'head' for the field 'title'"):
        read(path, columns={"title": "head"})
    with pytest.raises(UserError, match="column 'key' for the field 'id'"):
        read(path, columns={"title": "headline", "id": "key"})
    with pytest.raises(
        UserError, match="columns names the field 'titel'; the fields of this task are id, content, title"
    ):
        read(path, columns={"titel": "headline"})


def test_nothing_but_bad_rows(write: Write) -> None:
    path = write("rows.jsonl", [GOOD | {"title": ""}] * 3)
    with pytest.raises(UserError, match=r"every row .* is bad \(3 .* line 1 field 'title' is empty"):
        read(path, on_bad_row="skip")


def test_unwritable_skipped_path(write: Write, tmp_path: Path) -> None:
    path = write("rows.jsonl", [GOOD, GOOD | {"title": ""}])
    with pytest.raises(UserError, match=r"skipped_path .* cannot be written"):
        read(path, on_bad_row="skip", skipped_path=str(tmp_path / "absent" / "skipped.jsonl"))


def test_skipped_rows_never_replace_a_file_of_the_users(write: Write, tmp_path: Path) -> None:
    path = write("rows.jsonl", [GOOD] * 3 + [GOOD | {"title": ""}])
    before = Path(path).read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    os.link(path, tmp_path / "twin.jsonl")
    other = write("config.yaml", "a: 1\n")
    for name, reason in (
        (path, "which is the data itself"),
        (str(tmp_path / "link.jsonl"), "which is the data itself"),
        (str(tmp_path / "sub" / ".." / "rows.jsonl"), "which is the data itself"),
        (str(tmp_path / "twin.jsonl"), "holds something else already"),
        (other, "holds something else already"),
        (str(tmp_path), "cannot be written"),
        (str(tmp_path / "pipe"), "cannot be written"),
    ):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"skipped_path is .*{reason}"):
            read(path, on_bad_row="skip", skipped_path=name)
    assert Path(path).read_bytes() == before and Path(other).read_text() == "a: 1\n"
    for _ in range(2):  # what an earlier run left out is replaced
        assert read(path, on_bad_row="skip", skipped_path=str(tmp_path / "skipped.jsonl"))[1] == 1


def test_nul_in_a_text_is_a_torn_file(write: Write) -> None:
    with pytest.raises(UserError, match=r"rows.tsv:2.*NUL"):
        read(write("rows.tsv", "content\ttitle\na\0\tb\n"))


def test_aligned_files_need_a_task_of_two_fields(write: Write) -> None:
    source = Source(path=write("a.zh", "一\n"), target_path=write("a.bo", "ཀ\n"))
    (record,), _ = read_records(source, Fields(inputs=("zh",), target="bo"))
    assert (record.inputs, record.targets) == ({"zh": "一"}, ("ཀ",))
    with pytest.raises(UserError, match="more than two fields"):
        read_records(source, Fields(inputs=("context", "question"), target="answers"))
    blank = Source(path=write("b.zh", "一\n\n三\n"), target_path=write("b.bo", "ཀ\nཁ\nག\n"))
    with pytest.raises(UserError, match=r"b.zh:2: field 'zh' is empty"):
        read_records(blank, Fields(inputs=("zh",), target="bo"))


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        (("a.jsonl", "b.jsonl"), {}, "is no plain text: rows of .jsonl hold every field"),
        (("a.txt", "b.CSV"), {}, "is no plain text: rows of .csv hold every field"),
        (("a.txt", "a.txt"), {}, "which is path itself"),
        (("a.txt", "b.txt"), {"columns": {"zh": "bo"}}, "'zh' and 'bo' the same column 'bo'"),
    ],
)
def test_an_output_that_would_be_the_input_or_a_line_of_a_table(
    names: tuple[str, str], settings: dict[str, Any], sentence: str, write: Write
) -> None:
    path, target_path = (write(name, "一\n".encode()) for name in names)
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_records(Source(path=path, target_path=target_path, **settings), Fields(inputs=("zh",), target="bo"))
