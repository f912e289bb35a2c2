"""Intervals of scores that are made of sums over a corpus: BLEU, chrF and TER."""

from __future__ import annotations

import dataclasses
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import Measured
from lsemrl.metrics import corpus
from lsemrl.report import page
from lsemrl.report.bootstrap import paired_bootstrap, pooled_bootstrap
from lsemrl.report.tax_report import tax_report
from made_up import make_measured

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "its", "own", "tail", "again"]
THEIRS = {
    "bleu_13a": (partial(corpus.bleu_13a, language="en"), BLEU()),
    "chrf": (corpus.chrf, CHRF()),
    "chrf_pp": (partial(corpus.chrf, words=True), CHRF(word_order=2)),
    "ter": (partial(corpus.ter, language="en"), TER()),
}


def texts(count: int, wrong: float, seed: int) -> tuple[list[str], list[list[str]]]:
    """Outputs with so large a share of wrong words, and two references of each."""
    draw = random.Random(0)
    references = [[" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(2)] for _ in range(count)]
    draw = random.Random(seed)
    outputs = [
        " ".join(draw.choice(WORDS) if draw.random() < wrong else word for word in first.split())
        for first, _ in references
    ]
    return outputs, references


@pytest.mark.parametrize("name", THEIRS)
def test_sums_of_counts_score_as_sacrebleu_scores_the_corpus(name: str) -> None:
    ours, theirs = THEIRS[name]
    outputs, references = texts(40, 0.3, seed=1)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    expected = theirs.corpus_score(outputs, streams).score / 100
    score = ours(outputs, references)
    counts_NK = np.array(score.counts)
    assert score.value == expected == corpus.pooled(name, counts_NK.sum(axis=0, keepdims=True))[0]
    again = [3, 3, 0, 17]
    drawn = theirs.corpus_score([outputs[at] for at in again], [[one[at] for at in again] for one in streams])
    assert corpus.pooled(name, counts_NK[again].sum(axis=0, keepdims=True))[0] == pytest.approx(drawn.score / 100)
    if score.rows:
        alone = [
            theirs.sentence_score(said, meant).score / 100 for said, meant in zip(outputs, references, strict=True)
        ]
        assert list(score.rows) == alone


def test_of_a_score_that_is_a_mean_it_is_the_bootstrap_of_rows() -> None:
    rng = np.random.default_rng(0)
    own_SN, other_SN = rng.normal(0.3, 1, (3, 60)), rng.normal(0, 1, (3, 60))
    rows = paired_bootstrap(own_SN - other_SN, draws=1_000)
    sums = pooled_bootstrap(own_SN[:, :, None], other_SN[:, :, None], lambda sums_RK: sums_RK[:, 0] / 60)
    assert dataclasses.astuple(sums) == pytest.approx(dataclasses.astuple(rows), abs=1e-6)


def test_an_arm_against_itself_differs_by_nothing_of_which_nothing_follows_as_of_one_row() -> None:
    counts_SNK = np.array(corpus.chrf(*texts(20, 0.3, seed=1)).counts)[None]
    score = partial(corpus.pooled, "chrf")
    same = pooled_bootstrap(counts_SNK, counts_SNK, score)
    assert same.value == 0 and np.isnan([same.low, same.high]).all()
    assert np.isnan(pooled_bootstrap(counts_SNK[:, :1], counts_SNK[:, :1], score).low)


def test_where_every_draw_scores_the_same_there_is_no_interval() -> None:
    """Of two arms with a BLEU of 0 in all rows, [0, 0] would be certainty."""
    references = texts(20, 0, seed=1)[1]
    own, other = (corpus.bleu_13a([said] * 20, references, "en") for said in ("no", "nothing at all"))
    found = pooled_bootstrap(np.array([own.counts]), np.array([other.counts]), partial(corpus.pooled, "bleu_13a"))
    assert own.counts != other.counts and found.value == 0 and np.isnan([found.low, found.high]).all()


def measured(arm: str, seed: int, wrong: float) -> Measured:
    score = corpus.bleu_13a(*texts(120, wrong, seed), language="en")
    made = make_measured(arm, seed)
    return dataclasses.replace(
        made, target=made.target | {"bleu_13a": score.value}, target_counts={"bleu_13a": score.counts}
    )


def test_a_report_has_the_interval_of_bleu() -> None:
    arms = [("base", 1, 0.8), *((arm, seed, wrong) for arm, wrong in (("rl", 0.3), ("sft", 0.2)) for seed in (1, 2, 3))]
    report = tax_report([(Path(f"{arm}{seed}"), measured(arm, seed, wrong)) for arm, seed, wrong in arms], command="")
    found = report.contrast("rl", "base", "target.bleu_13a")
    rl = next(arm for arm in report.arms if arm.name == "rl")
    gained = rl.target["bleu_13a"] - report.base.target["bleu_13a"]
    assert found is not None and found.value == pytest.approx(gained) and 0.1 < found.low < gained < found.high
    assert f"{100 * found.low:.1f}, {100 * found.high:.1f}]" in page.markdown(report, [])


def test_no_interval_goes_beyond_what_a_score_can_be() -> None:
    """Student's t of two seeds is 12.7 times their standard error."""
    arms = [("base", 1, 0.8), ("rl", 1, 0.1), ("rl", 2, 0.6)]
    report = tax_report([(Path(f"{arm}{seed}"), measured(arm, seed, wrong)) for arm, seed, wrong in arms], command="")
    found = report.contrast("rl", "base", "target.bleu_13a")
    assert found is not None and found.low == -1 < found.value < found.high == 1
    own_SNK, other_SNK = np.array([[[0.0], [1.0]], [[9.0], [9.0]]]), np.zeros((2, 2, 1))
    assert pooled_bootstrap(own_SNK, other_SNK, lambda sums_RK: sums_RK[:, 0]).high > 100  # such as TER


def test_counts_that_are_not_of_all_rows_are_refused(tmp_path: Path) -> None:
    made = measured("rl", 1, 0.3)
    for counts in (made.target_counts["bleu_13a"][:5], (*made.target_counts["bleu_13a"][1:], (1.0,))):
        with pytest.raises(ValueError, match=r"target_counts\.bleu_13a has"):
            dataclasses.replace(made, target_counts={"bleu_13a": counts})
    path = made.write(tmp_path)
    assert Measured.read(path) == made
    path.write_text(path.read_text().replace('"target_counts": {', '"target_counts": {"bleu": [[1.0], [2.0]],', 1))
    with pytest.raises(UserError, match="measure again"):
        Measured.read(path)
