from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsemrl.identification.windows import Told, share, windows, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I DEY go, 12 times!", ["i", "dey", "go", "times"]),
        ("o'zbek O‘zbek don't", ["o'zbek", "o", "zbek", "don't"]),
        ("བོད་ཡིག་ནི།", ["བོད", "ཡིག", "ནི"]),
        ("中文 ok", ["中", "文", "ok"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("a\ufffdb 7 …", ["a", "b"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words
    assert words_of(" ".join(words)) == words


@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=60))
def test_windows_lose_nothing_and_are_of_about_one_length(words: list[str]) -> None:
    cut = windows(words)
    assert [word for window in cut for word in window] == words
    assert all(30 - 12 < sum(map(len, window)) < 90 + 12 for window in cut[:-1])


def test_a_share_is_of_the_letters_that_are_decided() -> None:
    yes, no, unsure = Told(1.0, True), Told(0.0, True), Told(0.6, False)
    assert share([yes, no, unsure], [30, 10, 99]) == 0.75
    assert share([unsure], [9]) is None
    assert share([], []) is None
