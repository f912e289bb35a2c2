"""Rows that are measured and were trained on, told by how a run divided the same file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsemrl import micro
from lsemrl.commands import fitted_reward
from lsemrl.commands.fit_reward import fit_reward
from lsemrl.commands.measure import measure
from lsemrl.commands.tau_settings import TauSettings
from lsemrl.commands.trained_rows import asked_otherwise, learned_pairs, measured_rows, trained_rows
from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits, split_by_content
from lsemrl.data.translation import Pairs, TranslationData
from lsemrl.evaluation import measure as measuring
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.modules.policy_settings import PolicySettings
from made_up import make_measured

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Writes the folder of a run with the data that it is given; its adapter's folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.jsonl", "other.jsonl", "asked.json"):
        (tmp_path / name).write_text("{}\n", encoding="utf-8")

    def write(kind: str = "TranslationData", **fields: Any) -> Path:
        folder = tmp_path / "run"
        (folder / "adapter").mkdir(parents=True)
        data = {"class_path": f"lsemrl.data.x.{kind}", "init_args": fields}
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
        return folder / "adapter"

    return write


def settings(adapter: Path | None, *, test: str | None = None, **splits: Any) -> MeasureSettings:
    return MeasureSettings(
        arm="rl" if adapter else "base",
        policy=PolicySettings(adapter=str(adapter) if adapter else None),
        target=TranslationData(
            source=Source(path="pairs.jsonl"),
            test=Source(path=test) if test else None,
            splits=Splits(**splits),
        ),
    )


def test_what_another_division_had_trained_on_is_told_by_its_share(run: Run) -> None:
    adapter = run(source={"path": "pairs.jsonl"}, splits={"validation_fraction": 0.05, "test_fraction": 0.05})
    (line,) = measured_rows(settings(adapter, test_fraction=0.2))
    # Of hashes below .2 those from .1 on: half of them.
    assert line.startswith("warning: about 50.0% of the test rows of target are training rows by the splits of ")
    rows = [f"{at}" for at in range(20_000)]
    trained = set(split_by_content(rows, str, validation_fraction=0.05, test_fraction=0.05, seed=0)[0])
    measured = split_by_content(rows, str, validation_fraction=0.05, test_fraction=0.2, seed=0)[2]
    assert sum(row in trained for row in measured) / len(measured) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("theirs", "own", "share"),
    [
        ({}, {}, None),  # both as they are by default
        ({"test_fraction": 0.2}, {"test_fraction": 0.1}, None),  # fewer of the same rows
        ({"validation_fraction": 0.0, "test_fraction": 0.1}, {"test_fraction": 1.0, "validation_fraction": 0.0}, 90.0),
        ({}, {"seed": 1}, 90.0),
        ({"part": "rl", "cold_start_count": 10}, {}, None),
    ],
)
def test_the_same_rows_held_out_are_no_leak(
    run: Run, theirs: dict[str, Any], own: dict[str, Any], share: float | None
) -> None:
    adapter = run(source={"path": "pairs.jsonl"}, splits=theirs)
    lines = measured_rows(settings(adapter, **own))
    assert [line.partition("about ")[2].partition("%")[0] for line in lines] == ([] if share is None else [str(share)])


@pytest.mark.parametrize(
    ("splits", "used"),
    [
        ({"part": "cold_start", "cold_start_count": 1000, "max_rows": 5000}, ", of which it takes 1,000 at most; give"),
        ({"part": "rl", "cold_start_count": 1000, "max_rows": 5000}, ", of which it takes 5,000 at most; give"),
        ({"part": "rl", "cold_start_count": 1000}, "; give"),
    ],
)
def test_a_run_of_a_part_of_its_training_rows(run: Run, splits: dict[str, Any], used: str) -> None:
    """Those of a cold start are few: by the splits alone nearly all of the test seemed to have been learned."""
    adapter = run(source={"path": "pairs.jsonl"}, splits=splits)
    (line,) = measured_rows(settings(adapter, seed=1))
    assert line.startswith("warning: about 90.0% of the test rows of target are training rows by the splits of ")
    assert f"{adapter.parent.resolve()}{used} both the same splits" in line


def test_files_of_their_own_are_held_out(run: Run) -> None:
    adapter = run(source={"path": "pairs.jsonl"}, validation={"path": "a"}, test={"path": "other.jsonl"})
    assert measured_rows(settings(adapter, test="other.jsonl")) == []
    assert "about 100.0% of the test rows of target" in measured_rows(settings(adapter))[0]
    assert "about 100.0% of the test rows of target" in measured_rows(settings(adapter, test="./pairs.jsonl"))[0]


def test_replayed_questions_count_for_general_ability(run: Run) -> None:
    def part(kind: str, path: str, **fields: Any) -> dict[str, Any]:
        return {"class_path": f"lsemrl.data.x.{kind}", "init_args": {"source": {"path": path}, **fields}}

    adapter = run(
        "MixedData",
        main=part("TranslationData", "pairs.jsonl"),
        replay=part("TranslationData", "other.jsonl"),
        more=[{"data": part("ComprehensionData", "asked.json", splits={"test_fraction": 0.5}), "share": 0.1}],
    )
    general = ComprehensionData(source=Source(path="asked.json"), splits=Splits(test_fraction=0.9))
    told = MeasureSettings(**{**vars(settings(adapter)), "general": general})
    (line,) = measured_rows(told)  # .9 - .55 of .9
    assert line.startswith("warning: about 38.9% of the test rows of general are training rows")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"template": None, "chat": True}, None),  # the task's own, by the chat template
        (
            {"template": "翻译成Tibetan：{source}"},
            "template is '翻译成藏文：{source}', and RUN was trained with '翻译成T",
        ),
        ({"system": "s"}, "system is None, and RUN was trained with 's'; give both the same"),
        ({"enable_thinking": True}, "enable_thinking is False, and RUN was trained with True"),
    ],
)
def test_a_policy_that_is_asked_as_it_was_not_in_training(run: Run, template: dict[str, Any], said: str | None) -> None:
    """It was measured by another wording, without a word."""
    back = {"source_field": "bo", "target_field": "zh", "template": {"system": "back"}}
    more = [{"data": {"class_path": "x.TranslationData", "init_args": {"source": {"path": "other.jsonl"}, **back}}}]
    own = {"source": {"path": "pairs.jsonl"}, "source_field": "zh", "target_field": "bo", "template": template}
    adapter = run("MixedData", main={"class_path": "x.TranslationData", "init_args": own}, more=more)
    lines = [line.replace(str(adapter.parent.resolve()), "RUN") for line in measured_rows(settings(adapter))]
    assert len(lines) == (said is not None) and all(
        line.startswith(f"warning: target.template.{said}") for line in lines
    )


def test_templates_that_begin_alike_are_shown_where_they_part(run: Run) -> None:
    long = "word " * 100
    own = {"source": {"path": "pairs.jsonl"}, "template": {"template": f"{long}first {{source}}"}}
    measured = settings(run(**own))
    template = PromptTemplate(template=f"{long}second {{source}}")
    plan = replace(measured.target.plan, template=template)
    (line,) = asked_otherwise(measured.policy.adapter_folder, plan, "TranslationData", "data")
    assert "is …'word word word word second {source}'" in line and "with …'word word word word first {source}'" in line


def test_a_policy_from_elsewhere_and_the_embedded_world_say_nothing(run: Run, tmp_path: Path) -> None:
    assert measured_rows(settings(None)) == []
    assert measured_rows(settings(tmp_path / "adapter", test_fraction=0.5)) == []
    adapter = run(source={"path": "micro"})
    world = MeasureSettings(arm="rl", policy=PolicySettings(adapter=str(adapter)), target=TranslationData())
    assert measured_rows(world) == []
    (adapter.parent / "config.yaml").write_text("data: [1, 2]\n", encoding="utf-8")
    assert measured_rows(settings(adapter, test_fraction=0.5)) == []


def test_it_is_told_before_anything_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = run(source={"path": "pairs.jsonl"})
    (adapter / "adapter_config.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "link").symlink_to(adapter)  # as an experiment's stage has one
    asked = settings(tmp_path / "link", test_fraction=0.5)
    monkeypatch.setattr(MeasureSettings, "check_files", lambda self: None)
    monkeypatch.setattr(measuring, "run_measure", lambda settings, output: make_measured("rl"))
    measure(settings=asked, output=tmp_path / "out")
    assert "about 80.0% of the test rows of target are training rows by the splits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "share"),
    [
        ({"validation_fraction": 0.2}, "75.0%"),  # from .05 to .25, of which the run held out up to .1
        ({"validation_fraction": 0.05}, None),
        ({"validation_fraction": 0.05, "test_fraction": 0.2}, "100.0%"),  # from .2 to .25
    ],
)
def test_a_run_is_told_that_its_policy_has_learned_what_validates_it(
    run: Run, splits: dict[str, float], share: str | None
) -> None:
    adapter = run(source={"path": "pairs.jsonl"})
    data = TranslationData(source=Source(path="pairs.jsonl"), splits=Splits(**splits))
    lines = trained_rows(adapter, "validation", {"data": data})
    assert [line.partition("about ")[2].partition(" of the validation rows of data")[0] for line in lines] == (
        [share] if share else []
    )


def test_fit_tells_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = run(source={"path": "pairs.jsonl"})
    adapter.rmdir()
    shutil.copytree(micro.COLD_START, adapter)
    words = ["fit", "--config", str(CONFIGS / "sft.yaml"), "--trainer.callbacks=null"]
    words += ["--data.source.path=pairs.jsonl", "--data.splits.seed=1", f"--model.policy.adapter={adapter}"]
    run_trainer(words, run=False)
    assert "about 90.0% of the validation rows of data are training rows by the splits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "own", "share"),
    [
        ({"test_fraction": 0.15}, {}, "50.0%"),  # of rows up to .2 those from .1 on
        ({}, {}, None),
        ({}, {"seed": 3}, "90.0%"),
        ({}, {"test_fraction": 0.3, "part": "rl", "cold_start_count": 3}, None),
    ],
)
def test_pairs_that_rl_holds_out_are_none_to_fit_an_encoder_on(
    theirs: dict[str, Any], own: dict[str, Any], share: str | None
) -> None:
    fields = {"class_path": "TranslationData", "init_args": {"source": {"path": "pairs.jsonl"}, "splits": theirs}}
    lines = learned_pairs(Pairs(source=Source(path="pairs.jsonl"), splits=Splits(**own)), "rl.yaml", fields)
    assert [line.partition("about ")[2].partition(" of the rows that rl.yaml holds out")[0] for line in lines] == (
        [share] if share else []
    )
    assert (
        learned_pairs(Pairs(), "rl.yaml", {**fields, "init_args": {"source": {"path": "micro"}, "splits": own}}) == []
    )
    assert learned_pairs(Pairs(source=Source(path="other.jsonl")), "rl.yaml", fields) == []
    assert learned_pairs(Pairs(source=Source(path="pairs.jsonl")), "rl.yaml", None) == []


def test_fit_reward_tells_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rl = yaml.safe_load((CONFIGS / "grpo.yaml").read_text(encoding="utf-8"))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"zh": "水", "bo": "ཆུ"}), encoding="utf-8")
    rl["data"]["init_args"] |= {"source": {"path": str(rows)}, "splits": {"test_fraction": 0.15}}
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(rl), encoding="utf-8")
    monkeypatch.setattr(fitted_reward, "adapt", lambda **asked: None)
    asked = Pairs(source=Source(path=str(rows)))
    fit_reward(output=tmp_path / "reward", grpo=str(tmp_path / "rl.yaml"), data=asked)
    assert "about 50.0% of the rows that" in capsys.readouterr().err
    adapter = run(source={"path": "pairs.jsonl"}, template={"template": "Translate: {source}"})
    fit_reward(output=tmp_path / "reward", tau=TauSettings(policy=str(adapter)), data=asked)
    assert "data.template.template is '翻译成藏文：{source}', and" in capsys.readouterr().err
