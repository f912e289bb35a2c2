"""What is made of an experiment once its runs are complete."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from experiment.world import STAGES, World
from lsemrl.errors import UserError
from lsemrl.evaluation import measurement
from lsemrl.experiment.plan import BASE, TASKS
from lsemrl.judging.judge import Task

MEASURED: list[dict[str, Any]] = [
    *STAGES,
    {"name": "zh_base", "verb": "measure", "configs": [], "overrides": {"arm": "base"}},
    {"name": "zh_rl", "verb": "measure", "configs": [], "overrides": {"arm": "rl"}, "after": "rl"},
    {"name": "zh_sft", "verb": "measure", "configs": [], "overrides": {"arm": "sft"}, "after": "other"},
    {"name": "bo_rl", "verb": "measure", "configs": [], "overrides": {"arm": "bo"}, "after": "rl"},
]


def words(world: World) -> list[list[str]]:
    return [entry["words"] for entry in world.journal() if entry["verb"] in ("tax", "judge")]


def test_reports_are_made_once_everything_is_there(world: World) -> None:
    reports = {
        "zh": {"stages": ["zh_*"], "paths": [["sft", "rl"], ["sft"]], "judge": "translation"},
        "all": {"against": ["sft"]},
    }
    fields = {"stages": MEASURED, "reports": reports, "seeds": [1, 2]}
    assert f"then: lsemrl judge rl={world.output}/zh_rl/seed_1/predictions.jsonl" in world.plan(**fields)
    status, told = world.run(**fields)
    assert status == 0 and told.count("report: page.html") == 2
    out = str(world.output)
    *judged, zh, everything = words(world)
    assert judged == [
        [
            "judge", f"rl={out}/zh_rl/seed_{seed}/predictions.jsonl", f"sft={out}/zh_sft/seed_{seed}/predictions.jsonl",
            "--oracle", "--task=translation", f"--output={out}/reports/zh/judge/seed_{seed}",
        ]
        for seed in (1, 2)
    ]  # fmt: skip
    assert zh == [
        "tax", f"{out}/zh_base/seed_1", *(f"{out}/zh_{arm}/seed_{seed}" for arm in ("rl", "sft") for seed in (1, 2)),
        f"{out}/reports/zh/judge/seed_1", f"{out}/reports/zh/judge/seed_2",
        "--output", f"{out}/reports/zh", "--path", "sft", "rl", "--path", "sft",
    ]  # fmt: skip
    stages = ("zh_rl", "zh_sft", "bo_rl")
    measured = [f"{out}/{name}/seed_{seed}" for name in stages for seed in (1, 2)]
    assert everything[1:8] == [f"{out}/zh_base/seed_1", *measured]
    assert everything[-2:] == ["--against", "sft"]
    # Again: nothing is run, the reports are made anew.
    assert world.run(**fields)[0] == 0 and len(words(world)) == 8


def test_a_report_that_fails_is_told_and_the_others_are_made(world: World) -> None:
    broken = {"name": "broken", "verb": "measure", "configs": [], "overrides": {"arm": "break"}}
    reports = {"one": {"against": ["break"]}, "two": {}}
    status, told = world.run(stages=[*MEASURED, broken], reports=reports)
    assert status == 1 and "failed: lsemrl tax" in told and "broken" in told and told.count("report: page.html") == 1


def test_reports_wait_for_what_failed(world: World) -> None:
    stages = [*MEASURED, {"name": "bad", "verb": "fit", "configs": ["rl.yaml"], "overrides": {"fake.do": "fail"}}]
    assert world.run(stages=stages, reports={"all": {}})[0] == 1
    assert words(world) == []


@pytest.mark.parametrize(
    ("reports", "sentence"),
    [
        ({"zh": ["rl"]}, r"reports.zh in .* is \['rl'\]; write its fields: stages, paths, against, judge"),
        ({"zh": {"arms": []}}, "reports.zh in .* has the field 'arms'; its fields are stages"),
        (
            {"zh": {"stages": ["en_*"]}},
            r"stages is \['en_\*'\], which fits none of zh_base, zh_rl, zh_sft, bo_rl",
        ),
        ({"zh": {"stages": "zh"}}, "reports.zh in .*: stages is 'zh'; list names"),
        ({"zh": {"paths": ["rl"]}}, "reports.zh in .*: paths is 'rl'; list names"),
        ({"../../zh": {}}, "the name is that of a folder"),
        ({"zh": {"judge": "headlines"}}, "judge is 'headlines'; name the task, translation or headline, or leave it"),
        ({"zh": {"judge": ["headline"]}}, r"judge is \['headline'\]; name the task"),
        ({"zh": {"against": ["rl", "stf"]}}, "reports.zh in .*: against names 'stf'; choose .* trained arms: rl, sft"),
        ({"bo": {"stages": ["bo_*"], "against": ["sft"]}}, "against names 'sft'; choose .* trained arms: bo"),
        ({"zh": {"paths": [["rl"], ["cold", "sft"]]}}, "reports.zh in .*: paths names 'cold'; choose"),
        ({"zh": {"paths": [["base", "rl"]]}}, "paths names 'base'; choose among its trained arms: rl, sft"),
        ({"bo": {"stages": ["bo_*"], "judge": "headline"}}, "judge is 'headline', but its stages measure no arms rl"),
        ({"bo": {"stages": ["bo_*"]}}, "its stages measure no 'base', .* only bo; measure the original model too"),
        ({"all": {}}, "zh_base and again both measure the arm 'base'; give each an arm of its own"),
    ],
)
def test_mistakes(world: World, reports: dict[str, Any], sentence: str) -> None:
    again = {"name": "again", "verb": "measure", "configs": []}
    with pytest.raises(UserError, match=sentence):
        world.read(stages=[*MEASURED, again], reports=reports)


def test_a_judge_that_is_left_empty_is_none(world: World) -> None:
    fields = {"stages": MEASURED, "reports": {"zh": {"stages": ["zh_*"], "judge": None}}}
    assert world.read(**fields).reports[0].judge == ""
    assert "then: lsemrl judge" not in world.plan(**fields)


def test_an_arm_may_be_named_by_a_file(world: World) -> None:
    for name, arm in (("first", "cold"), ("second", "grpo")):
        (world.configs / f"{name}.yaml").write_text(f"arm: {arm}\n")
    measured = {"name": "m", "verb": "measure", "configs": ["first.yaml", "second.yaml"], "after": "rl"}
    unnamed = {"name": "n", "verb": "measure", "configs": []}
    read = world.read(stages=[*STAGES, measured, unnamed], reports={"all": {"against": ["grpo"]}})
    assert read.reports and read.stages[-1].arm == BASE == measurement.BASE


def test_the_judge_knows_these_tasks() -> None:
    assert get_args(Task) == TASKS


def test_the_folder_of_the_reports_is_no_stage(world: World) -> None:
    stages = [*MEASURED, {"name": "reports", "verb": "fit", "configs": ["rl.yaml"]}]
    with pytest.raises(UserError, match="has one of the name 'reports'"):
        world.read(stages=stages, reports={"all": {}})
