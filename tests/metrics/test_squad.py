"""SQuAD v1.1's scores, held against an implementation that is not ours, and what else an answer is asked for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from lsemrl.metrics import cmrc
from lsemrl.metrics.contained import contained
from lsemrl.metrics.squad import exact_match, f1, plain

XQUAD = Path(__file__).parents[2].parent / "shared" / "data" / "xquad_en.json"
WORDS = ("a", "an", "the", "The", "cat", "Cat's", "cats", "theatre", "308", "3.08", "$5", "U.S.", "café", "།", "他")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)


def theirs(prediction: str, answers: list[str]) -> tuple[float, float]:
    scored = squad(
        [{"prediction_text": prediction, "id": "0"}],
        [{"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "0"}],
    )
    return float(scored["exact_match"]) / 100, float(scored["f1"]) / 100


def agrees(prediction: str, answers: list[str]) -> None:
    if not plain(prediction) or not all(map(plain, answers)):
        return  # where nothing is left, torchmetrics follows version 2.0, in which an empty answer is one
    em, overlap = theirs(prediction, answers)
    assert exact_match(prediction, answers) == em, (prediction, answers)
    assert f1(prediction, answers) == pytest.approx(overlap, abs=1e-6), (prediction, answers)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_every_score_is_that_of_torchmetrics(prediction: str, answers: list[str]) -> None:
    agrees(prediction, answers)


def test_every_score_is_that_of_torchmetrics_on_the_answers_of_xquad() -> None:
    if not XQUAD.is_file():
        pytest.skip("XQuAD is not part of the project")
    rng = random.Random(0)
    articles = json.loads(XQUAD.read_text(encoding="utf-8"))["data"]
    paragraphs = [each for article in articles for each in article["paragraphs"]]
    golds = [[answer["text"] for answer in qa["answers"]] for each in paragraphs for qa in each["qas"]]
    assert len(golds) == 1190
    for gold in rng.sample(golds, 600):
        other, whole = rng.choice(golds)[0], gold[0].split()
        for said in (
            gold[0],
            f"The answer is {gold[0]}.",
            other,
            " ".join(whole[: rng.randint(1, len(whole))]).upper(),
        ):
            agrees(said, gold)


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "overlap"),
    [
        ("The Broncos!", "broncos", 1, 1.0),
        ("an  apple, a pear", "apple pear", 1, 1.0),
        ("pear apple", "apple pear", 0, 1.0),  # a bag of words
        ("It was Denver Broncos", "Denver Broncos", 0, 2 * 2 / (4 + 2)),
        ("theatre", "atre", 0, 0.0),
        ("", "the", 1, 0.0),  # as the official scorer has it: nothing is shared
    ],
)
def test_by_hand(prediction: str, answer: str, em: int, overlap: float) -> None:
    assert exact_match(prediction, [answer]) == em
    assert f1(prediction, [answer]) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("prediction", "answer", "held"),
    [
        ("The Denver Broncos won the game.", "denver broncos", 1),
        ("Broncos of Denver", "Denver Broncos", 0),
        ("In 1999, he left.", "1999", 1),
        ("In 19990, he left.", "1999", 0),  # a number is one word
        ("concatenate", "cat", 0),
        ("", "cat", 0),
        ("The the", "a", 1),  # nothing is left of either, as for exact match
        ("cat", "the", 0),
        ("costs €", "€", 1),
        ("Paris's tower", "Paris", 1),
        ("Answer:Paris", "Paris", 1),
        ("New York-based", "New York", 1),
        ("the 1990-1999 period", "1999", 1),
        ("rooms 3-4 only", "34", 0),
        ("about 2.5 km", "25", 0),
        ("in the US", "U.S.", 1),
        ("some 3,000 men", "3000", 1),
        ("etwa 2,5 Meter", "5", 0),
        ("1.234,56 Euro", "56", 0),
        ("in 1998,1999", "1999", 1),
        ("१०,००,००० रुपये", "१०", 0),
        ("1\u202f980 habitants", "980", 0),
        ("٢٫٥ متر", "٥", 0),
        ("มี ๑๕ คน", "๕", 0),
        ("မြို့ ၁၅ ခု", "၅", 0),
        ("มี๑๕คน", "15", 1),
    ],
)
def test_an_answer_is_contained_where_it_stands_whole(prediction: str, answer: str, held: int) -> None:
    assert contained(prediction, ["no such", answer], plain) == held


@pytest.mark.parametrize(
    ("prediction", "answer", "held"),
    [
        ("答案是北京大学。", "北京大学", 1),
        ("北京的大学", "北京大学", 0),
        ("于1999年，成立", "1999年", 1),
        ("共12亿", "2亿", 0),
        ("叫Garuda的鸟", "garuda", 1),
        ("2.5张", "5张", 0),
        ("全长3.15公里", "15公里", 0),
        ("有1,200人", "200人", 0),
        ("有1,200人", "1,200人", 1),
        ("选1,2,3", "2", 1),
        ("有3,分别是", "3", 1),
        ("1998、1999年", "1999年", 1),
        ("有iPhone/iPad两种", "iPad", 1),
        ("第3-4章", "34章", 0),
    ],
)
def test_a_chinese_answer_is_contained_character_by_character(prediction: str, answer: str, held: int) -> None:
    assert contained(prediction, [answer], cmrc.plain) == held


@given(TEXTS, TEXTS)
def test_what_matches_exactly_is_contained(prediction: str, answer: str) -> None:
    assert contained(prediction, [answer], plain) >= exact_match(prediction, [answer])
    assert contained(prediction, [answer], cmrc.plain) >= cmrc.exact_match(prediction, [answer])
