"""Another world under the stages of an experiment."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from experiment.world import World
from lsemrl.errors import UserError
from lsemrl.experiment.plan import Experiment
from lsemrl.experiment.read import read_experiment

STAGES: list[dict[str, Any]] = [
    {"name": "cold", "verb": "fit", "configs": ["base.yaml"], "overrides": {"lr": 1.0, "data.part": "cold"}},
    {"name": "rl", "verb": "fit", "configs": ["base.yaml", "rl.yaml"], "overrides": {"beta": 0.1}, "after": "cold"},
    {"name": "rl_measured", "verb": "measure", "configs": [], "overrides": {"arm": "rl"}, "after": "rl"},
    {"name": "base_measured", "verb": "measure", "configs": []},
]


def under(world: World, overlay: dict[str, Any], **fields: Any) -> Experiment:
    (world.folder / "big.yaml").write_text(yaml.safe_dump(overlay, sort_keys=False))
    path = world.write(stages=STAGES, overrides={"fit": {"steps": 9, "lr": 3.0}}, reports={"all": {}}, **fields)
    return read_experiment(path, world.configs, overlay=world.folder / "big.yaml")


def test_an_overlay_changes_what_it_names_and_nothing_else(world: World) -> None:
    (world.configs / "other.yaml").write_text("model: {class_path: a.SFT}\n")
    overlay = {
        "seeds": [7],
        "configs": {"base.yaml": "other.yaml"},
        "overrides": {"fit": {"steps": -1}},
        "stages": {"c*": {"lr": 2.0}, "*": {"depth": 1}, "rl": {"depth": 2}},
        "reports": {"a*": {"against": ["rl"]}},
    }
    experiment = under(world, overlay)
    assert (experiment.name, experiment.seeds) == ("trial_big", (7,))
    assert experiment.output == world.output.with_name(f"{world.output.name}_big")
    cold, rl, measured, _ = experiment.stages
    assert [path.name for path in rl.configs] == ["other.yaml", "rl.yaml"]
    assert cold.overrides == {"steps": -1, "lr": 2.0, "data.part": "cold", "depth": 1}
    assert rl.overrides == {"steps": -1, "lr": 3.0, "beta": 0.1, "depth": 2}
    assert measured.overrides == {"arm": "rl", "depth": 1}
    assert experiment.reports[0].against == ("rl",)


def test_an_empty_overlay_leaves_the_runs_as_they_are(world: World) -> None:
    plain = world.read(stages=STAGES, overrides={"fit": {"steps": 9, "lr": 3.0}})
    assert [run.hashes for run in under(world, {"seeds": [1]}).runs()] == [run.hashes for run in plain.runs()]


def test_what_fits_nothing_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.configs / "other.yaml").write_text("a: 1\n")
    fitting = {"configs": {"rl.yaml": "other.yaml"}, "stages": {"*": {"a": 1}}, "reports": {"all": {}}}
    assert not under(world, {**fitting, "overrides": {"measure": {"a": 1}}}).remark
    overlay = {
        "configs": {"rl.yaml": "other.yaml", "sft.yaml": "other.yaml"},
        "overrides": {"fit": {}, "general": {"a": 1}},
        "stages": {"c*": {}, "bse": {"a": 1}},
        "reports": {"none": {}},
    }
    experiment = under(world, overlay)
    said = "of the overlay, this fits nothing here: configs.sft.yaml, overrides.general, stages.bse, reports.none"
    monkeypatch.setattr(World, "read", lambda self: experiment)
    assert said in world.plan()
    assert said in world.run()[1]


def test_a_later_layer_wins_over_a_part_of_an_earlier_one(world: World) -> None:
    stages = [{**STAGES[0], "overrides": {"lr": {"a": 1}}}, *STAGES[1:]]
    path = world.write(stages=stages, overrides={"fit": {"lr.a": 3.0}})
    (world.folder / "big.yaml").write_text("overrides: {fit: {lr.a: 2}}\n")
    cold = read_experiment(path, world.configs, overlay=world.folder / "big.yaml").stages[0]
    assert list(cold.overrides.items()) == [("lr", {"a": 1}), ("lr.a", 2)]


def test_an_overlay_of_ones_own_over_a_shipped_experiment_means_ones_own_files(world: World) -> None:
    (world.folder / "rl.yaml").write_text("a: 1\n")
    (world.folder / "big.yaml").write_text("configs: {rl.yaml: rl.yaml}\n")
    shipped = world.write(stages=STAGES).rename(world.configs / "trial.yaml")
    rl = read_experiment(shipped, world.configs, overlay=world.folder / "big.yaml").stages[1]
    assert rl.configs == (world.configs / "base.yaml", world.folder / "rl.yaml")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"overrides": ["a"]}, r"overrides is \['a'\]; write"),
        ({"overrides": {"fit": 5}}, "fit is 5; write"),
        ({"reports": ["a"]}, r"reports is \['a'\]; write"),
        ({"reports": {"x": None}}, "reports.x in .* is None; write its fields"),
        ({"stages": 5}, "stages in .* is 5; list"),
        ({"stages": [{**STAGES[0], "verb": ["fit"]}]}, r"verb is \['fit'\]; choose"),
    ],
)
def test_mistakes_of_the_experiment_under_it(world: World, fields: dict[str, Any], sentence: str) -> None:
    (world.folder / "big.yaml").write_text("{overrides: {fit: {a: 1}}, reports: {x: {judge: translation}}}\n")
    with pytest.raises(UserError, match=sentence):
        read_experiment(world.write(**{"stages": STAGES, **fields}), world.configs, overlay=world.folder / "big.yaml")


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ({"values": {}}, "big.yaml has the field 'values'; an overlay's are config_version, description"),
        ({"stages": [1]}, r"stages in .*big.yaml is \[1\]; write `name: value` lines"),
        ({"stages": {"rl": 3}}, r"stages in .*big.yaml is \{'rl': 3\}"),
        ({"overrides": {"mesure": {}}}, "overrides in .*big.yaml: verb is 'mesure'; choose one of fit, "),
        ({"configs": {"base.yaml": "gone.yaml"}}, "configs names 'gone.yaml', and there is no such file"),
        ({"stages": {"rl": {"checkpoints.resume": "x"}}}, "'checkpoints.resume', which the experiment sets"),
    ],
)
def test_mistakes(world: World, overlay: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        under(world, overlay)
