"""What is made of an experiment once its runs are complete."""

from __future__ import annotations

from typing import Any

import pytest

from experiment.world import STAGES, World
from lsemrl.errors import UserError

MEASURED: list[dict[str, Any]] = [
    *STAGES,
    {"name": "zh_base", "verb": "measure", "configs": [], "overrides": {"arm": "base"}},
    {"name": "zh_rl", "verb": "measure", "configs": [], "overrides": {"arm": "rl"}, "after": "rl"},
    {"name": "zh_sft", "verb": "measure", "configs": [], "overrides": {"arm": "sft"}, "after": "other"},
    {"name": "bo_rl", "verb": "measure", "configs": [], "overrides": {"arm": "rl"}, "after": "rl"},
]


def words(world: World) -> list[list[str]]:
    return [entry["words"] for entry in world.journal() if entry["verb"] in ("tax", "judge")]


def test_reports_are_made_once_everything_is_there(world: World) -> None:
    reports = {
        "zh": {"stages": ["zh_*"], "paths": [["cold", "rl"], ["sft"]], "judge": "translation"},
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
        "tax", *(f"{out}/zh_{arm}/seed_{seed}" for arm in ("base", "rl", "sft") for seed in (1, 2)),
        f"{out}/reports/zh/judge/seed_1", f"{out}/reports/zh/judge/seed_2",
        "--output", f"{out}/reports/zh", "--path", "cold", "rl", "--path", "sft",
    ]  # fmt: skip
    stages = ("zh_base", "zh_rl", "zh_sft", "bo_rl")
    assert everything[1:9] == [f"{out}/{name}/seed_{seed}" for name in stages for seed in (1, 2)]
    assert everything[-2:] == ["--against", "sft"]
    # Again: nothing is run, the reports are made anew.
    assert world.run(**fields)[0] == 0 and len(words(world)) == 8


def test_a_report_that_fails_is_told_and_the_others_are_made(world: World) -> None:
    reports = {"one": {"against": ["break"]}, "two": {}}
    status, told = world.run(stages=MEASURED, reports=reports)
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
        ({"zh": {"stages": ["en_*"]}}, r"stages is \['en_\*'\], which fits none of zh_base, zh_rl, zh_sft, bo_rl"),
        ({"zh": {"stages": "zh"}}, "reports.zh in .*: stages is 'zh'; list names"),
        ({"zh": {"paths": ["rl"]}}, "reports.zh in .*: paths is 'rl'; list names"),
        ({"../../zh": {}}, "the name is that of a folder"),
        ({"bo": {"stages": ["bo_*"], "judge": "headline"}}, "judge is 'headline', but its stages measure no arms rl"),
    ],
)
def test_mistakes(world: World, reports: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        world.read(stages=MEASURED, reports=reports)


def test_the_folder_of_the_reports_is_no_stage(world: World) -> None:
    stages = [*MEASURED, {"name": "reports", "verb": "fit", "configs": ["rl.yaml"]}]
    with pytest.raises(UserError, match="has one of the name 'reports'"):
        world.read(stages=stages, reports={"all": {}})
