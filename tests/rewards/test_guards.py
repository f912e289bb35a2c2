"""Each guard closes the hack it is for, and leaves alone what references do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from lsemrl.rewards import Broken, CopyOfSource, LanguageConsistency, Length, Repetition, Reward, RewardMix
from lsemrl.rewards.guards import guarded
from lsemrl.types import Completion, Example, UserError

ENGLISH = "The police have arrested two men for the market in Lagos"
PIDGIN = "Police don arrest two men for di market wey dey Lagos"
TITLE = "ཨ་ཅེས་དཔེ་ཆ་སྦས་པ།"
MAFAND = Path(__file__).parents[3] / "shared" / "data" / "mafand_pcm" / "test.jsonl"


def score(part: Reward, text: str, *references: str, source: str = ENGLISH, pair: bool = True) -> float:
    example = Example(id="0", prompt="", source=source, references=references or (PIDGIN,), pair=pair)
    [found] = part([Completion(text=text, ended=True, example=example)]).tolist()
    return found


def test_a_copy_earns_nothing_where_script_and_encoder_see_no_difference() -> None:
    part = CopyOfSource()
    assert score(LanguageConsistency(language="pcm"), ENGLISH) == 1
    assert score(part, ENGLISH) == score(part, ENGLISH.upper() + "!!") == 0
    assert score(part, PIDGIN) == 1
    # Words that the reference keeps are free, and of a text half copied about half is held against it.
    assert score(part, "Police for Lagos don arrest two men") == 1
    assert 0.3 < score(part, "The police have arrested two men for di market wey dey Lagos") < 0.7


@pytest.mark.parametrize(
    ("text", "references", "pair"),
    [
        (ENGLISH, (PIDGIN,), False),  # an article and its title share words by right
        ("Obama", ("Obama in Lagos",), True),
    ],
)
def test_copying_is_no_question_in_one_language_and_where_the_reference_is_a_copy(
    text: str, references: tuple[str, ...], pair: bool
) -> None:
    assert math.isnan(score(CopyOfSource(), text, *references, source="Obama in Lagos", pair=pair))


def test_what_copies_nothing_is_no_copy() -> None:
    assert score(CopyOfSource(), "") == score(CopyOfSource(), "...") == score(CopyOfSource(), "ཨ་ཅེ") == 1
    assert score(CopyOfSource(), "men") == 0  # shorter than an n-gram
    # "e no" lies in "she not", and is no copy of it.
    assert score(CopyOfSource(), "E no", "E no dey", source="She not dey house") == 1


@pytest.mark.skipif(not MAFAND.exists(), reason="the sentences of MAFAND are not part of the project")
def test_copies_of_real_sentences_are_caught_and_references_never() -> None:
    rows = [json.loads(line)["translation"] for line in MAFAND.read_text(encoding="utf-8").splitlines()[:300]]
    part = CopyOfSource()
    copied = [score(part, row["en"], row["pcm"], source=row["en"]) for row in rows]
    kept = [score(part, row["pcm"], row["pcm"], source=row["en"]) for row in rows]
    assert {each for each in copied if not math.isnan(each)} == {0.0}
    assert {each for each in kept if not math.isnan(each)} == {1.0}
    assert fmean(map(math.isnan, copied)) < 0.03


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PIDGIN, 1.0),
        (f"{PIDGIN} Police dey", 1.0),
        (f"{PIDGIN} and so on for all of di people wey dey", 17.6 / 21),  # a right answer, padded
        ("Police", 1 / 6.6),
        ("", 0.0),
    ],
)
def test_length(text: str, expected: float) -> None:
    assert score(Length(), text) == pytest.approx(expected, abs=1e-6)


def test_length_is_counted_in_what_the_script_is_cut_into_and_by_any_reference() -> None:
    assert score(Length(shortest=1, longest=1), "གཅིག་གཉིས་གསུམ།", "ལྔ་དྲུག་བདུན།") == 1
    assert score(Length(shortest=1, longest=1), "三个字", "四五六") == 1
    assert score(Length(shortest=1, longest=1), "a b c", "a", "a b c d e") == 1
    assert math.isnan(score(Length(), "a", "..."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PIDGIN, 1.0),
        ("na", 1.0),
        ("", 1.0),
        ("na na na na na na", 1 / 4),
        ("di man di man di man di man", 2 / 6),  # a phrase that loops
        (f"{PIDGIN} {PIDGIN}", 11 / 20),
    ],
)
def test_repetition(text: str, expected: float) -> None:
    assert score(Repetition(), text) == pytest.approx(expected)


def test_what_the_reference_repeats_may_be_repeated() -> None:
    assert score(Repetition(), "row row row row", "row row row row your boat") == pytest.approx((1 / 2) / (3 / 4))
    assert score(Repetition(), "la la la la", "la la la la la") == 1


@pytest.mark.parametrize(
    "text",
    [
        "\ufffd",
        "a\x00b",
        "a\x1bb",
        "a\x9db",
        "a\ud800",
        "\uffff",
        "<|im_end|>",
        "hi </s>",
        "[INST] hi",
        "<pad>",
        "<\uff5cUser\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[TOOL_CALLS]",
        "<extra_id_0>",
    ],
)
def test_broken(text: str) -> None:
    assert score(Broken(), text) == 0
    assert score(Broken(), text, f"ok {text}") == 1  # so it is here


@pytest.mark.parametrize(
    "text", ["", PIDGIN, TITLE, "a\tb\r\nc", "1 < 2 > 0 | a", "می\u200cخواهم", "👩\u200d🚒", "[1]"]
)
def test_whole_texts_are_not_broken(text: str) -> None:
    assert score(Broken(), text) == 1


def test_any_guard_is_a_gate() -> None:
    example = Example(id="0", prompt="", source=ENGLISH, references=(PIDGIN,), pair=True)
    texts = [PIDGIN, ENGLISH, "Police", f"{PIDGIN} {PIDGIN} {PIDGIN}", f"{PIDGIN}<|im_end|>"]
    guards = {"copy": CopyOfSource(), "length": Length(), "repetition": Repetition(), "broken": Broken()}
    parts = {"language": LanguageConsistency(language="pcm"), **guards}
    mix = RewardMix(parts, combine="gate", gate=list(guards))
    found = mix([Completion(text=text, ended=True, example=example) for text in texts], 1)
    assert found.total_N.tolist() == [1, 0, 0, 0, 0]
    for name, at in {"copy": 1, "length": 2, "repetition": 3, "broken": 4}.items():
        assert not guards[name].opens(found.parts_N[name])[at]
    assert Length().opens(torch.tensor([0.79, 0.8, math.nan])).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CopyOfSource(opens_from=0), "opens_from is 0 in CopyOfSource"),
        (lambda: Length(shortest=-0.1), "shortest is -0.1 in Length"),
        (lambda: Length(longest=math.inf), "longest is inf in Length"),
        (lambda: Repetition(weight=math.nan), "weight is nan in Repetition"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()  # type: ignore[operator]


def test_that_copying_is_no_question_is_said() -> None:
    rows = [Example(id="0", prompt="", source="a", references=("b",), pair=pair) for pair in (False, True)]
    assert "left out" in CopyOfSource().look_at(rows[:1]) and CopyOfSource().look_at(rows) == ""


@pytest.mark.parametrize(
    ("part", "text", "expected"),
    [
        (CopyOfSource(), ENGLISH, 0.0),
        (CopyOfSource(), PIDGIN, 4 / 7),
        (Repetition(), "di man don go di man don go", 4 / 6),
        (Broken(), "di man \ufffd", 0.0),
        (LanguageConsistency(language="bo"), TITLE, 1.0),
    ],
)
def test_guards_that_need_no_reference(part: Reward, text: str, expected: float) -> None:
    assert not part.reads_references
    alone = Example(id="0", prompt="", source=ENGLISH, references=(), pair=True)
    [found] = part([Completion(text=text, ended=True, example=alone)]).tolist()
    assert found == pytest.approx(expected, abs=1e-3)


def test_of_several_answers_the_first_that_no_guard_shuts_out_is_taken() -> None:
    example = Example(id="0", prompt="", source=ENGLISH, references=(ENGLISH,), pair=True)  # which would excuse a copy

    def chosen(*texts: str, of: Example = example) -> str:
        said = [Completion(text=text, ended=True, example=of) for text in texts]
        (one,) = guarded([said])
        assert one in said
        return one.text

    assert chosen(ENGLISH, PIDGIN, "another") == PIDGIN
    assert chosen("wetin wetin wetin wetin wetin wetin", f"<|im_start|>{PIDGIN}", PIDGIN) == PIDGIN
    assert chosen(ENGLISH, f"{PIDGIN}\ufffd") == ENGLISH  # none is
    assert chosen(ENGLISH, PIDGIN, of=replace(example, pair=False)) == ENGLISH
    assert chosen(ENGLISH) == ENGLISH
    assert guarded([]) == []


def test_the_rule_of_language_looks_at_sources_where_there_is_no_reference() -> None:
    alone = Example(id="0", prompt="", source=ENGLISH, references=(), pair=True)
    said = LanguageConsistency(language="bo").look_at([alone])
    assert said.endswith("; 0.0% of 1 sources pass")
    with pytest.raises(UserError, match=r"cannot tell an untranslated source .*100\.0% of 1 sources pass"):
        LanguageConsistency(language="pcm").look_at([alone])
