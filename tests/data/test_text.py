"""Plain text: how it is cut, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsemrl.data.text import PlainText, read_texts
from lsemrl.errors import UserError


def test_the_embedded_world_gives_a_sentence_and_what_follows() -> None:
    examples = PlainText(rows=3).examples()
    assert len(examples) == 3
    for example in examples:
        assert example.prompt.endswith("。") and example.prompt.count("。") == 1
        assert example.reference.count("。") == 2


@pytest.mark.parametrize(
    ("text", "prompt", "rest"),
    [
        ("你好。再见。", "你好。", "再见。"),
        ("真的？！好。", "真的？！", "好。"),
        ("Version 1.2 is out. Get it.", "Version 1.2 is out.", " Get it."),
        ("It was late. Was it cold? Yes.", "It was late.", " Was it cold? Yes."),
        ("བཀྲ་ཤིས། བདེ་ལེགས།", "བཀྲ་ཤིས།", " བདེ་ལེགས།"),
        ("没有句号", "没有", "句号"),
        ("一句。", "一", "句。"),
    ],
)
def test_a_text_is_cut_after_its_first_sentence_or_in_the_middle(
    text: str, prompt: str, rest: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(f"x\n\n{text}\n", encoding="utf-8")  # too short to cut, and empty: left out
    (example,) = PlainText(path=str(path)).examples()
    assert (example.prompt, example.reference, example.id) == (prompt, rest, "text.txt:3")


def test_columns_rows_and_length(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"body": "你好。再见。"}\n{"body": "早。晚上好。"}\n', encoding="utf-8")
    (example,) = PlainText(path=str(path), column="body", rows=1, max_characters=4).examples()
    assert (example.prompt, example.reference) == ("你好。", "再")
    with pytest.raises(UserError, match=r"text\.jsonl:1: has no text in the column 'text'"):
        PlainText(path=str(path)).examples()


def test_files_that_hold_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        PlainText(path=str(tmp_path / "nowhere.txt")).examples()
    (tmp_path / "short.txt").write_text("x\n")
    with pytest.raises(UserError, match="holds no text"):
        PlainText(path=str(tmp_path / "short.txt")).examples()
    (tmp_path / "broken.txt").write_bytes(b"good text\n\xff\xff\n")
    with pytest.raises(UserError, match=r"broken\.txt:2: holds bytes that are not UTF-8"):
        PlainText(path=str(tmp_path / "broken.txt")).examples()
    with pytest.raises(UserError, match=r"text\.rows is 0"):
        PlainText(rows=0)


def test_texts_are_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"text {at}\n" for at in range(10)), encoding="utf-8")
    found = PlainText(path=str(file), rows=3).examples()
    assert [each.source + each.references[0] for each in found] == ["text 0", "text 3", "text 6"]


@pytest.mark.parametrize(("name", "head"), [("texts.jsonl", ""), ("texts.csv", "pcm,id\n")])
def test_a_blank_text_in_a_column_is_none(name: str, head: str, tmp_path: Path) -> None:
    rows = ["I dey", "", "  ", "wata"]
    lines = [json.dumps({"pcm": text}) if not head else f"{text},1" for text in rows]
    (tmp_path / name).write_text(head + "\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}:{3 if head else 2}: has no text in the column 'pcm'; mend the row"):
        read_texts(str(tmp_path / name), "pcm")
    with pytest.warns(UserWarning, match=f"2 of 4 rows of .*{name} have no text in 'pcm' and are left out"):
        found = read_texts(str(tmp_path / name), "pcm", on_bad_row="skip")
    assert [text for _, text in found] == ["I dey", "wata"]
