"""Reading an experiment: order, commands, hashes, and one sentence for every mistake."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from experiment.world import STAGES, World
from lsemrl.commands import best_rows
from lsemrl.errors import UserError
from lsemrl.evaluation import measurement
from lsemrl.experiment import hashes
from lsemrl.experiment.plan import VERBS, Run
from lsemrl.experiment.read import read_experiment
from lsemrl.identification import ngrams
from lsemrl.report import folders
from lsemrl.runs import ADAPTER


def runs(world: World, **fields: Any) -> dict[str, Run]:
    return {run.name: run for run in world.read(**fields).runs()}


def changed(before: dict[str, Run], after: dict[str, Run]) -> list[str]:
    return [name for name in before if before[name].hashes["all"] != after[name].hashes["all"]]


def with_stage(**fields: Any) -> list[dict[str, Any]]:
    """The stages with `fields` in the first."""
    stages = copy.deepcopy(STAGES)
    stages[0] |= fields
    return stages


def test_parents_come_first_and_a_seed_is_finished_before_the_next(world: World) -> None:
    assert [run.name for run in world.read(seeds=[3, 1]).runs()] == [
        f"{stage} seed {seed}" for seed in (3, 1) for stage in ("cold", "rl", "rl_test", "other")
    ]


def test_the_command_of_a_run(world: World) -> None:
    values = {
        "a.none": None,
        "a.true": True,
        "a.number": 5e-4,
        "a.text": "1e-3",
        "a.list": ["x", 1],
        "a.map": {"b": None},
    }
    found = runs(world, overrides={"fit": {"a.number": 1, "b.common": 2}}, stages=with_stage(overrides=values))[
        "rl seed 1"
    ]
    assert found.command == (
        "fit",
        "--config",
        str(world.configs / "rl.yaml"),
        "--seed_everything=1",
        f"--trainer.default_root_dir={world.output}/rl/seed_1",
        "--b.common=2",
        "--a.none=null",
        "--a.true=true",
        "--a.number=0.0005",
        "--a.text=1e-3",
        '--a.list=["x", 1]',
        '--a.map={"b": null}',
        f"--model.policy.adapter={world.output}/cold/seed_1/adapter",
    )


def test_what_verbs_leave_is_what_they_write() -> None:
    written = {"measure": measurement.FILE, "best-of": best_rows.FILE, "fit-language": f"identifier/{ngrams.ABOUT}"}
    written |= {"general": folders._GENERAL, "rehearse": VERBS["rehearse"].file, "fit": ADAPTER}
    assert {verb: told.leaves for verb, told in VERBS.items() if told.leaves} == written


def test_a_stage_overrides_parts_of_what_is_common_and_the_whole(world: World) -> None:
    common = {"a.b": 1, "a": {"c": 2}, "d": {"e": 3}}
    found = runs(world, overrides={"fit": common}, stages=with_stage(overrides={"a.b": 4, "d.e": 5}))["rl seed 1"]
    assert [word for word in found.command if word[:4] in ("--a.", "--a=", "--d.", "--d=")] == [
        '--a={"c": 2}',
        '--d={"e": 3}',
        "--a.b=4",
        "--d.e=5",
    ]


def test_common_overrides_are_of_one_verb(world: World) -> None:
    found = runs(world, overrides={"fit": {"a.b": 1}})
    assert "--a.b=1" in found["cold seed 1"].command
    assert "--a.b=1" not in found["rl_test seed 1"].command


def test_a_verb_of_our_own_is_told_its_folder_in_its_own_way(world: World) -> None:
    stage = {"name": "measured", "verb": "measure", "configs": ["base.yaml"], "after": "rl"}
    assert runs(world, stages=[*STAGES, stage])["measured seed 1"].command[3:] == (
        "--seed=1",
        f"--output={world.output}/measured/seed_1",
        f"--policy.adapter={world.output}/rl/seed_1/adapter",
    )


def test_a_stage_may_name_the_folder_of_another(world: World) -> None:
    source = {"data.source": {"path": "{stage:rl_test}/rows.jsonl", "template": "{source}"}}
    stage = {"name": "again", "verb": "fit", "configs": ["base.yaml"], "overrides": source}
    before = runs(world, stages=[stage, *STAGES])
    assert list(before) == ["cold seed 1", "rl seed 1", "rl_test seed 1", "again seed 1", "other seed 1"]
    word = f'--data.source={{"path": "{world.output}/rl_test/seed_1/rows.jsonl", "template": "{{source}}"}}'
    assert word in before["again seed 1"].command
    after = runs(world, stages=[stage, *with_stage(overrides={"a.b": 1})])
    assert changed(before, after) == ["rl seed 1", "rl_test seed 1", "again seed 1"]


def test_a_change_reaches_what_builds_on_it_and_nothing_else(world: World) -> None:
    before = runs(world, seeds=[1, 2])
    assert len({run.hashes["all"] for run in before.values()}) == 8
    assert changed(before, runs(world, seeds=[1, 2])) == []
    words = runs(
        world, seeds=[1, 2], output=str(world.folder / "elsewhere"), stages=with_stage(label="L", description="D")
    )
    assert changed(before, words) == []
    after = runs(world, seeds=[1, 2], stages=with_stage(overrides={"model.loss.beta": 0.2}))
    assert changed(before, after) == [f"{stage} seed {seed}" for seed in (1, 2) for stage in ("rl", "rl_test")]
    (world.configs / "rl.yaml").write_text("# said\nmodel: {class_path: a.GRPO, init_args: {loss: {beta: 0.1}}}\n")
    assert changed(before, runs(world, seeds=[1, 2])) == []
    (world.configs / "rl.yaml").write_text("model: {class_path: a.GRPO, init_args: {loss: {beta: 0.2}}}\n")
    stages = ("rl", "rl_test", "other")
    assert changed(before, runs(world, seeds=[1, 2])) == [f"{stage} seed {seed}" for seed in (1, 2) for stage in stages]


def test_the_content_of_data_and_of_models_counts(world: World) -> None:
    (world.folder / "rows.jsonl").write_text("1")
    for name, marker in (("model", "config.json"), ("cold", "notes.txt"), ("language", "identifier.json")):
        (world.folder / name).mkdir()
        (world.folder / name / marker).write_text("1")
    (world.configs / "base.yaml").write_text(
        "data: {path: rows.jsonl}\npolicy: [model]\npart: cold\nlanguage: {code: pcm, identifier: language}\n"
    )
    before = runs(world)
    (world.folder / "cold" / "notes.txt").write_text("2")  # a word that happens to be a folder's name
    assert changed(before, runs(world)) == []
    (world.folder / "rows.jsonl").write_text("2")
    data = runs(world)
    assert changed(before, data) == list(before)
    assert data["cold seed 1"].hashes["settings"] == before["cold seed 1"].hashes["settings"]
    (world.folder / "model" / "weights").write_text("2")
    model = runs(world)
    assert changed(data, model) == list(before)
    (world.folder / "language" / "weights.safetensors").write_text("2")
    assert changed(model, runs(world)) == list(before)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("typed.jsonl", False),  # the override is of another text, or of nothing
        ("given", False),  # the runner sets it
        ("written", False),
        ("first.jsonl", False),  # the second file says another
        ("beside.jsonl", True),  # a mapping over it names other fields
        ("rows.jsonl", True),
        ("listed.jsonl", False),
        ("class.jsonl", False),  # the same field, less init_args
        ("again.jsonl", True),
    ],
)
def test_what_is_replaced_does_not_count(file: str, counts: bool, world: World) -> None:
    (world.configs / "base.yaml").write_text("data: {class_path: a.B, init_args: {path: first.jsonl, list: [x]}}\n")
    (world.configs / "rl.yaml").write_text(
        "data: {path: rows.jsonl, list: [listed.jsonl], source: {path: typed.jsonl, others: {b: beside.jsonl}}}\n"
        "trainer: {default_root_dir: written}\n"
        "model: {init_args: {policy: {adapter: given}, rewards: {a: {init_args: {path: class.jsonl}}}}}\n"
    )
    replaced = {
        "data.init_args.list": ["y"],
        "data.source": {"path": None, "others": {"c": "z"}},
        "model.rewards.a.path": "again.jsonl",
    }
    stages = with_stage(configs=["base.yaml", "rl.yaml"], overrides=replaced)
    before = runs(world, stages=stages)["rl seed 1"]
    path = world.folder / file
    if "." in file:
        path.write_text("1")
    else:
        path.mkdir()
        (path / "adapter_config.json").write_text("{}")
    after = runs(world, stages=stages)["rl seed 1"]
    assert (before.hashes["data"] != after.hashes["data"]) == counts
    assert before.hashes["settings"] == after.hashes["settings"]


FULL = {
    "model.policy.model": "org/own",
    "data": {"class_path": "lsemrl.data.translation.TranslationData", "init_args": {"source": {"path": "own.jsonl"}}},
    "model.rewards": {
        "a": {"class_path": "lsemrl.rewards.SemanticSimilarity", "init_args": {"encoder": "org/encoder"}}
    },
    "model.metrics": {"names": ["similarity"], "encoder": "org/encoder"},
}
MEASURE = {"policy": {"model": "org/own"}, "text": None}


@pytest.mark.parametrize(
    ("verb", "overrides", "counts"),
    [
        ("fit", FULL, False),
        ("fit", {**FULL, "data.source.path": "micro:test"}, True),
        ("fit", {**FULL, "model.policy.model": "micro"}, True),
        ("fit", {name: value for name, value in FULL.items() if name != "model.policy.model"}, True),
        ("fit", {**FULL, "data": {"class_path": "TranslationData", "init_args": {"batch_size": 2}}}, True),
        ("fit", {**FULL, "model.rewards": {"a": {"class_path": "lsemrl.rewards.Coverage"}}}, True),
        ("fit", {**FULL, "model.metrics": {"names": ["chrf", "similarity"]}}, True),
        ("fit", {**FULL, "model.metrics": {"names": ["chrf"]}}, False),
        ("measure", MEASURE, False),
        ("measure", {"policy.model": "org/own", "text.path": "own.txt"}, False),
        ("measure", {"policy.model": "org/own"}, True),
        ("measure", {"text": None}, True),
        ("rehearse", {"rows": 10}, True),
        ("fit-language", {"to": "pcm"}, False),
    ],
)
def test_the_version_counts_where_the_embedded_world_does(
    verb: str, overrides: dict[str, Any], counts: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"name": "one", "verb": verb, "configs": [], "overrides": overrides}]
    before = runs(world, stages=stages)
    monkeypatch.setattr(hashes, "__version__", "9")
    assert bool(changed(before, runs(world, stages=stages))) == counts


@pytest.mark.parametrize(
    ("verb", "overrides", "file", "counts"),
    [
        ("fit", {"data": "fields.yaml"}, "rows.jsonl", True),  # which it names
        ("fit", {"data": "fields.yaml", "data.source.path": "b"}, "rows.jsonl", False),
        ("fit", {"data.source": '{"path": "rows.jsonl"}'}, "rows.jsonl", True),
        ("fit", {"data.source": "{path: rows.jsonl}"}, "rows.jsonl", True),
        ("fit", {"data.source.path": "hub:rows"}, "rows/train.jsonl", True),
        ("fit", {"data.source.split": "rows"}, "rows/train.jsonl", False),  # a word
        ("fit", {"data.source.split": "rows"}, "rows/zh.txt", False),  # as is this, with two files of zh
        ("general", {"include": "rows"}, "rows/train.jsonl", True),
        ("fit", {"data.source.skipped_path": "rows.jsonl"}, "rows.jsonl", False),  # the run writes it
    ],
)
def test_what_is_named_by_a_way_round_counts(
    verb: str, overrides: dict[str, Any], file: str, counts: bool, world: World
) -> None:
    Path("rows").mkdir()
    for name in ("rows.jsonl", "rows/train.jsonl", "rows/zh.txt", "rows/zh.jsonl", "rows/bo.txt"):
        Path(name).write_text("1")
    Path("fields.yaml").write_text("class_path: a.B\ninit_args: {source: more.json, other: fields.yaml}\n")
    Path("more.json").write_text('{"path": "rows.jsonl"}')
    stages = [{"name": "one", "verb": verb, "configs": [], "overrides": overrides}]
    before = runs(world, stages=stages)
    Path(file).write_text("22")
    assert bool(changed(before, runs(world, stages=stages))) == counts


def test_a_configuration_names_files_of_fields_from_its_own_folder(world: World) -> None:
    Path("mine").mkdir()
    Path("mine/own.yaml").write_text("data: data.yaml\n")
    Path("mine/data.yaml").write_text("source: {path: rows.jsonl}\n")
    stages = [{"name": "one", "verb": "fit", "configs": ["mine/own.yaml"]}]
    Path("rows.jsonl").write_text("1")
    before = runs(world, stages=stages)
    Path("rows.jsonl").write_text("22")
    rows = runs(world, stages=stages)
    assert changed(before, rows)
    Path("mine/data.yaml").write_text("source: {path: rows.jsonl, split: a}\n")
    assert changed(rows, runs(world, stages=stages))


def test_stated_seconds_go_by_patterns_of_stages_the_last_that_fits(world: World) -> None:
    found = runs(world, seconds={"*": 40, "rl*": 5, "rl_test": 7.5})
    assert [found[f"{name} seed 1"].seconds for name in ("cold", "rl", "rl_test", "other")] == [40, 5, 7.5, 40]
    assert runs(world, seconds={"rl": 5})["cold seed 1"].seconds is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stages": []}, "stages in .* is \\[\\]; list at least one"),
        ({"stages": None}, "stages in .* is None; list at least one"),
        ({"stages": ["rl"]}, "stages\\[0\\] in .* is 'rl'; write its fields"),
        ({"stages": with_stage(after="nowhere")}, "stage 'rl' of .* builds on 'nowhere', which is no stage; .* cold"),
        ({"stages": with_stage(overrides={"a.b": "{stage:lost}"})}, "builds on 'lost', which is no stage"),
        ({"stages": with_stage(after="rl")}, "wait for each other: rl after rl; break the circle"),
        (
            {"stages": with_stage(overrides={"a.b": "{stage:rl_test}"})},
            "wait for each other: rl after rl_test after rl; break",
        ),
        (
            {"overrides": {"fit": {"model.policy": {"train": "full"}}}},
            "stage 'rl' .* comes after 'cold', which trains every weight and leaves a model, no adapter; leave after "
            "out, and override model.policy.model: '{stage:cold}/adapter'",
        ),
        ({"stages": with_stage(after="rl_test")}, "comes after 'rl_test', a test, which leaves no adapter"),
        (
            {"stages": with_stage(verb="fit-language")},
            "after is 'cold', but fit-language starts from no adapter",
        ),
        ({"stages": with_stage(after=["cold"])}, "after is \\['cold'\\]; name one stage"),
        ({"stages": with_stage(name="other")}, "two stages of the name 'other'; rename one"),
        ({"stages": with_stage(name="../up")}, "name is '../up'; give one that can be a folder's"),
        ({"stages": with_stage(name=None)}, "stages\\[0\\] in .*: name is None"),
        ({"stages": with_stage(configs=["lost.yaml"])}, "stage 'rl' .* names 'lost.yaml', and there is no such file"),
        ({"stages": with_stage(configs="rl.yaml")}, "configs is 'rl.yaml'; list file names"),
        (
            {"stages": with_stage(verb="train")},
            "verb is 'train'; choose one of fit, validate, test, predict, best-of, measure, general",
        ),
        ({"stages": with_stage(verb=["fit"])}, "verb is \\['fit'\\]; choose one of"),
        ({"stages": with_stage(betas=1)}, "stage|stages\\[0\\] .* has the field 'betas'; its fields are name, verb"),
        ({"stages": with_stage(overrides=["a"])}, "overrides is \\['a'\\]; write `field: value` lines"),
        ({"stages": with_stage(overrides={"a b": 1})}, "overrides has the field 'a b'; write dotted fields"),
        ({"stages": with_stage(overrides={"seed_everything": 1})}, "'seed_everything', which the experiment sets"),
        ({"stages": with_stage(overrides={"model.policy.adapter": "x"})}, "is overridden, but after gives it"),
        ({"stages": with_stage(label=3)}, "label is 3; write text"),
        ({"overrides": {"fit": {"checkpoints.resume": "x"}}}, "'checkpoints.resume', which the experiment sets"),
        ({"overrides": {"train": {}}}, "verb is 'train'; choose one of"),
        ({"seeds": ["one"]}, "seeds of .* is \\['one'\\]; list whole numbers"),
        ({"seeds": [1.5]}, "seeds of .* is \\[1.5\\]"),
        ({"seeds": [True]}, "seeds of .* is \\[True\\]"),
        ({"seeds": [-1]}, "seeds of .* is \\[-1\\]"),
        ({"seeds": [1, 2**32]}, "a seed of .*trial.yaml is 4294967296; give a number from 0 to 4294967295"),
        ({"seeds": []}, "seeds of .* is \\[\\]"),
        ({"seeds": "1, 2"}, "seeds of .* is '1, 2'"),
        ({"seeds": [1, 1]}, "name each seed once"),
        ({"seconds": {"rl": "fast"}}, "seconds.rl in .* is 'fast'; give a number above 0"),
        ({"seconds": {"rl": 0}}, "seconds.rl in .* is 0; give a number above 0"),
        ({"seconds": {"sl*": 3}}, "seconds.sl\\* in .* fits no stage; name one"),
        ({"output": 3}, "output is 3; write text"),
        ({"jobs": 2}, "trial.yaml has the field 'jobs'; its fields are config_version, description, output, seeds"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(world: World, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        world.read(**fields)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["a: [1\n", "just words\n", ""])
def test_a_stages_file_that_is_no_configuration(world: World, content: str) -> None:
    (world.configs / "rl.yaml").write_text(content)
    with pytest.raises(UserError, match=r"stage 'rl' of .*: configs is '.*rl.yaml', which (is not YAML|holds no)"):
        world.read()


def test_a_file_of_ones_own_is_found_where_the_command_is_given(world: World) -> None:
    Path("mine.yaml").write_text("a: 1\n")
    assert runs(world, stages=with_stage(configs=["mine.yaml"]))["rl seed 1"].stage.configs == (Path("mine.yaml"),)


def test_an_experiment_of_ones_own_means_ones_own_files_and_a_shipped_one_the_shipped(world: World) -> None:
    Path("rl.yaml").write_text("a: 1\n")
    assert runs(world)["rl seed 1"].stage.configs == (Path("rl.yaml"),)
    assert runs(world)["cold seed 1"].stage.configs == (world.configs / "base.yaml",)
    shipped = world.write().rename(world.configs / "trial.yaml")
    assert read_experiment(shipped, world.configs).runs()[1].stage.configs == (world.configs / "rl.yaml",)
