"""Labels in any script are drawn by a font that has it, or it is said that none has."""

from __future__ import annotations

import string
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from lsemrl.report import fonts, plots
from lsemrl.report.fonts import families
from lsemrl.report.tax_report import tax_report
from made_up import make_measured


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with fonts of Tibetan, and of Tibetan and Han."""
    letters = {"tibetan": "བོད", "both": "བོད中文"}
    monkeypatch.setattr(fonts, "_letters", lambda file: frozenset(letters.get(file, "abc")))
    monkeypatch.setattr(fonts, "_others", lambda: [("A Tibetan", "tibetan"), ("B Both", "both")])


@pytest.mark.usefixtures("two")
def test_letters_that_the_first_font_lacks_are_of_others(caplog: pytest.LogCaptureFixture) -> None:
    assert families("abc") == ["DejaVu Sans"]
    assert families("བོད") == ["DejaVu Sans", "A Tibetan"]
    assert families("བོད中") == ["DejaVu Sans", "A Tibetan", "B Both"]
    assert not caplog.messages
    assert families("中한한") == ["DejaVu Sans", "B Both"]
    assert caplog.messages == ["no font here has 한, which labels of plots are written in; install one, such as Noto's"]


def test_it_is_said_once_and_by_us(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(fonts, "_letters", lambda file: frozenset({"a": "强"}.get(file, string.printable)))
    monkeypatch.setattr(fonts, "_others", lambda: [("cmr10", "a")])  # one of matplotlib's own, which is not bold
    measured = [make_measured("base"), replace(make_measured("rl"), label="强化")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = plots.draw(tax_report([(Path(one.arm), one) for one in measured], command="x"))
        plots.png(figures["gain_tax"])
    [told] = caplog.messages
    assert told.startswith("no font here has 化, ")
