"""A sentence and the table under it speak of one score, and nothing is said of a loss that cannot be measured."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lsemrl.evaluation.measurement import Measured
from lsemrl.report import page, plots
from lsemrl.report.columns import LEARNED, LOSSES, SUMMARY, TERMINAL, grid, speaking
from lsemrl.report.findings import comparisons, finding, path
from lsemrl.report.records import SCORES, Report
from lsemrl.report.tax_report import tax_report
from lsemrl.report.write import table
from lsemrl.types import UserError
from made_up import make_measured

ARMS = ("base", "cold_start", "rl", "sft")


def report_of(*arms: Measured, paths: tuple[tuple[str, ...], ...] = ()) -> Report:
    return tax_report([(Path(f"{one.arm}/{one.seed}"), one) for one in arms], command="", paths=paths)


def without(measured: Measured, *names: str) -> Measured:
    def kept(scores: dict[str, object]) -> dict[str, object]:
        return {name: value for name, value in scores.items() if name not in names}

    return dataclasses.replace(
        measured,
        target=kept(measured.target),
        target_rows=kept(measured.target_rows),  # type: ignore[arg-type]
    )


def with_chrf(measured: Measured, corpus: float, sentences: float) -> Measured:
    """chrF of a corpus weighs long rows more, so that the two can part."""
    rows = tuple(np.full(120, sentences).tolist())
    return dataclasses.replace(
        measured, target=measured.target | {"chrf": corpus}, target_rows=measured.target_rows | {"chrf": rows}
    )


def cells(report: Report, arm: str) -> dict[str, float]:
    columns, rows = grid(report, speaking(report, SUMMARY))
    row = next(row for each, row in rows if each.name == arm)
    return {
        column.head: float(cell.text.replace("\N{MINUS SIGN}", "-"))
        for column, cell in zip(columns, row, strict=True)
        if cell.text != "\N{EN DASH}"
    }


MEANING = ("meaning_f1", "meaning_exact")
KEPT = {
    "meaning_f1": (),
    "chrf_sentence": MEANING,
    "rouge_l": (*MEANING, "chrf"),
    "bleu": (*MEANING, "chrf", "rouge_l"),
    "language_rate": (*MEANING, "chrf", "rouge_l", "bleu"),
}


@pytest.mark.parametrize("score", KEPT)
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_the_score_of_the_sentence_is_in_the_table_with_its_sign(score: str, seeds: tuple[int, ...]) -> None:
    arms = [make_measured(arm, seed) for arm in ARMS for seed in (seeds if arm != "base" else (1,))]
    report = report_of(*(without(one, *KEPT[score]) for one in arms))
    assert report.score == score
    found = re.match(r"RL (gained|lost) ([\d.]+) points of (.+?) (over|from) the cold start", finding(report))
    assert found and found[3] == SCORES[score]
    gain = cells(report, "rl")[found[3]] - cells(report, "cold_start")[found[3]]
    assert gain * (1 if found[1] == "gained" else -1) == pytest.approx(float(found[2]), abs=0.11)
    assert found[3] in [column.head for column in grid(report, speaking(report, TERMINAL))[0]]


def test_answers_of_the_new_task_are_told_by_exact_match() -> None:
    def answered(arm: str, share: float) -> Measured:
        rows = {name: tuple(np.full(120, share).tolist()) for name in ("em", "f1", "answer_length", "ended_rate")}
        return make_measured(arm, target_rows=rows, target=dict.fromkeys((*rows, "average"), share))

    report = report_of(answered("base", 0.2), answered("rl", 0.6))
    assert report.score == "em" and finding(report).startswith("RL gained 40.0 points of exact match over the base")
    columns, rows = grid(report, LEARNED)
    learned = {column.head: cell.text for column, cell in zip(columns, rows[1][1], strict=True)}
    assert [learned[head] for head in ("exact match", "F1", "average", "length")] == ["60.0", "60.0", "60.0", "0.6"]
    assert path(report.trained[0], "em", "em")[-1][1:] == (0.6, report.trained[0].general["em"])


def test_no_headline_names_a_score_that_nobody_measured() -> None:
    told = {"target_rows": {"comet": (0.5,) * 120}, "target": {"comet": 0.5}}
    report = report_of(make_measured("base", **told), make_measured("rl", **told))
    assert finding(report) == "No arm has both a score that tells a gain and a score of Chinese QA to compare"


def test_a_corpus_that_says_the_opposite_of_its_sentences_is_not_beside_the_headline() -> None:
    arms = [without(make_measured(arm), *MEANING) for arm in ("base", "rl")]
    report = report_of(with_chrf(arms[0], 0.20, 0.30), with_chrf(arms[1], 0.25, 0.277))
    assert finding(report).startswith("RL fell by 2.3 points of chrF of sentences from the base")
    shown = cells(report, "rl")
    assert shown["chrF of sentences"] == 27.7 and "chrF" not in shown
    assert "| chrF of sentences |" in page.markdown(report, []).split("## What each arm learned")[0]
    assert not any("chrF is" in line for line in comparisons(report))


@pytest.mark.parametrize("score", KEPT)
def test_ways_are_compared_by_whatever_score_there_is(score: str) -> None:
    arms = (
        without(make_measured(arm, seed), *KEPT[score]) for arm in ARMS for seed in ((1, 2) if arm != "base" else (1,))
    )
    report = report_of(*arms, paths=(("cold_start", "rl"), ("cold_start", "sft")))
    same = [line for line in comparisons(report) if line.startswith(f"At the same {SCORES[score]} of")]
    assert len(same) == len(report.same_scores)
    assert same or score == "language_rate"  # which every arm has alike


def test_ways_without_any_score_are_refused_in_one_sentence() -> None:
    arms = [without(make_measured(arm), *KEPT["language_rate"], "language_rate") for arm in ("base", "rl", "sft")]
    with pytest.raises(UserError, match=r"--path compares .* have no score to compare by; measure again with chrf"):
        report_of(*arms, paths=(("rl",), ("sft",)))
    assert finding(report_of(*arms)).startswith("No arm has both")


@pytest.fixture(scope="module")
def unanswered() -> Report:
    def ask(measured: Measured, right: float, nll: float) -> Measured:
        rows = measured.general_rows | {"em": (right,) * 120, "f1": (right,) * 120, "nll": (nll,) * 120}
        scores = {"em": right, "f1": right, "average": right, "nll": nll, "answer_length": 3.0}
        return dataclasses.replace(measured, general=scores, general_rows=rows)

    return report_of(
        ask(make_measured("base"), 0.0, 12.0),
        ask(make_measured("rl"), 0.0, 1.5),
        ask(make_measured("sft"), 0.0, 4.5),
        paths=(("rl",), ("sft",)),
    )


def test_a_base_that_answers_nothing_has_nothing_to_lose(unanswered: Report) -> None:
    said = finding(unanswered)
    assert said.endswith("what was lost of Chinese QA cannot be measured: the base answers none")
    assert not re.search(r"and (lost|gained)", said)
    assert not any("lost" in line for line in comparisons(unanswered))
    columns, rows = grid(unanswered, LOSSES)
    assert "EM lost" not in [column.head for column in columns]
    assert not any(cell.best for _, row in rows for cell in row)


def test_what_a_base_that_answers_nothing_lost_is_told_by_its_gold_answers() -> None:
    def ask(measured: Measured, nll: float, leak: float, asked: float = 0.0) -> Measured:
        general = {"em": 0.0, "nll": nll, "leak": leak, "asked_back": asked}
        rows = {name: (value,) * 120 for name, value in general.items()}
        return dataclasses.replace(measured, general=general, general_rows=measured.general_rows | rows)

    report = report_of(ask(make_measured("base"), 3.08, 0.01), ask(make_measured("rl"), 3.75, 0.23))
    assert re.match(
        r"RL gained [\d.]+ points of .+ at \+0\.67 nats a token of the gold answers to Chinese QA against the base; "
        r"what was lost of Chinese QA cannot be measured: the base answers none$",
        finding(report),
    )
    assert "RL answers 23% of the questions of Chinese QA in the language it learned (the base 1%)." in comparisons(
        report
    )
    same = report_of(ask(make_measured("base"), 3.08, 0.2), ask(make_measured("rl"), 3.75, 0.23))
    assert not any("answers 2" in line for line in comparisons(same))
    back = report_of(ask(make_measured("base"), 3.08, 0.0, 0.01), ask(make_measured("rl"), 5.0, 0.0, 0.51))
    assert "RL answers 51% of the questions of Chinese QA by a question (the base 1%)." in comparisons(back)


def test_no_page_and_no_plot_has_a_loss_of_nothing(unanswered: Report) -> None:
    text = page.markdown(unanswered, [])
    assert "lost 0.0" not in text and "**\N{MINUS SIGN}10.5" not in text and "EM lost" not in text
    assert "cannot be measured: the base answers none" in text
    figures = plots.draw(unanswered)
    assert "kl_tax" not in figures
    plane = figures["gain_tax"].axes[0]  # over what gold answers lost in likelihood
    assert plane.get_xlabel().startswith("NLL of the gold answer minus the base's")
    ends = [float(np.asarray(line.get_xdata())[-1]) for line in plane.lines if line.get_markersize() == 9]
    assert ends == [arm.general["nll"] - unanswered.base.general["nll"] for arm in unanswered.arms]
    assert table(unanswered).title


def test_arms_that_are_alike_have_no_best() -> None:
    one = make_measured("rl")
    report = report_of(make_measured("base"), one, dataclasses.replace(one, arm="sft", label="Strong SFT"))
    assert not any(cell.best for _, row in grid(report, SUMMARY)[1] for cell in row)


def answering(measured: Measured, right: int, rows: int = 120) -> Measured:
    em = (1.0,) * right + (0.0,) * (rows - right)
    scores = measured.general | {"em": right / rows, "average": (right / rows + measured.general["f1"]) / 2}
    return dataclasses.replace(measured, general=scores, general_rows=measured.general_rows | {"em": em})


@pytest.mark.parametrize(("right", "known"), [(1, False), (3, False), (4, True)])
def test_a_base_that_answers_next_to_nothing_has_as_good_as_nothing_to_lose(right: int, known: bool) -> None:
    report = report_of(*(answering(make_measured(arm), at) for arm, at in (("base", right), ("rl", 0), ("sft", 1))))
    sentence = f"cannot be measured: the base answers only {right} of 120"
    assert (sentence in page.markdown(report, [])) is not known
    columns, rows = grid(report, LOSSES)
    assert ("EM lost" in [column.head for column in columns]) is known
    assert any(cell.best for _, row in rows for cell in row) is known
    assert ("kl_tax" in plots.draw(report)) is known


def test_of_a_single_row_there_is_no_interval() -> None:
    arms = [make_measured(arm, rows=1) for arm in ("base", "cold_start", "rl")]
    report = report_of(*arms)
    assert report.contrasts and all(math.isnan(each.low) and math.isnan(each.high) for each in report.contrasts)
    assert not any(cell.interval for _, row in grid(report, LOSSES)[1] for cell in row)
    text = page.markdown(report, [])
    assert "[" not in "".join(line for line in text.splitlines() if line.startswith("|")) and "nan" not in text
    assert plots.draw(report)


def test_a_score_that_is_not_finite_is_no_sentence() -> None:
    broken = make_measured("rl")
    rows = broken.general_rows | {"em": (math.nan, *broken.general_rows["em"][1:])}
    broken = dataclasses.replace(broken, general=broken.general | {"em": math.nan}, general_rows=rows)
    said = comparisons(report_of(make_measured("base"), make_measured("cold_start"), broken, make_measured("sft")))
    assert not any("nan" in line for line in said)


def test_scores_of_words_are_shown_with_their_intervals_and_fewer_edits_are_better() -> None:
    def with_words(measured: Measured, edits: float) -> Measured:
        spread = tuple(np.linspace(edits, edits + 0.2, 120).tolist())
        return dataclasses.replace(
            measured,
            target=measured.target | {"ter": edits, "chrf_pp": 0.5, "spbleu": 0.2},
            target_rows=measured.target_rows | {"ter": spread, "chrf_pp": tuple(np.full(120, 0.4).tolist())},
        )

    arms = [
        with_words(make_measured(arm, 1), edits) for arm, edits in (("base", 1.9), ("cold_start", 1.1), ("rl", 0.7))
    ]
    columns, rows = grid(report_of(*arms), LEARNED)
    shown = {
        column.head: cell
        for column, cell in zip(columns, dict((arm.name, row) for arm, row in rows)["rl"], strict=True)
    }
    assert (shown["TER"].text, shown["spBLEU"].text, shown["chrF++"].text) == ("70.0", "20.0", "50.0")
    assert shown["TER"].best and shown["TER of sentences"].interval and shown["chrF++ of sentences"].text == "40.0"
