"""Alarms stay silent over good runs, speak up in recorded bad ones, and end a run where that is asked."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from lsemrl.cli.main import main
from lsemrl.errors import UserError
from lsemrl.modules.alarm_log import Alarmed, Told, read_alarms, tell
from lsemrl.modules.alarms import AlarmSettings, Row, Watched, alarms
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.run_summary import run_summary
from lsemrl.rewards import Chrf, Repetition, Reward
from lsemrl.rewards.base import RewardMix
from made_up import completions
from short_runs import At, Stop, grpo, run, stop

RECORDED = Path(__file__).parent / "recorded"
SHIPPED = Path(__file__).parents[2] / "docs" / "results"
WATCHED = Watched(paid=("similarity",), free=("meaning",), language=("language",))
NAMES = {
    "reward": "reward",
    "similarity": "rewards/similarity/mean",
    "meaning_f1": "rewards/meaning/mean",
    "language": "rewards/language/mean",
    "kl": "kl",
    "length": "completions/mean_length",
}


def recorded(name: str) -> list[Row]:
    with (RECORDED / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def begun(rows: list[Row], watched: Watched = WATCHED, **settings: Any) -> dict[str, int]:
    """The logged row at which each alarm is first told."""
    found: dict[str, int] = {}
    trained = 0
    for at, row in enumerate(rows):
        trained += "reward" in row
        for kind in alarms(rows[: at + 1], watched, AlarmSettings(**settings)):
            found.setdefault(kind, trained)
    return found


def test_rl_of_the_embedding_alone_from_eight_steps_of_sft_is_caught_within_20_steps() -> None:
    found = begun(recorded("embedding_alone"))
    assert found == {"copied": 20}  # the language had gone before


def test_rl_of_headlines_from_a_weak_start_is_caught_when_one_verb_is_said_everywhere() -> None:
    rows = recorded("weak_headline")
    found = begun(rows)
    exact = [(at, row["val/meaning_exact"]) for at, row in enumerate(rows) if "val/meaning_exact" in row]
    fell = next(at for at, share in exact if share <= 0.8 * exact[0][1])  # rows right as a whole, when they have fallen
    assert found["template"] < fell and found["gamed"] < fell + 20


def test_a_real_model_that_learns_to_copy_is_caught_and_a_guarded_one_trips_nothing() -> None:
    rows = recorded("pidgin_unguarded")
    found = begun(rows, Watched(paid=("similarity",), free=("chrf", "copy"), language=("told",)))
    # By tens of steps .18, .25, .27 and .41 of the source were copied: it begins with the third, if not before.
    assert sorted(found) == ["copied", "gamed"] and max(found.values()) <= 45
    guarded = Watched(paid=("similarity", "language", "copy"), free=("chrf",), language=("language",))
    # In steps 76 to 85 it copied .15 more than at first, of rows of which the other run copied more too: by chance.
    assert begun(recorded("pidgin_guarded"), guarded) == {}


@pytest.mark.parametrize("report", ["demo_translation", "demo_headline"])
def test_no_shipped_run_trips_an_alarm(report: str) -> None:
    arms = json.loads((SHIPPED / report / "report.json").read_text(encoding="utf-8"))["arms"]
    [curve] = [arm["curve"] for arm in arms if arm.get("curve")]
    rows = [{name: float(point[key]) for key, name in NAMES.items() if key in point} for point in curve]
    assert len(rows) > 100 and begun(rows) == {}


@pytest.mark.parametrize("name", ["covered_headline", "good_headline"])
def test_no_recorded_good_run_trips_an_alarm(name: str) -> None:
    assert begun(recorded(name)) == {}


def steps(count: int = 20, **now: float) -> list[Row]:
    """Rows of a quiet run, the later half with other values."""
    calm = {
        "reward": 1.0,
        "rewards/similarity/mean": 0.5,
        "rewards/meaning/mean": 0.5,
        "rewards/language/mean": 1.0,
        "frac_reward_zero_std": 0.1,
        "kl": 0.1,
        "completions/mean_length": 10.0,
        "completions/template": 0.1,
        "completions/shared": 0.0,
        "completions/copied": 0.1,
    }
    named = {name.replace("__", "/"): value for name, value in now.items()}
    return [dict(calm) if at < count // 2 else {**calm, **named} for at in range(count)]


CASES: list[tuple[str, dict[str, float], dict[str, float]]] = [
    ("gamed", {"rewards__meaning__mean": 0.48, "reward": 1.01}, {"rewards__meaning__mean": 0.48, "reward": 0.99}),
    ("language", {"rewards__language__mean": 0.96}, {"rewards__language__mean": 0.98}),
    ("length", {"completions__mean_length": 13.0}, {"completions__mean_length": 12.0}),
    ("length", {"completions__mean_length": 7.0}, {"completions__mean_length": 8.0}),
    ("template", {"completions__template": 0.31}, {"completions__template": 0.29}),
    ("shared", {"completions__shared": 0.21}, {"completions__shared": 0.19}),
    ("copied", {"completions__copied": 0.21}, {"completions__copied": 0.19}),
    ("ties", {"frac_reward_zero_std": 0.95}, {"frac_reward_zero_std": 0.94}),
    ("kl", {"kl": 1.01}, {"kl": 0.99}),
]


@pytest.mark.parametrize(("kind", "bad", "good"), CASES)
def test_each_alarm_alone_and_just_below_it(kind: str, bad: dict[str, float], good: dict[str, float]) -> None:
    assert list(alarms(steps(**bad), WATCHED, AlarmSettings())) == [kind]
    assert alarms(steps(**good), WATCHED, AlarmSettings()) == {}
    assert alarms(steps(**bad), WATCHED, AlarmSettings(**{kind: None})) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["reward", "rewards/similarity/mean"])
def test_what_pays_nothing_from_the_start_is_told_and_what_began_to_pay_is_not(column: str) -> None:
    rows = [{**row, column: 0.0} for row in steps(10)]
    assert list(alarms(rows, WATCHED, AlarmSettings())) == ["unrewarded"]
    assert alarms(rows, WATCHED, AlarmSettings(unrewarded=False)) == alarms(rows[:9], WATCHED, AlarmSettings()) == {}
    assert alarms([{**rows[0], column: 0.2}, *rows[1:]], WATCHED, AlarmSettings()) == {}


def test_a_penalty_that_nobody_pays_is_well() -> None:
    parts: dict[str, Reward] = {"chrf": Chrf(), "repeats": Repetition(weight=-1.0), "seen": Chrf(weight=0.0)}
    watched = Watched.of(RewardMix(parts, "sum", None))
    assert watched == Watched(paid=("chrf",), free=("seen",), language=())
    assert "repeats" in Watched.of(RewardMix(parts, "gate", ["repeats"])).paid


def test_validation_is_an_independent_measure() -> None:
    rows = steps()
    rows = [*rows[:10], {"val/chrf": 0.5}, *rows[10:], {"val/chrf": 0.45}]
    assert "val/chrf fell from 0.500 to 0.450" in alarms(rows, WATCHED, AlarmSettings())["gamed"]
    assert alarms([*rows[:-1], {"val/chrf": 0.49}], WATCHED, AlarmSettings()) == {}


def test_what_only_varies_is_not_gamed_however_long_it_is_watched() -> None:
    watched, random_ = Watched(paid=("similarity",), free=("meaning",), language=()), random.Random(0)
    rows = [
        {"reward": 0.6 + 0.08 * random_.gauss(0, 1), "rewards/meaning/mean": 0.5 + 0.1 * random_.gauss(0, 1)}
        for _ in range(600)
    ]
    told = [alarms(rows[:end], watched, AlarmSettings()) for end in range(20, 601, 5)]
    assert not any("gamed" in each for each in told)
    fallen = [
        *rows[:100],
        *({**row, "rewards/meaning/mean": row["rewards/meaning/mean"] - 0.3} for row in rows[100:120]),
    ]
    assert "gamed" in alarms(fallen, watched, AlarmSettings())


def test_near_ties_teach_as_little_as_ties() -> None:
    rows = [{"reward": 0.5, "frac_reward_zero_std": 0.3, "frac_reward_near_tie": 1.0} for _ in range(30)]
    assert "in 100% of groups" in alarms(rows, WATCHED, AlarmSettings())["ties"]
    assert "ties" not in alarms([{**row, "frac_reward_near_tie": 0.3} for row in rows], WATCHED, AlarmSettings())


def test_what_was_not_measured_trips_nothing() -> None:
    rows = [{"reward": math.nan, "kl": math.nan, "completions/copied": math.nan} for _ in range(30)]
    assert alarms(rows, WATCHED, AlarmSettings()) == alarms([], WATCHED, AlarmSettings()) == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"on_alarm": "shout"}, "alarms.on_alarm is 'shout'; choose say or stop"),
        ({"window": 0}, "alarms.window is 0"),
        ({"kl": -1.0}, "alarms.kl is -1.0; give a number above 0, or null"),
        ({"length": math.nan}, "alarms.length is nan"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AlarmSettings(**settings)


def test_each_kind_is_told_once_with_the_best_paid_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, said = tmp_path / "alarms.jsonl", completions(("one", "a", "b"), ("one", "a", "c"), ("two", "a", "d"))
    [first] = tell(path, 19, {"kl": "it runs"}, said, [0.1, 0.9, math.nan])
    assert [row["completion"] for row in first.rows] == [
        "c",
        "d",
    ] and "alarm after 20 rollout steps, kl: it runs" in caplog.text
    [second] = tell(path, 24, {"kl": "it runs", "ties": "all | alike"}, said, [0.1, 0.9, 0.2])
    assert second.kind == "ties" and "all \\| alike" in second.page
    path.open("a").write('{"torn')
    assert [(each.rollout_step, each.kind) for each in read_alarms(path)] == [(19, "kl"), (24, "ties")]
    assert read_alarms(tmp_path / "none") == list[Told]()


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\n"])
def test_an_alarm_is_told_once_whatever_ends_lines_in_its_rows(end: str, tmp_path: Path) -> None:
    path, said = tmp_path / "alarms.jsonl", completions(("one", "a", f"b{end}c"))
    assert [len(tell(path, step, {"kl": "it runs"}, said, [1.0])) for step in (4, 9)] == [1, 0]
    assert [each.rows[0]["completion"] for each in read_alarms(path)] == [f"b{end}c"]


def test_a_completion_without_a_reward_is_not_the_best_paid(tmp_path: Path) -> None:
    said = completions(("one", "a", "unknown"), ("one", "a", "good"), ("one", "a", "bad"))
    [told] = tell(tmp_path / "alarms.jsonl", 4, {"kl": "it runs"}, said, [math.nan, 2.0, 0.1])
    assert [row["completion"] for row in told.rows] == ["good"]


def test_what_cannot_be_read_of_told_alarms_is_left_out_and_a_row_without_a_field_is_made_whole(tmp_path: Path) -> None:
    file = tmp_path / "alarms.jsonl"
    whole = {"rollout_step": 3, "kind": "kl", "sentence": "it runs away"}
    lines = [
        {**whole, "rows": [{"completion": "a", "reward": 1}]},
        {**whole, "rows": [{"completion": "a"}]},
        whole,
        [1],
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn', encoding="utf-8")
    [told] = read_alarms(file)
    assert told.rows == ({"source": "", "reference": "", "completion": "a", "reward": 1.0},)
    assert "|  |  | a | 1.0 |" in told.page


def test_a_run_that_an_alarm_stops_is_saved_and_the_same_command_goes_on(tiny_model: str, tmp_path: Path) -> None:
    quiet = dict.fromkeys(("gamed", "language", "length", "template", "shared", "copied", "ties"))

    def watched() -> PolicyModule:
        module = grpo(tiny_model)
        module.alarms = AlarmSettings(on_alarm="stop", window=2, kl=1e-9, unrewarded=False, **quiet)
        return module

    with pytest.raises(Alarmed, match=r"stopped by an alarm \(kl is .*\), saved in .*step_5; --checkpoints\.resume"):
        run(watched(), tmp_path)
    assert (tmp_path / "checkpoints" / "step_5").is_dir() and not (tmp_path / "adapter").exists()
    run(watched(), tmp_path, resume=str(tmp_path / "checkpoints" / "step_5"))  # past what has been told
    assert (tmp_path / "adapter").is_dir()
    assert [(each.rollout_step, each.kind) for each in read_alarms(tmp_path / "alarms.jsonl")] == [(4, "kl")]
    lines = list(run_summary(tmp_path, None, tiny_model, "rollout step"))
    assert any(line.startswith("alarm after 5 rollout steps, kl: ") for line in lines)


def test_an_alarm_is_taken_back_with_the_steps_that_a_resumed_run_takes_again_and_looked_for_at_its_end(
    tiny_model: str, tmp_path: Path
) -> None:
    module = grpo(tiny_model)
    module.alarms = AlarmSettings(window=2, kl=1e-9)
    with pytest.raises(Stop):
        run(module, tmp_path, At(5, stop))
    assert "kl" in {each.kind for each in read_alarms(tmp_path / "alarms.jsonl")}
    module = grpo(tiny_model)
    module.alarms = AlarmSettings(window=8, kl=1e-9)  # all rows, which only the last look sees
    run(module, tmp_path, resume=str(tmp_path / "checkpoints" / "step_3"))
    told = read_alarms(tmp_path / "alarms.jsonl")
    assert {each.rollout_step for each in told} == {7} and "kl" in {each.kind for each in told}
    assert all(row["completion"] for each in told for row in each.rows)


def test_a_stopped_run_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*words: object) -> None:
        raise Alarmed("stopped by an alarm")

    monkeypatch.setattr("lsemrl.cli.main.run_verb", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["fit"])
    assert ended.value.code == Alarmed.status == 3 and "stopped by an alarm" in capsys.readouterr().err
