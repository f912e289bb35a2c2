"""Rows as the world has them: packed files, texts side by side, translation memories, folders, several references."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lsemrl.data.instruction import TASK
from lsemrl.data.records import Fields, Record, read_records
from lsemrl.data.rows import Row
from lsemrl.data.sources import Source, read_rows
from lsemrl.data.survey import find_column, survey
from lsemrl.experiment.hashes import file_hashes
from lsemrl.types import UserError

Write = Callable[..., str]
ROWS = [{"zh": "你好", "bo": "བཀྲ་ཤིས།"}, {"zh": "一，二", "bo": "གཅིག\u2028གཉིས"}]
ZH, BO = ("".join(row[name] + "\n" for row in ROWS) for name in ("zh", "bo"))
TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="zh"/><body>
<tu><prop type="x">left out</prop>
  <tuv xml:lang="zh-CN"><seg>你<bpt i="1">&lt;b></bpt><hi>好</hi></seg></tuv>
  <tuv xml:lang="bo"><seg>བཀྲ་ཤིས།</seg></tuv></tu>
<tu><tuv xml:lang="zh-CN"><seg>一，二</seg></tuv>
  <tuv xml:lang="bo"><seg>གཅིག</seg></tuv><tuv xml:lang="bo"><seg>ཆིག</seg></tuv>
  <tuv xml:lang="en"><seg>one</seg></tuv></tu>
</body></tmx>
"""


def zstd(data: bytes, path: Path) -> str:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)
    return str(path)


def read(path: str, **settings: object) -> list[Row]:
    return read_rows(Source(path=path, **settings), ("zh", "bo"))  # type: ignore[arg-type]


def records(path: str, **settings: object) -> list[Record]:
    return read_records(Source(path=path, **settings), Fields(inputs=("zh",), target="bo"))[0]  # type: ignore[arg-type]


def test_packed_files_are_read_as_what_is_packed(write: Write, tmp_path: Path) -> None:
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    table = (tmp_path / "rows.parquet").read_bytes()
    for path in (
        write("a.jsonl.gz", gzip.compress(jsonl)),
        zstd(jsonl, tmp_path / "a.jsonl.zst"),
        write("b.JSON.GZ", gzip.compress(json.dumps(ROWS).encode())),
        write("c.parquet.gz", gzip.compress(table)),
        zstd(table, tmp_path / "c.parquet.zst"),
    ):
        assert [row.columns for row in read(path)] == ROWS, path
    headless = write("d.tsv.gz", gzip.compress(b"1\t2\n"))
    assert read(headless, header=False)[0].columns == {"1": "1", "2": "2"}
    aligned = read(write("x.zh.gz", gzip.compress(ZH.encode())), target_path=write("y.bo", BO))
    assert [row.columns for row in aligned] == ROWS


def test_a_torn_or_false_packing_is_told_with_its_line(write: Write, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"zh": str(at) * 99, "bo": f"{at * 7919}"}) + "\n" for at in range(40_000)).encode()
    packed = gzip.compress(lines)
    whole = zstd(lines, tmp_path / "whole.zst")
    for name, data in (("a.jsonl.gz", packed), ("a.jsonl.zst", Path(whole).read_bytes())):
        with pytest.raises(UserError, match=rf"{name}:\d\d+: from here on the file is no (gzip|zstd), or torn"):
            read(write(name, data[: len(data) * 4 // 5]))
        with pytest.raises(UserError, match=rf"{name}:1: from here on the file is no"):
            read(write(name, b"no packing"))
    with pytest.raises(UserError, match="is empty"):
        read(write("b.jsonl.gz", gzip.compress(b"\n")))
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "absent.jsonl.gz"))


def test_what_unpacks_without_end_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsemrl.data.rows.memory_of_machine", lambda: 2**22)
    with pytest.raises(UserError, match="unpacks to more than the memory"):
        read(write("bomb.jsonl.gz", gzip.compress(b" " * 2**23)))


def test_moses_and_opus_by_what_the_names_begin_with(write: Write, tmp_path: Path) -> None:
    write("bible.bo-zh.zh", ZH)
    write("bible.bo-zh.bo", BO)
    write("bible.bo-zh.xml", "<links/>")
    write("bible.bo-zh.ids", "1\n")
    assert [row.columns for row in read(str(tmp_path / "bible.bo-zh"))] == ROWS
    write("train.zh_CN.gz", gzip.compress(ZH.encode()))
    write("train.bo", BO)
    write("train.bo.model", "no text")
    found = read(str(tmp_path / "train"))
    assert [row.columns for row in found] == ROWS and found[1].place == f"{tmp_path / 'train.zh_CN.gz'}:2"
    assert read(str(tmp_path / "train"), columns={"zh": "zh_CN"})[0].columns == {"zh_CN": "你好", "bo": "བཀྲ་ཤིས།"}
    with pytest.raises(UserError, match=r"'ug' is none of bo, zh_CN, which .*train' holds"):
        read_rows(Source(path=str(tmp_path / "train")), ("zh", "ug"))
    write("train.bo.zst", "twice")
    with pytest.raises(UserError, match=r"means 'train.bo' and 'train.bo.zst', both of bo"):
        read(str(tmp_path / "train"))


def test_where_nobody_may_look_is_told_by_whoever_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="File name too long"):
        read(str(tmp_path / f"{'x' * 300}.tsv"))

    def closed(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(UserError, match="there is no such file"):
        read(str(tmp_path / "pairs.tsv"))


def test_flores_is_a_folder_of_a_file_for_each_language(write: Write, tmp_path: Path) -> None:
    for folder in ("dev", "odd"):
        (tmp_path / folder).mkdir()
        write(f"{folder}/zho_Hans.dev", ZH)
        write(f"{folder}/bod_Tibt.dev", BO)
        write(f"{folder}/README", "no language")
    path = str(tmp_path / "dev")
    assert [row.columns for row in read(path)] == ROWS
    found = survey(Source(path=path))
    assert [find_column(found, code, None).name for code in ("zh", "bo")] == ["zho_Hans", "bod_Tibt"]
    write("odd/zho_Hant.dev", ZH)
    with pytest.raises(UserError, match="'zh' could be any of zho_Hans, zho_Hant"):
        read(str(tmp_path / "odd"))
    write("odd/bod_Tibt.dev", BO + "\n\n")
    assert len(read(f"{tmp_path / 'odd'}/", columns={"zh": "zho_Hant"})) == len(ROWS)  # blank lines at the end
    write("odd/bod_Tibt.dev", BO + "ཁ\n")
    with pytest.raises(
        UserError, match=r"bod_Tibt.dev:3: no line of .*zho_Hant.dev' answers this one \(3 lines and 2\)"
    ):
        read(str(tmp_path / "odd"), columns={"zh": "zho_Hant"})


@pytest.mark.parametrize("end", ["jsonl", "csv.gz"])
def test_rows_are_no_text_of_a_language(end: str, write: Write, tmp_path: Path) -> None:
    for name in ("zh", "bo"):
        write(f"{name}.{end}", "id,text\n")
    with pytest.raises(UserError, match=rf"'zh\.{end}', which 'zh' means there, is no plain text: rows of .* one file"):
        read(str(tmp_path))


def test_what_only_sounds_like_a_language_is_not_looked_at(write: Write, tmp_path: Path) -> None:
    """`bak` is Bashkir, as `old` and `ids` are languages; `log` would be Logo, and is that of no text."""
    for name, text in (("zh", ZH), ("bo", BO), ("log", "one line\n")):
        write(f"train.{name}", text)
    source = Source(path=str(tmp_path / "train"))
    before = file_hashes([("source.path", source.path)])
    assert [column.name for column in survey(source).columns] == ["bo", "zh"]
    write("train.log", "another line\n")
    assert before == file_hashes([("source.path", source.path)])
    write("train.bak", "one line\n")
    assert [column.name for column in survey(source, ("zho", "bo")).columns] == ["zh", "bo"]
    for unknown in ((), ("zh", None), ("zh", "ug")):
        with pytest.raises(UserError, match=r"no line of .*bak' answers"):
            survey(source, unknown)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_translation_memories(encoding: str, write: Write) -> None:
    for path in (
        write("a.tmx", TMX.format(encoding=encoding).encode(encoding)),
        write("a.tmx.gz", gzip.compress(TMX.format(encoding=encoding).encode(encoding))),
    ):
        found = records(path)
        assert [record.inputs["zh"] for record in found] == ["你好", "一，二"]
        assert [record.targets for record in found] == [("བཀྲ་ཤིས།",), ("གཅིག", "ཆིག")]
        assert [record.place for record in found] == [f"{path}:4", f"{path}:7"]
    assert {column.name for column in survey(Source(path=path)).columns} == {"zh-CN", "bo", "en"}


def test_of_two_variants_one_is_named_and_no_other_read(write: Write) -> None:
    """Both are Chinese: one would be trained as the other."""
    unit = "<tu>{zh}<tuv xml:lang='bo'><seg>{bo}</seg></tuv></tu>\n"
    china, taiwan, again = (
        "<tuv xml:lang='{}'><seg>{}</seg></tuv>".format(*each)
        for each in (("zh-CN", "汉"), ("zh-TW", "漢"), ("zh_cn", "藏"))
    )

    def memory(*texts: str) -> str:
        units = [unit.format(zh=zh, bo=bo) for zh, bo in zip(texts, "ཀཁགང", strict=False)]
        return write("a.tmx", f"<tmx><body>{''.join(units)}</body></tmx>")

    path = memory(china, taiwan, taiwan + china, again)
    source = Source(path=path, columns={"zh": "zh-CN"}, on_bad_row="skip")
    found = [
        (record.inputs["zh"], *record.targets)
        for record in read_records(source, Fields(inputs=("zh",), target="bo"))[0]
    ]
    assert found == [("汉", "ཀ"), ("汉", "ག"), ("藏", "ང")]
    turned = read_records(source, Fields(inputs=("bo",), target="zh"))[0]
    assert [(*record.targets, record.inputs["bo"]) for record in turned] == found
    seen = next(column for column in survey(source).columns if column.name == "zh-CN")
    assert seen.filled == len(found)
    for fields in (Fields(inputs=("zh",), target="bo"), Fields(inputs=("bo",), target="zh")):
        with pytest.raises(
            UserError, match=r"'zh' could be any of zh-CN, zh-TW, which .* name the right one in columns"
        ):
            read_records(Source(path=path), fields)
    with pytest.raises(UserError, match="'zh-CN' is none of zh-TW, bo"):
        records(memory(taiwan), columns={"zh": "zh-CN"})
    assert [record.inputs["zh"] for record in records(memory(taiwan))] == ["漢"]


def test_a_unit_without_a_language_is_a_bad_row(write: Write) -> None:
    text = TMX.format(encoding="utf-8").replace('xml:lang="bo"><seg>བཀྲ', 'xml:lang="en"><seg>hello').replace("༎", "")
    path = write("a.tmx", text)
    with pytest.raises(UserError, match=r"a\.tmx:4: field 'bo' is missing; mend the row"):
        records(path)
    assert len(records(path, on_bad_row="skip")) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no rows|:1: is not XML"),
        (b"<tmx><body><tu>\n<tuv></tu></body></tmx>", r"a\.tmx:2: is not XML from here on \(mismatched tag\)"),
        (b"<tmx><body><tu>\n", r"a\.tmx:2: is not XML from here on \(no element found\)"),
        (b"<html></html>", r"a\.tmx:1: begins with 'html'"),
        (b'<!DOCTYPE tmx [\n<!ENTITY a "b">]><tmx/>', r"a\.tmx:2: declares the entity 'a'"),
        (b'<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]><tmx>&a;</tmx>', "declares the entity 'a'"),
        (b"<tmx>" + b"<a>" * 5_000, "nested too deep"),
        (b'<?xml version="1.0" encoding="nowhere"?><tmx/>', r"a\.tmx:1: is not XML"),
        (b'<?xml version="1.0" encoding="idna"?><tmx/>', r"a\.tmx:1: is not XML"),
        (b'<?xml version="1.0" encoding="zip"?><tmx/>', r"a\.tmx:1: is not XML"),
        (
            b'<?xml version="1.0" encoding="gb2312"?>\n<tmx>\n\xff<\n',
            r"a\.tmx:3: is not XML.*'gb2312' codec can't decode byte 0xff",
        ),
        (b"<tmx><body/></tmx>", "holds no rows"),
        (b'<tmx><tu><tuv xml:lang="zh"><seg>\xff</seg></tuv></tu></tmx>', r"a\.tmx:1: is not XML"),
        (b"PK\x03\x04" + b"\0" * 40, r"a\.tmx:1: is not XML"),
    ],
)
def test_hostile_translation_memories(content: bytes, sentence: str, write: Write) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        records(write("a.tmx", content))
    assert "\n" not in str(error.value)


def test_an_entity_that_nothing_declares_is_no_text_that_is_lost(write: Write) -> None:
    path = write("a.tmx", TMX.format(encoding="utf-8").replace("一，二", "&nbsp;一"))
    with pytest.raises(UserError, match=r"a\.tmx:7: has the entity 'nbsp', which nothing declares"):
        records(path)


def test_a_folder_of_parquet_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for name, rows in (("train-00000-of-00002", ROWS[:1]), ("train-00001-of-00002", ROWS[1:]), ("test-0", ROWS[:1])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set" / "data" / f"{name}.parquet")
    path = str(tmp_path / "set")
    found = read(path)
    assert [row.columns for row in found] == ROWS
    assert found[1].place == f"{path}/data/train-00001-of-00002.parquet:1"
    assert [row.columns for row in read(path, split="test")] == ROWS[:1]
    with pytest.raises(UserError, match=r"split is 'validation', but the files in .* are of test, train"):
        read(path, split="validation")
    for name in ("data/bible.parquet", "data/other-00000-of-00001.parquet"):  # the hub's names tell any split
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1]), tmp_path / "set" / name)
    with pytest.raises(
        UserError, match=r"holds files of test, train, and data/bible\.parquet beside them, whose names"
    ):
        read(path)


def test_parquet_in_several_folders_is_told(tmp_path: Path) -> None:
    for name in ("am/test-0", "zh/test-0", "zh/train-0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / f"{name}.parquet")
    path = str(tmp_path)
    with pytest.warns(UserWarning, match=r"has rows in 2 folders \(am, zh\), all of which are read; name one"):
        assert len(read(path, split="test")) == 2 * len(ROWS)
    with warnings.catch_warnings(action="error"):
        assert len(read(path, split="train")) == len(ROWS)


def test_what_datasets_saved(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=one.select([0])).save_to_disk(tmp_path / "two")
    assert [row.columns for row in read(str(tmp_path / "one"))] == ROWS
    assert [row.columns for row in read(str(tmp_path / "two"), split="test")] == ROWS[:1]
    with pytest.raises(UserError, match=r"split is 'dev', but .*two' holds train, test"):
        read(str(tmp_path / "two"), split="dev")
    (tmp_path / "one" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded as what datasets saved"):
        read(str(tmp_path / "one"))


def test_references_in_several_columns(write: Write) -> None:
    rows = [
        {"zh": "你", "a": "ཀ", "b": "ཁ"},
        {"zh": "好", "a": "ཀ", "b": ""},
        {"zh": "一", "a": None, "b": ["ག", "ཀ"]},
    ]
    path = write("a.jsonl", rows)
    found = records(path, columns={"bo": ["a", "b"]})
    assert [record.targets for record in found] == [("ཀ", "ཁ"), ("ཀ",), ("ག", "ཀ")]
    bad = write("b.jsonl", [*rows, {"zh": "二", "a": " "}])
    with pytest.raises(UserError, match=r"b\.jsonl:4: field 'bo' \(column 'a'\) is empty"):
        records(bad, columns={"bo": ["a", "b"]})
    with pytest.raises(UserError, match=r"no row of .* has the column 'c'"):
        records(path, columns={"bo": ["a", "c"]})
    with pytest.raises(UserError, match=r"columns give 'zh' \['zh', 'a'\]; name one column"):
        records(path, columns={"zh": ["zh", "a"]})
    with pytest.raises(UserError, match=r"'bo' \[\]; name one column"):
        records(path, columns={"bo": []})


def test_a_prompt_in_several_columns(write: Write) -> None:
    rows = [{"do": "翻译", "with": "你", "say": "ཀ"}, {"do": "好", "with": " ", "say": "ཁ"}]
    source = Source(path=write("a.jsonl", rows), columns={"prompt": ["do", "with"], "response": "say"})
    found, _ = read_records(source, TASK.fields)
    assert [record.inputs for record in found] == [{"prompt": "翻译\n\n你"}, {"prompt": "好"}]
    bad = replace(source, path=write("b.jsonl", [*rows, {"do": "", "with": None, "say": "ག"}]))
    with pytest.raises(UserError, match=r"b\.jsonl:3: field 'prompt' \(column 'do'\) is empty"):
        read_records(bad, TASK.fields)


def test_a_run_is_another_when_a_file_of_its_layout_changes(write: Write, tmp_path: Path) -> None:
    write("train.zh", ZH)
    write("train.bo", BO)
    path = str(tmp_path / "train")
    before = file_hashes([(".path", path)])
    assert before == file_hashes([(".path", path)])
    write("train.bo", BO + "ཁ\n")
    assert before != file_hashes([(".path", path)])
