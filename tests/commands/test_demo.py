"""The main job, small: every arm is trained, measured and reported."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers.utils.logging import enable_progress_bar

import forks
from lsemrl.commands import arms as demo
from lsemrl.commands.demo_progress import progress
from lsemrl.commands.demo_stages import Task, demo_stages
from lsemrl.report.records import Report
from matrix import slow_but


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("cores", slow_but([1, 2], [2]))
def test_every_arm_is_trained_measured_and_reported(
    cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    enable_progress_bar()  # as in a process that is new
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("multiprocessing.get_context", forks.context)
    few, count = "micro={train: 80, validation: 4, test: 4}", "splits.cold_start_count=40"
    words = {"sft_replay": (f"--data.main.{few}", f"--data.replay.{few}", "--data.main.batch_size=8")}
    small = (f"--data.{few}", f"--data.{count}", "--data.batch_size=8")
    short = {"rl_anchored": "--model.sampling.max_new_tokens=8"}
    arms_trained = ["cold_start_anchored", "rl_anchored", "sft", *["sft_replay"] * (cores == 1)]
    stages = [
        dataclasses.replace(
            stage,
            steps=2,
            words=(
                *stage.words,
                *words.get(stage.name, small),
                short.get(stage.name, "--model.max_new_tokens=8"),
            ),
        )
        for stage in demo_stages("headline")
        if stage.name in arms_trained
    ]
    report = demo.run_demo(
        "headline", tmp_path, seed=1, stages=stages, rows=demo.Rows(target=6, general=6, text=6, own=16, points=2)
    )
    assert "Loading weights" not in capfd.readouterr().err
    assert [arm.name for arm in report.arms] == ["base", *arms_trained]
    assert Report.from_json(tmp_path / "version_0" / "report.json") == report
    assert (tmp_path / "version_0" / "report.html").is_file()
    base = report.base
    assert base.kl["target"] == pytest.approx(0, abs=1e-6)
    for arm in report.trained:
        assert [point["step"] for point in arm.trajectory] == [0, 1, 2]
        assert len(arm.nll_drifts) == 6
        assert arm.kl["target"] > 0
        assert {"meaning_f1", "chrf", "similarity", "language_rate"} <= arm.target.keys()
    # Every arm but RL departs from the base; RL departs from where the cold start ended.
    arms = {arm.name: arm for arm in report.arms}
    assert arms["sft"].trajectory[0]["em"] == pytest.approx(base.general["em"])
    cold_start, rl = arms["cold_start_anchored"], arms["rl_anchored"]
    assert rl.trajectory[0]["chrf"] == pytest.approx(cold_start.target["chrf"])
    assert [point["rollout_step"] for point in rl.curve] == [0, 1]
    assert {"reward", "similarity", "language", "meaning_f1", "kl", "length"} <= rl.curve[0].keys()
    for name, anchored in (("cold_start_anchored", True), ("rl_anchored", True), ("sft", False)):
        [log] = (tmp_path / "version_0" / name).glob("version_0/metrics.csv")
        assert ("anchor/kl" in log.read_text(encoding="utf-8")) == anchored
    assert arms["sft"].curve == ()


@pytest.mark.parametrize("task", ["translation", "headline"])
def test_splits_of_the_battery_are_held_out(task: Task) -> None:
    battery = demo.make_battery(task, demo.Rows())
    assert len(battery.target) == len(battery.general) == 200
    assert all(example.id.startswith("test-") for rows in (battery.target, battery.general) for example in rows)


def test_a_log_gets_a_line_at_most_every_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr("lsemrl.durations.time.monotonic", lambda: now[0])
    with progress(Console(file=log), [100.0, 70.0]) as (long, short):
        short.say("SFT")
        for second in range(0, 61, 10):
            now[0] = float(second)
            long.say(f"RL: step {second}")
            long.advance(10.0)
            short.advance(1.0)
        short.say("")
        now[0] = 90.0
        long.say("RL: step 90")
    lines = ["SFT", "RL: step 30 | SFT; about 70 s left", "RL: step 60 | SFT; about 40 s left"]
    lines += ["RL: step 90; about 39 s left"]
    assert log.getvalue().splitlines() == lines
