from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsemrl.errors import UserError
from lsemrl.metrics.cmrc import exact_match, f1, score
from lsemrl.metrics.corpus import means_of

GOLDEN = Path(__file__).parents[2].parent / "shared" / "data" / "cmrc_official_scores.json"
ANSWERS = st.text(alphabet="北京大学，。 abAB1.", max_size=12)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the official scorer's figures are not part of the project")
def test_every_score_of_the_official_scorer() -> None:
    rows = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(rows) == 335
    for row in rows:
        assert exact_match(row["prediction"], row["answers"]) == row["em"], row
        assert f1(row["prediction"], row["answers"]) == pytest.approx(row["f1"], abs=1e-9), row
    total = means_of(score([row["prediction"] for row in rows], [row["answers"] for row in rows]))
    assert total["em"] == pytest.approx(sum(row["em"] for row in rows) / len(rows), abs=1e-9)
    assert total["f1"] == pytest.approx(sum(row["f1"] for row in rows) / len(rows), abs=1e-9)


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "overlap"),
    [
        ("北京大学", "北京大学", 1, 1.0),
        ("《北京大学》。", "北京大学", 1, 1.0),  # punctuation is dropped
        (" iPhone 6S ", "iphone 6s", 1, 1.0),  # so are case and outer spaces
        ("属于君主，由", "君主", 0, 2 * 2 / (5 + 2)),
        ("甲丙乙", "甲乙", 0, 2 * 1 / (3 + 2)),  # a run, not a subsequence: 甲乙 is broken by 丙
        ("乙甲", "甲乙", 0, 2 * 1 / (2 + 2)),  # nor a bag of words
        ("甲，乙", "甲乙", 1, 1.0),  # dropped punctuation does not break a run
        ("cat sat", "the cat sat", 0, 2 * 2 / (2 + 3)),  # Latin letters by the word
        ("cats", "cat", 0, 0.0),
        ("大约10.2亿", "10.2亿", 0, 2 * 2 / (4 + 2)),  # a number with its point is one piece
        ("共33,700人", "33,700人", 0, 2 * 2 / (3 + 2)),
        ('叫"garuda"', "garuda", 0, 2 * 1 / (4 + 1)),  # quotation marks of ASCII are pieces
        ("A、B和C", "A, B和C", 0, 2 * 2 / (3 + 5)),  # ab | 和 | c against a | , | b | 和 | c
        ("", "甲", 0, 0.0),
        ("，。", "甲", 0, 0.0),
        ("甲", "乙", 0, 0.0),
    ],
)
def test_by_hand(prediction: str, answer: str, em: int, overlap: float) -> None:
    assert exact_match(prediction, [answer]) == em
    assert f1(prediction, [answer]) == pytest.approx(overlap, abs=1e-12)


def test_exactly_the_scorers_punctuation_is_dropped() -> None:
    for mark in "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』":
        assert exact_match(f"甲{mark}乙", ["甲乙"]) == f1(f"甲{mark}乙", ["甲乙"]) == 1
    for mark in ",.;!?()'\"‘…—%":
        assert exact_match(f"甲{mark}乙", ["甲乙"]) == 0 and f1(f"甲{mark}乙", ["甲乙"]) < 1


def test_frequent_characters_count_in_long_answers() -> None:
    text = "的一" * 150
    assert f1(text, [text]) == 1 and f1(text + "甲", ["乙" + text]) == pytest.approx(600 / 602)


def test_the_best_answer_counts() -> None:
    assert exact_match("乙", ["甲", "乙"]) == 1
    assert f1("乙", ["甲", "乙丙", "丁"]) == pytest.approx(2 / 3)


def test_squad_and_rouge_count_something_else() -> None:
    """Why this file exists: torchmetrics gives neither figure."""
    from torchmetrics.functional.text import squad
    from torchmetrics.functional.text.rouge import rouge_score

    prediction, answer = "属于君主，由", "君主"
    official = f1(prediction, [answer])
    bag = squad(
        [{"prediction_text": prediction, "id": "0"}], [{"answers": {"answer_start": [0], "text": [answer]}, "id": "0"}]
    )
    assert float(bag["f1"]) == 0.0 < official
    subsequence = rouge_score("甲丙乙", "甲乙", rouge_keys="rougeL", normalizer=str, tokenizer=list)["rougeL_fmeasure"]
    assert float(subsequence) == pytest.approx(0.8) != f1("甲丙乙", ["甲乙"])


@given(ANSWERS, ANSWERS)
def test_f1_is_a_symmetric_share(one: str, other: str) -> None:
    overlap = f1(one, [other])
    assert 0 <= overlap <= 1 and overlap == f1(other, [one])
    assert f1(one, [one]) in (0.0, 1.0)
    assert exact_match(one, [one]) == 1.0


def test_score_is_the_mean_over_questions() -> None:
    total = means_of(score(["北京大学。", " 属于君主，由 ", ""], [["北京大学"], ["甲", "君主"], ["甲"]]))
    assert total["em"] == pytest.approx(1 / 3)
    assert total["f1"] == pytest.approx((1 + 4 / 7) / 3)
    assert total["average"] == pytest.approx((total["em"] + total["f1"]) / 2)
    assert total["answer_length"] == pytest.approx((5 + 6 + 0) / 3)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "predictions is empty"),
        (["甲"], [], "references has 0 rows for 1 predictions"),
        (["甲", "乙"], [["甲"], []], "references is empty for prediction 1"),
    ],
)
def test_bad_input(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(predictions, references)
