"""What is measured is settled before weights are read, and what knows only the embedded world is left out elsewhere."""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.judging.comparison import Pair
from lsemrl.judging.judge import judge_by_oracle
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.micro import corpus
from lsemrl.rewards import Chrf, RewardMix
from lsemrl.rewards.oracle import OracleMeaning
from lsemrl.types import Completion, Example, UserError
from matrix import slow_but
from short_runs import run, sft

WORLD = [str(row["bo"]) for row in corpus.translation("test", 3, 0)]
OWN = ["བཀྲ་ཤིས་བདེ་ལེགས།", "ང་ལ་དེབ་ཞིག་ཡོད།"]
EVERYTHING = ("chrf", "bleu", "rouge_l", "language_rate", "similarity", "meaning", "cmrc")


def examples(texts: list[str]) -> list[Example]:
    return [Example(id=str(at), prompt="", source="", references=(text,)) for at, text in enumerate(texts)]


def completions(texts: list[str]) -> list[Completion]:
    return [Completion(text=row.reference, ended=True, example=row) for row in examples(texts)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "xx"}, r"metrics\.language is 'xx', which is no code"),
        ({"language": "xx", "names": ("chrf",)}, r"metrics\.language is 'xx'"),
        ({"names": ("chrf", "bleurt")}, r"metrics\.names has 'bleurt'; choose among chrf"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MetricSettings(**settings)  # type: ignore[arg-type]


def test_a_language_of_which_most_references_are_not_is_refused() -> None:
    rows = [replace(row, source="ང་ལ་དེབ་ཡོད།", references=("我有一本书。",), pair=True) for row in examples(OWN)]
    with pytest.raises(UserError, match=r"metrics\.language is 'bo', .*; 0\.0% of 2 references pass, and"):
        Scorer(MetricSettings(names=("language_rate",), language="bo")).look_at(rows)
    [line] = Scorer(MetricSettings(names=("language_rate",), language="zh")).look_at(rows)
    assert line.startswith("metrics.language: Chinese is told by Han letters")
    assert line.endswith("100.0% of 2 references pass, and 0.0% of their sources")
    assert Scorer(MetricSettings(names=("chrf",), language="bo")).look_at(rows) == []


def test_bleu_as_papers_report_it_and_copies_of_the_source() -> None:
    import sacrebleu

    said = ["Dem don catch the man.", "the police arrested a man in the city today, they say."]
    meant = ["Dem don catch di man.", "Police don arrest one man for di city today, na so dem tok."]
    source = ["They caught the man.", "The police arrested a man in the city today, they say."]
    rows = [
        Completion(
            text=text, ended=True, example=Example(id="", prompt=asked, source=asked, references=(gold,), pair=True)
        )
        for text, gold, asked in zip(said, meant, source, strict=True)
    ]
    scorer = Scorer(MetricSettings(names=("bleu_13a", "copied"), language="pcm"))
    scores = scorer.score(rows)
    assert scores.corpus["bleu_13a"] == pytest.approx(sacrebleu.corpus_bleu(said, [meant]).score / 100)
    assert "tok:13a" in scorer.signatures["bleu_13a"] and scores.rows["copied"] == (0.0, 1.0)
    titles = [replace(row, example=replace(row.example, pair=False)) for row in rows]
    assert "copied" not in scorer.score(titles).corpus  # which would read 0
    assert "copied is left out" in scorer.look_at([title.example for title in titles])[0]
    with pytest.raises(
        UserError, match="'bleu_13a', which counts words between spaces, and Tibetan is written without"
    ):
        MetricSettings(names=("bleu_13a",), language="bo")


def test_what_is_meaningless_for_a_script_says_so() -> None:
    with pytest.raises(UserError, match="'ter', which counts words between spaces, and Tibetan is written"):
        MetricSettings(names=("ter",), language="bo")
    said = Scorer(MetricSettings(names=("chrf_pp",), language="bo")).look_at(examples(OWN))
    assert len(said) == 1 and "chrf_pp adds words between spaces to chrf, and Tibetan is written without" in said[0]
    scorer = Scorer(MetricSettings(names=("chrf_pp", "ter"), language="en"))
    assert scorer.look_at(examples(["a text"])) == []
    scores = scorer.score(completions(["a text", "another text here"]))
    assert scores.corpus["ter"] == 0 and scores.corpus["chrf_pp"] == pytest.approx(1) and len(scores.rows["ter"]) == 2
    assert scorer.gives(examples(["a"])) == ("ended_rate", "chrf_pp", "ter")


def test_an_encoder_that_is_not_there_is_told_when_the_scorer_is_made() -> None:
    with pytest.raises(UserError, match="no such folder"):
        Scorer(MetricSettings(names=("similarity",), encoder="/no/encoder"))


def test_a_writing_that_bleu_cannot_split_is_told_before_anything_is_scored() -> None:
    with pytest.raises(UserError, match="would be 0 whatever the outputs say"):
        Scorer(MetricSettings(names=("bleu",))).look_at(examples(["བ" * 50]))
    assert Scorer(MetricSettings(names=("chrf",))).look_at(examples(["བ" * 50])) == []


@pytest.mark.parametrize("texts", [WORLD, OWN, [*WORLD, *OWN]], ids=["world", "own", "both"])
def test_the_names_of_scores_are_known_before_there_are_any(texts: list[str]) -> None:
    scorer = Scorer(MetricSettings(names=EVERYTHING))
    assert set(scorer.gives(examples(texts))) == set(scorer(completions(texts)))


@pytest.mark.parametrize("texts", [OWN, [*WORLD, *OWN]], ids=["own", "both"])
def test_meaning_is_left_out_of_rows_that_are_none_of_the_world_and_said(texts: list[str]) -> None:
    scorer = Scorer(MetricSettings(names=("chrf", "meaning")))
    [line] = scorer.look_at(examples(texts))
    assert "meaning is left out" in line and f"2 of {len(texts)} references" in line and OWN[0] in line
    assert set(scorer(completions(texts))) == {"chrf", "ended_rate"} and "meaning" not in scorer.signatures


def test_meaning_is_measured_in_the_world() -> None:
    scorer = Scorer(MetricSettings(names=("meaning",)))
    assert scorer.look_at(examples(WORLD)) == []
    assert scorer(completions(WORLD))["meaning_exact"] == 1.0


def test_the_oracle_as_a_reward_watches_what_it_can_read() -> None:
    parts_N = RewardMix({"chrf": Chrf(), "oracle": OracleMeaning()})(completions([*WORLD[:1], *OWN[:1]]), 2)
    assert parts_N.parts_N["oracle"].isnan().tolist() == [False, True]
    torch.testing.assert_close(parts_N.total_N, torch.ones(2))
    assert math.isnan(float(OracleMeaning()(completions(OWN))[0]))


def test_the_oracle_as_a_reward_says_what_it_cannot_read_and_is_not_trained_on_it() -> None:
    mix = RewardMix({"chrf": Chrf(), "oracle": OracleMeaning()})
    assert mix.look_at(examples(WORLD)) == []
    assert mix.parts["oracle"].look_at([replace(row, references=()) for row in examples(WORLD)]) == ""
    [line] = mix.look_at(examples(OWN))
    assert line.startswith("rewards.oracle: OracleMeaning is left out") and "2 of 2 references" in line
    with pytest.raises(UserError, match=r"OracleMeaning is among the rewards, but .*; leave it out"):
        RewardMix({"chrf": Chrf(), "oracle": OracleMeaning(weight=1.0)}).look_at(examples([*WORLD, *OWN]))


def test_the_oracle_as_a_judge_says_that_it_cannot_read() -> None:
    with pytest.raises(UserError, match=r"the row 'a': the oracle knows only the embedded world.*judge by an endpoint"):
        judge_by_oracle([Pair(id="a", source="", outputs=("x", "y"), references=(OWN[0],))])


@pytest.mark.parametrize("config", slow_but(["sft.yaml", "grpo.yaml"], ["sft.yaml"]))
def test_a_shipped_configuration_runs_on_rows_of_ones_own(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")  # which a demo before it may have raised
    rows = tmp_path / "rows.jsonl"
    words = ["བོད", "ཡིག", "སྐད", "དེབ", "ལས", "མི", "ཆུ", "རི"]
    pairs = [{"zh": f"第{at}句", "bo": "་".join(words[at % 8 :] + words[at // 8 :]) + "།"} for at in range(64)]
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")
    main(
        [
            *("fit", "--config", str(CONFIGS / config), f"--data.source.path={rows}", "--data.splits.part=all"),
            *("--data.batch_size=2", f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.max_steps=1"),
            *("--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu"),
            *("--trainer.enable_progress_bar=false", "--trainer.callbacks=null"),
        ]
    )
    head = (tmp_path / "runs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert "val/chrf" in head and "val/meaning_f1" not in head
    assert "metrics.names: meaning is left out" in caplog.text
    assert ("rewards.meaning: OracleMeaning is left out" in caplog.text) == (config == "grpo.yaml")


def test_what_validation_does_not_measure_is_not_waited_for(tiny_model: str, tmp_path: Path) -> None:
    module = sft(tiny_model)
    with pytest.raises(UserError, match=r"monitor is 'val/meaning_f1', which validation does not measure"):
        run(module, tmp_path, monitor="val/meaning_f1")
    assert module.policy.model is None


def test_a_similarity_says_of_which_weights_it_is(tmp_path: Path) -> None:
    shutil.copytree(micro.ENCODER, tmp_path / "copy")
    scorers = [
        Scorer(MetricSettings(names=("similarity",), encoder=name)) for name in ("micro", str(tmp_path / "copy"))
    ]
    scorers.append(Scorer(MetricSettings(names=("similarity",))))
    with torch.no_grad():
        next(scorers[2].encoders["metrics.encoder 'micro'"].encoder.parameters()).mul_(2)
    for scorer in scorers:
        scorer(completions(WORLD))
    one, same, other = (scorer.signatures["similarity"] for scorer in scorers)
    assert one == same != other and str(tmp_path) not in one
    assert scorers[0].asked == scorers[1].asked != scorers[2].asked
