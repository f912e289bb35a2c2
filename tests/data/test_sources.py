"""Every format gives the same rows, and what cannot be read is told in one sentence."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lsemrl.data.records import Fields, read_records
from lsemrl.data.rows import Row
from lsemrl.data.sources import Source, read_rows
from lsemrl.types import UserError

Write = Callable[..., str]
ROWS = [
    {"zh": "你好", "bo": 'བཀྲ་ཤིས། "བདེ་ལེགས"'},
    {"zh": "一，二", "bo": "གཅིག\u2028གཉིས"},  # a line separator inside a text does not end its line
]


def read(path: str, **settings: object) -> list[Row]:
    return read_rows(Source(path=path, **settings), ("zh", "bo"))  # type: ignore[arg-type]


def as_csv(path: Path, **dialect: object) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["zh", "bo"], **dialect)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(ROWS)
    return str(path)


def test_every_format_gives_the_same_rows(write: Write, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    literal = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None, "lineterminator": "\n"}
    paths = [
        write("rows.jsonl", ROWS),
        write("list.json", json.dumps(ROWS, indent=1)),
        write("object.json", json.dumps({"version": "v, 1", "rows": ROWS})),
        as_csv(tmp_path / "rows.csv"),
        as_csv(tmp_path / "rows.tsv", **literal),
        str(tmp_path / "rows.parquet"),
    ]
    for path in paths:
        assert [row.columns for row in read(path)] == ROWS, path
    aligned = read(
        write("a.zh", "你好\n一，二\n"), target_path=write("b.bo", "".join(row["bo"] + "\n" for row in ROWS))
    )
    assert [row.columns for row in aligned] == ROWS


def test_hub_dataset_loads_from_a_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write("set/train.jsonl", ROWS)
    write("set/test.jsonl", ROWS[:1])
    name = f"hub:{tmp_path / 'set'}"
    assert [row.columns for row in read(name)] == ROWS
    test = read(name, split="test")
    assert [row.columns for row in test] == ROWS[:1]
    assert test[0].place == f"{name}:1"
    with pytest.raises(UserError, match="split nowhere"):
        read(name, split="nowhere")


def test_rows_know_their_lines(write: Write, tmp_path: Path) -> None:
    assert [row.line for row in read(write("gap.jsonl", '{"a": 1}\n\n{"a": 2}\n'))] == [1, 3]
    text = '[\n  {"a": "x\\n"},\n  {"a":\n 2}, {"a": 3}\n]\n'
    assert [row.line for row in read(write("rows.json", text))] == [2, 3, 4]
    assert [row.line for row in read(write("rows.csv", 'a,b\n1,"two\nlines"\n3,4\n'))] == [2, 4]
    assert read(write("rows.tsv", 'a\tb\n"1\t2\n'))[0].place == f"{tmp_path / 'rows.tsv'}:2"


def test_rows_of_one_line_are_told_apart(write: Write) -> None:
    """As `json.dump` and many exporters of TMX write them; the judge wants ids that differ."""
    unit = "<tu><tuv xml:lang='zh'><seg>{0}</seg></tuv><tuv xml:lang='bo'><seg>{0}</seg></tuv></tu>"
    memory = "<tmx><body>\n" + "".join(map(unit.format, "abc")) + "\n" + unit.format("d") + "</body></tmx>"
    for path, places in (
        (write("rows.json", '[{"a": 1}, {"a": 2},\n{"a": 3}, {"a": 4}]'), ["1", "1#2", "2", "2#4"]),
        (write("rows.tmx", memory), ["2", "2#2", "2#3", "3"]),
    ):
        assert [row.place for row in read(path)] == [f"{path}:{place}" for place in places]
    nested = Source(path=write("nested.json", '[{"q": []}, {"q": ["x", "y"]}, {"q": ["z"]}]'))
    flat, _ = read_records(
        nested, Fields(inputs=("q",), target="a", flatten=lambda row: [{"q": q, "a": q} for q in row["q"]])
    )
    assert [record.id for record in flat] == [f"{nested.path}:1", f"{nested.path}:1#2", f"{nested.path}:1#3"]


def test_json_list_is_found_wherever_it_stands(write: Write) -> None:
    document = {"note": 'a "[" and a }', "nested": {"rows": [1]}, "data": [{"a": "]"}], "end": None}
    assert [row.columns for row in read(write("rows.json", json.dumps(document)))] == [{"a": "]"}]


def test_byte_order_mark_is_not_part_of_the_first_field(write: Write) -> None:
    assert read(write("bom.jsonl", b"\xef\xbb\xbf" + b'{"a": 1}\n'))[0].columns == {"a": 1}
    assert read(write("bom.csv", b"\xef\xbb\xbf" + b"a\n1\n"))[0].columns == {"a": "1"}


def test_stray_quotation_mark_in_tsv_is_text(write: Write) -> None:
    rows = read(write("quote.tsv", 'zh\tbo\n"你\tཀ\n好\tཁ\n'))
    assert [row.columns["zh"] for row in rows] == ['"你', "好"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("blank.csv", b" \n\n", "is empty"),
        ("header.csv", b"zh,bo\n", "holds no rows"),
        ("none.json", b"[]", "holds no rows"),
        ("wide.jsonl", '{"zh": "你"}'.encode("utf-16"), "UTF-16"),
        ("broken.json", b'[\n{"a": 1},\n{"a" 2}]', r"broken.json:3: is not JSON"),
        ("number.json", b"3", "JSON int"),
        ("two.json", b'{"a": [1], "b": [2]}', "2 lists"),
        ("open.csv", b'a,b\n1,2\n3,"4\n', r"open.csv:3: cannot be read as CSV"),
        ("latin.csv", b"zh,b\xf6\n1,2\n", "header holds bytes that are not UTF-8"),
        ("false.parquet", b"not parquet", "Parquet"),
        ("torn.parquet", b"PAR1" + b"\0" * 20 + b"PAR1", "Parquet"),
        ("packed.jsonl", b"\x1f\x8b\x08\0", "packed by gzip"),
        ("excel.csv", b"PK\x03\x04\0", "Excel"),
        ("deep.json", b"[" * 200_000, "nested too deep"),
        ("twice.csv", b"zh,bo,zh\n1,2,3\n", "has the column 'zh' twice"),
        ("rows.xlsx", b"PK", "format is unknown"),
    ],
)
def test_unreadable_files(write: Write, name: str, content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        read(write(name, content))
    assert "\n" not in str(error.value)


def test_a_field_of_any_length_is_read(write: Write) -> None:
    long = "ཀ" * 150_000
    limit = csv.field_size_limit()
    for name, row in (("rows.csv", f"1,{long}"), ("rows.tsv", f"1\t{long}")):
        header = row[:2].replace("1", "a") + "b"
        assert [each.columns for each in read(write(name, f"{header}\n{row}\n"))] == [{"a": "1", "b": long}]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_and_every_order_mark(end: str, write: Write) -> None:
    mark = "\ufeff"
    jsonl = end.join([mark + '{"zh": "一", "bo": "ཀ"}', '{"zh": "二", "bo": "ཁ"}', ""])
    table = end.join([mark + '"zh",bo', "一,ཀ", "二,ཁ", ""])
    paths = [write("a.jsonl", jsonl), write("a.csv", table), write("a.tsv", table.replace(",", "\t").replace('"', ""))]
    expected = [{"zh": "一", "bo": "ཀ"}, {"zh": "二", "bo": "ཁ"}]
    for path in paths:
        assert [row.columns for row in read(path)] == expected, path
    aligned = read(
        write("a.zh", end.join([mark + "一", "二", ""])), target_path=write("a.bo", end.join(["ཀ", "ཁ", ""]))
    )
    assert [row.columns for row in aligned] == expected


def test_files_that_were_joined(write: Write) -> None:
    part = b"\xef\xbb\xbf" + '{"zh": "一", "bo": "ཀ"}\n'.encode()
    assert [row.fault for row in read(write("a.jsonl", part * 2))] == ["", ""]
    table = b"\xef\xbb\xbf" + "zh,bo\n一,ཀ\n".encode()
    assert [row.fault for row in read(write("a.csv", table * 2))] == [
        "",
        "is the header again, as where files were joined",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"zh": ' + "[" * 200_000 + "]" * 200_000 + "}", "is nested too deep"),
        ('{"zh": "a", "bo": "b", "zh": "c"}', "has the field 'zh' twice"),
        ("NaN", "is float, not an object"),
        ("9" * 5_000, "is float, not an object"),
    ],
)
def test_a_hostile_line_is_one_bad_row(line: str, fault: str, write: Write) -> None:
    rows = read(write("rows.jsonl", f'{{"zh": "x"}}\n{line}\n'))
    assert (rows[0].fault, rows[1].line) == ("", 2) and fault in rows[1].fault


def test_a_number_of_any_length_in_a_column_that_is_not_used(write: Write) -> None:
    huge = '{"zh": "一", "n": ' + "9" * 5_000 + "}"
    assert read(write("rows.jsonl", huge))[0].columns["zh"] == "一"
    assert read(write("rows.json", f"[{huge}]"))[0].columns["zh"] == "一"


def test_cells_of_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    far = pyarrow.array([0, 2**60], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"zh": broken}), tmp_path / "broken.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"zh": ["a", "b"], "when": far}), tmp_path / "far.parquet")
    for name, column in (("broken", "zh"), ("far", "when")):
        rows = read(str(tmp_path / f"{name}.parquet"))
        assert rows[0].fault == "" and rows[0].columns["zh"] == "a"
        assert f"holds in the column '{column}' what cannot be read" in rows[1].fault


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "absent.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read(str(tmp_path / "folder.jsonl"))
    for name in ("pipe.jsonl", "pipe.csv", "pipe.json", "pipe.tsv", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="it is a pipe, not a file"):
            read(str(tmp_path / name))


def test_aligned_files_of_different_length(write: Write) -> None:
    with pytest.raises(UserError, match=r"a\.zh:2: no line of .*a\.bo' answers this one \(2 lines and 1\)"):
        read(write("a.zh", "一\n二\n"), target_path=write("a.bo", "ཀ\n"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": ""}, "path is empty"),
        ({"path": "micro:trian"}, "splits are pretrain, train, validation, test"),
        ({"on_bad_row": "ignore"}, "on_bad_row is 'ignore'"),
        ({"path": "hub:a/b", "target_path": "x"}, "target_path"),
        ({"path": "a.tsv", "revision": "v2"}, "revision is 'v2', but path 'a.tsv' is no hub:; leave it out"),
        ({"path": "a.tsv", "config": "zh"}, "config is 'zh', but path"),
        ({"path": "a.jsonl.gz", "split": "test"}, "split is 'test', but path 'a.jsonl.gz' has no splits; leave it out"),
        ({"path": "micro", "split": "test"}, "split is 'test', but path 'micro' has no splits"),
    ],
)
def test_impossible_settings(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Source(**settings)  # type: ignore[arg-type]
