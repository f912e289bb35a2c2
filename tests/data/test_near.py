"""Near copies are found, and what only is alike is not."""

from __future__ import annotations

import pytest

from lsemrl.data.near import copied, near

LONG = "the police in the state said on monday that three people had been arrested after the market was closed"
TIBETAN = "བོད་ཀྱི་སློབ་གྲྭ་ཆེན་མོར་དགེ་རྒན་གསར་པ་བཅུ་གསུམ་སླེབས་པ་རེད་ཅེས་གསར་འགྱུར་ནང་བཤད་འདུག"


@pytest.mark.parametrize("text", [LONG, TIBETAN])
def test_a_long_text_with_a_change_is_found(text: str) -> None:
    other = "་".join(text.split("་")[:-3]) if "་" in text else f"{text} by the army"
    found = near(
        [other, "something quite different that has nothing at all to do with any of it, whatever one says"], [text]
    )
    assert [(one.text, one.other) for one in found] == [(0, 0)] and found[0].share > 0.7


def test_the_same_to_the_letter_is_told_elsewhere_and_a_rearranged_text_is_none() -> None:
    words = LONG.split()
    assert near([LONG, f" {LONG}\n"], [LONG]) == []
    assert near([" ".join(words[::-1])], [LONG]) == []


def test_short_texts_are_held_against_short_ones_by_their_letters() -> None:
    known = ["Police arrest 16 suspects over cultism", LONG, "Governor signs the budget"]
    found = near(["Police arrest 16 suspects over cultism.", "Police arrest a governor"], known)
    assert [(one.text, one.other) for one in found] == [(0, 0)]
    assert near(["་", ""], known) == []


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (LONG.upper(), LONG),
        ("早上好。", "早上好"),
        ("「小女孩在山里」", "小女孩在山里"),
        ("Good morning.", "good morning"),
        ("ཁྱེད་བདེ་མོ།", "ཁྱེད་བདེ་མོ"),
    ],
)
def test_capitals_and_punctuation_make_no_other_text(text: str, known: str) -> None:
    assert [one.share for one in near([text], ["something else", known])] == [1.0]


def test_other_numbers_make_another_text() -> None:
    assert near(["Chapter 1."], ["Chapter 2"]) == []


def test_texts_a_word_apart_are_near_where_one_is_just_short() -> None:
    short = "one two three four five six seven eight nine ten eleven twelve"
    longer = f"{short} thirteen"
    assert [len(near([a], [b])) for a, b in ((short, longer), (longer, short))] == [1, 1]


def test_longer_texts_that_hold_a_short_one_hide_no_nearer_one() -> None:
    text = "go to the market"
    holding = [f"{who} {text} {when} with all of us" for who in ("we", "you", "they") for when in ("today", "again")]
    for known in ([f"{text} oh", *holding], [*holding, f"{text} oh"]):
        assert [known[one.other] for one in near([text], known)] == [f"{text} oh"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("Hello", "hello ", True),
        (LONG, f"{LONG}.", True),
        (LONG, LONG.replace("the", "di"), False),
        ("Lagos", "Abuja", False),
        ("士兵在城里。", TIBETAN, False),
        ("一", "一", True),
    ],
)
def test_copies(source: str, target: str, expected: bool) -> None:
    assert copied(source, target) is expected
