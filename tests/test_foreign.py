"""Text of others, shown: nothing in it is obeyed, and nothing that a script needs is lost."""

from __future__ import annotations

import logging
import re

import pytest

from lsemrl.cli.main import main
from lsemrl.foreign import ShownRecord, cell, code, fenced, markdown, visible

CONTROLS = [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)]
OBEYED = [*CONTROLS, *range(0x202A, 0x202F), *range(0x2066, 0x2070)]
SCRIPTS = {
    "Tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "Uyghur": "مەن\u200fئۇيغۇرچە! (\u200eABC\u200e)",
    "Persian": "می\u200cروم کتاب\u200cها",
    "Hindi": "क्\u200dष",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ\u180eᠠ \u180b",
    "Khmer": "ភាសា\u200bខ្មែរ",
    "emoji": "👩\u200d👩\u200d👧 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f",
    "lines": "one\n\ttwo",
}


@pytest.mark.parametrize("number", OBEYED)
def test_what_a_terminal_obeys_is_written_out(number: int) -> None:
    assert visible(f"a{chr(number)}b") == f"a\\x{number:02x}b" if number < 256 else f"a\\u{number:04x}b"


def test_line_ends_stay_line_ends_and_a_return_alone_is_shown() -> None:
    assert visible("one\r\ntwo\rthree") == "one\ntwo\\rthree"


def test_halves_of_characters_can_be_written_to_a_file() -> None:
    assert visible("name\udcff").encode() == rb"name\udcff"


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_needs_is_kept(script: str) -> None:
    text = SCRIPTS[script]
    assert visible(text) == text
    assert markdown(text).replace("\\", "") == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("![x](http://a.b/c.png)", r"\!\[x\](http\://a.b/c.png)"),
        ("see https://a.b or www.a.b", r"see https\://a.b or www\.a.b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("a | b\n# c", r"a \| b \# c"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("12) item", r"12\) item"),
        ("1.5 points", "1.5 points"),
        ("===", r"\==="),
        ("`x` ~~y~~ $z$", r"\`x\` \~\~y\~\~ \$z\$"),
        ("\x1b[2J", r"\\x1b\[2J"),
        ("a@b.c", r"a\@b.c"),
    ],
)
def test_no_text_is_markup(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize("text", ["x", "a `b` c", "```", "``` ` ``", "two\nlines \x1b"])
def test_no_text_ends_its_code(text: str) -> None:
    span = code(text)
    ticks = re.match("`+", span)[0]  # type: ignore[index]
    assert span.count(ticks) == 2 and span.endswith(ticks) and "\n" not in span and "\x1b" not in span
    first, *lines, last = fenced(text, "yaml").splitlines()
    assert first == f"{last}yaml" and not any(line.strip().startswith(last) for line in lines)


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-5", "+5", "-0.25", "a=b", "", "བོད", "'quoted"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert cell(text) == text


def test_what_is_logged_passes_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogRecordFactory()
    try:
        with pytest.raises(SystemExit):
            main(["\x1b]0;title\x07\u202e"])
        assert logging.getLogRecordFactory() is ShownRecord
        logger = logging.getLogger("lsemrl.anything")
        record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "row %s", ("\x1b[31m\u202e",), None)
    finally:
        logging.setLogRecordFactory(before)
    assert record.getMessage() == r"row \x1b[31m\u202e"
    told = capsys.readouterr().err
    assert "there is no verb" in told and not re.search("[\x1b\x07\u202e]", told)
