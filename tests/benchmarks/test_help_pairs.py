"""Paragraphs of one id are a pair, where the second is translated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from help_pairs import main


def test_paragraphs_of_one_id_are_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {
        "a": ("Copy the <b>entire</b> sheet", 'ཤོག་ཁྲམ་<a href="x">ཧྲིལ་བུ་</a>འདྲ་བཤུས།'),
        "b": ("Click the Handout tab.", "Click the Handout tab."),
        "c": ("Line &amp; bend", "Line &amp; bend གྲལ"),  # most of it is not translated
        "d": ("Two words", "གྲལ་ཐིག"),
        "e": ("Copy the entire sheet", "འདྲ་བཤུས།"),  # again
        "f": ("This is a sentence of seven words", "གྲལ་ཐིག"),
    }
    for at, code in enumerate(("en-US", "dz")):
        page = tmp_path / "usr/share/libreoffice/help" / code / "text/shared/a.html"
        page.parent.mkdir(parents=True)
        page.write_text("\n".join(f'<p id="{id_}" class="x">\n{pair[at]}</p>' for id_, pair in texts.items()))
    monkeypatch.setattr("sys.argv", ["help_pairs.py", str(tmp_path), "dz", "--words=6"])
    main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"id": "shared/a.html#a", "en": "Copy the entire sheet", "dz": "ཤོག་ཁྲམ་ཧྲིལ་བུ་འདྲ་བཤུས།"}]
