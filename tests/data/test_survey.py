"""What is in a file, before anybody says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsemrl.data.sources import Source
from lsemrl.data.survey import Survey, alike, find_column, profile_of, survey
from lsemrl.languages import language
from lsemrl.types import UserError

PAIRS = (("学生在学校。", "ئوقۇغۇچىلار مەكتەپتە."), ("我喝水。", "مەن سۇ ئىچىمەن."), ("市场很大。", "بازار چوڭ."))


def look(path: Path, text: str) -> Survey:
    path.write_text(text, encoding="utf-8")
    return survey(Source(path=str(path), on_bad_row="skip"))


def table(*rows: tuple[str, ...]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def test_into_the_embedded_world_nobody_looks() -> None:
    with pytest.raises(UserError, match="path is 'micro', the embedded world, which is no file; name one"):
        survey(Source(path="micro"))


def test_columns_are_told_by_their_letters(tmp_path: Path) -> None:
    found = look(tmp_path / "a.tsv", table(("one", "two", "note"), *((zh, ug, "7") for zh, ug in PAIRS)))
    assert {column.name: column.scripts for column in found.columns} == {
        "one": {"Han": 1.0},
        "two": {"Arabic": 1.0},
        "note": {},
    }
    assert find_column(found, "zh", None).name == "one"
    assert find_column(found, "ug", None).name == "two"


def test_a_column_of_the_languages_name_comes_first_also_within_others(tmp_path: Path) -> None:
    rows = (json.dumps({"translation": {"en": "water", "pcm": "wata"}}) for _ in range(3))
    found = look(tmp_path / "a.jsonl", "\n".join(rows))
    assert find_column(found, "pcm", None).name == "translation.pcm"


def test_what_cannot_be_told_is_asked_with_what_is_there(tmp_path: Path) -> None:
    found = look(tmp_path / "a.tsv", table(("one", "two"), ("water", "wata"), ("house", "haus")))
    with pytest.raises(
        UserError,
        match=r"'pcm' .*, one of: one .*; two \(100% Latin\); if the first line is a row, put a line",
    ):
        find_column(found, "pcm", None)
    assert find_column(found, "pcm", "two").name == "two"
    with pytest.raises(UserError, match="--target-column is 'three', and there is no such column; give one of: one"):
        find_column(found, "pcm", "three")


@pytest.mark.parametrize("name", ["Français", "franc\u0327ais", "FRENCH", "texts.French", "fra"])
def test_a_column_is_told_by_the_name_of_its_language(name: str, tmp_path: Path) -> None:
    found = look(tmp_path / "a.tsv", f"{name}\tFongbè\tNotes\n" + "Le roi dort.\tAxɔ́sú ɔ́ ɖɔ̀ amlɔ.\tradio\n" * 3)
    assert find_column(found, "fr", None).name == name
    with pytest.raises(UserError, match="which column holds 'fon' cannot be told; give --target-column"):
        find_column(found, "fon", None)


def test_of_several_accepted_outputs_the_first_says_what_the_column_is(tmp_path: Path) -> None:
    rows = [{"zh": "老师买了书。", "a": ["དགེ་རྒན་", "x"], "b": [{"text": "དེབ་"}], "c": []} for _ in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = {column.name: column.scripts for column in survey(Source(path=str(tmp_path / "rows.jsonl"))).columns}
    assert found == {"zh": {"Han": 1.0}, "a": {"Tibetan": 1.0}, "b": {"Tibetan": 1.0}}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zh;bo", "only one, 'zh;bo'; it seems to be divided by ';', but .csv is read by commas and .tsv by tabs"),
        ("bo", "only one, 'bo'; give a file with another"),
    ],
)
def test_a_table_with_one_column_is_told(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{name}\n" + "书;དེབ་དེབ་དེབ་\n" * 3, encoding="utf-8")
    found = survey(Source(path=str(tmp_path / "rows.csv")))
    with pytest.raises(UserError, match=f"which column holds 'zh' cannot be told, for there is {says}"):
        find_column(found, "zh", None, [find_column(found, "bo", None).name])


def test_a_row_where_the_names_should_be_is_taken_for_one(tmp_path: Path) -> None:
    found = look(tmp_path / "a.tsv", table(*PAIRS))
    assert (found.header, found.rows, [column.name for column in found.columns]) == (False, len(PAIRS), ["1", "2"])
    with pytest.raises(UserError, match=r"header is false, but path is 'a\.jsonl'"):
        Source(path="a.jsonl", header=False)


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        ("a.tsv", [PAIRS[0], *((zh * 4, ug * 4) for zh, ug in PAIRS[1:])], "column_1<TAB>column_2"),
        ("a.csv", [("汉语", "ئۇيغۇرچە"), *PAIRS], "column_1,column_2"),
        ("a.tsv", [("汉语", "ئۇيغۇرچە"), ("水", "سۇ"), ("火", "ئوت")], "column_1<TAB>column_2"),
        (
            "a.tsv",
            [("id", "中文", "ئۇيغۇرچە"), *(("1", *pair) for pair in PAIRS)],
            "column_1<TAB>column_2<TAB>column_3",
        ),
        ("a.csv", [("中文",), *((zh,) for zh, _ in PAIRS)], "column_1"),
    ],
)
def test_a_row_or_names_where_it_cannot_be_told_which(
    name: str, rows: list[tuple[str, ...]], line: str, tmp_path: Path
) -> None:
    """What is to be done can be done in either case: a line of the file's format, or the user's word."""
    between, text = ("," if name.endswith(".csv") else "\t"), ""
    for row in rows:
        text += between.join(row) + "\n"
    with pytest.raises(UserError, match=rf"may be a row or the names of columns; .* such as {line} before it;"):
        look(tmp_path / name, text)
    named = survey(Source(path=str(tmp_path / name)), named=(None, rows[0][-1]))
    assert (named.header, named.rows, named.columns[-1].name) == (True, len(rows) - 1, rows[0][-1])
    found = look(tmp_path / name, line.replace("<TAB>", "\t") + "\n" + text)
    assert (found.header, found.rows, found.columns[-1].name) == (True, len(rows), f"column_{len(rows[0])}")


def test_a_first_line_that_names_a_language_as_its_speakers_do_holds_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("中文,ئۇيغۇر يېزىقى\n" + "".join(f"{zh},{ug}\n" for zh, ug in PAIRS), encoding="utf-8")
    found = survey(Source(path=str(path)), ("zh", "ug"))
    assert (found.header, found.rows) == (True, 3)
    assert [find_column(found, code, None).name for code in ("zh", "ug")] == ["中文", "ئۇيغۇر يېزىقى"]
    with pytest.raises(UserError, match="may be a row or the names of columns"):
        survey(Source(path=str(path)), ("ja", None))


def test_a_file_of_which_no_row_can_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 3 rows of .*a\.csv:2, has 2 values for 1 columns; mend the file"):
        look(tmp_path / "a.csv", "source\ttarget\n" + "".join(f"{zh},{ug}\n" for zh, ug in PAIRS))


def test_rows_that_are_alike_or_cannot_be_read_are_counted(tmp_path: Path) -> None:
    text = "\n".join([*(json.dumps({"zh": zh, "ug": ug}) for zh, ug in (*PAIRS, PAIRS[0])), "{torn"])
    found = look(tmp_path / "a.jsonl", text)
    assert (found.rows, alike(found.columns), len(found.faults)) == (4, 1, 1)
    assert f"{tmp_path / 'a.jsonl'}:5: " in found.faults[0]


def test_rows_are_alike_whatever_their_ids(tmp_path: Path) -> None:
    rows = [(f"r{at}", *PAIRS[at % 3]) for at in range(9)]
    found = look(tmp_path / "a.tsv", table(("id", "zh", "ug"), *rows))
    assert alike(found.columns) == 0 and alike(found.columns[1:]) == 6


@pytest.mark.parametrize(
    ("code", "text", "scripts", "unit"),
    [
        ("km", "ខ្ញុំផឹកទឹក", ("Khmer",), "character"),
        ("dz", "ང་ཆུ་འཐུང་དོ།", ("Tibetan",), "syllable"),
        ("am", "ውሃ እጠጣለሁ", ("Ethiopic",), "word"),
        ("pcm", "I dey drink wata", ("Latin",), "word"),
        ("kk", "Men su işemin", ("Latin",), "word"),
        ("ajp", "بشرب مي", ("Arabic",), "word"),
        ("own", "བོད་སྐད་", ("Tibetan",), "syllable"),
    ],
)
def test_a_language_is_told_by_what_its_texts_are_written_in(
    code: str, text: str, scripts: tuple[str, ...], unit: str, tmp_path: Path
) -> None:
    found = look(tmp_path / "a.tsv", table(("en", code), *(("water", f"{text} {at}") for at in range(3))))
    profile = profile_of(code, find_column(found, code, None))
    assert (profile.scripts, profile.unit) == (scripts, unit)
    assert profile.accepts(text) and not profile.accepts("我喝水")


def test_the_profile_of_a_tag_stands_where_texts_are_written_so(tmp_path: Path) -> None:
    found = look(tmp_path / "a.tsv", table(("en", "kk"), *(("water", f"Мен су ішемін {at}") for at in range(3))))
    assert profile_of("kk", find_column(found, "kk", None)) is language("kk")


@pytest.mark.parametrize(
    ("text", "scripts", "threshold"),
    [("ང་ཆུ་འཐུང་དོ། water", 2, 0.8), ("ང་ཆུ་འཐུང་དོ། water вода", 3, 0.8), ("ང་ཆུ་འཐུང་དོ། ཆུ་ wa во", 1, 0.54)],
)
def test_own_letters_are_those_of_all_scripts_of_a_language(
    text: str, scripts: int, threshold: float, tmp_path: Path
) -> None:
    found = look(tmp_path / "a.tsv", table(("en", "dz"), *(("water", f"{text} {at}") for at in range(3))))
    profile = profile_of("dz", find_column(found, "dz", None))
    assert (len(profile.scripts), profile.threshold) == (scripts, threshold) and profile.accepts(text)
