"""The benchmark of whole steps at its smallest, and that it says no speed of something wrong."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forks import Fork, benchmark

pytest.importorskip("trl", minversion="1.16", reason="trl >= 1.16 is not installed; it is needed for comparison")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = "--shape translation --prompts 1 --prompt 4 --completion 2 --group 2 --steps 2 --warmup 1"


@pytest.fixture
def bench_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_step

    return bench_step


def work(bench_step: ModuleType, folder: Path, train: str) -> Any:
    shape = bench_step.Shape(prompts=1, prompt=4, completion=2, group=4)
    return bench_step.Work(folder=folder, shape=shape, train=train, device="cpu", dtype="float32", steps=2)


@pytest.mark.slow  # 5 seconds each
@pytest.mark.parametrize(("how", "name"), [("", "trl"), (" --halves", "trl_halves")])
def test_the_smallest_run(how: str, name: str, tmp_path: Path) -> None:
    words = ["benchmarks/bench_step.py", *(SMALLEST + how).split(), "--device", "cpu", "--results", str(tmp_path)]
    run = Fork(words, benchmark, folder=BENCHMARKS.parent).end()
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("check passed")
    first, *lines = (tmp_path / "step_cpu_small_lora.csv").read_text().splitlines()
    assert first.startswith(f"# python benchmarks/bench_step.py {SMALLEST}{how}") and "trl 1.16" in first
    ours, theirs = csv.DictReader(lines)
    assert (ours["system"], theirs["system"]) == ("lsemrl", name)
    assert (ours["prompt"], ours["completion"], ours["group"], ours["steps"]) == ("4", "2", "2", "2")
    assert float(ours["ratio"]) > 0 and theirs["ratio"] == ""
    for row in (ours, theirs):
        assert float(row["step_s"]) > 0 and float(row["peak_mb"]) >= float(row["loaded_mb"]) > 0


@pytest.mark.slow  # 6 seconds each, as the next
@pytest.mark.parametrize("train", ["lora", "full"])
def test_both_systems_take_the_same_steps(train: str, bench_step: ModuleType, tmp_path: Path) -> None:
    line = bench_step.check(tmp_path, bench_step.harness.MODELS["small"], work(bench_step, tmp_path, train))
    assert line.startswith("check passed")
    assert ", 0% of tokens" not in line  # the second step was far enough from the first to clip


@pytest.mark.slow
def test_a_different_step_is_not_measured(
    bench_step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_step, "BETA", 0.05)  # theirs; ours is 0.04
    with pytest.raises(SystemExit, match="check failed, no speed is measured"):
        bench_step.check(tmp_path, bench_step.harness.MODELS["small"], work(bench_step, tmp_path, "lora"))


def test_a_system_that_was_killed_is_told_apart_from_one_that_failed(
    bench_step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_step.harness, "START", "fork")

    def killed(work: Any, turns: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def failed(work: Any, turns: Any) -> None:
        os._exit(1)

    for train, said in ((killed, "killed was killed, most likely for want of memory"), (failed, "failed failed; its")):
        with pytest.raises(SystemExit, match=said):
            bench_step.harness.measure((train,), work(bench_step, tmp_path, "lora"), warmup=0)


def test_completions_of_another_length_are_not_measured(
    bench_step: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = bench_step.harness

    class Short:
        name, loaded_mb = "short", 1.0

        def __init__(self, *_: Any) -> None: ...

        def step(self) -> Any:
            return harness.Step(seconds=1.0, peak_mb=1.0, lengths=(1, 2), parts={})

        def stop(self) -> None: ...

    monkeypatch.setattr(harness, "Runner", Short)
    with pytest.raises(SystemExit, match=r"short: completions of \(1, 2\) tokens instead of 2"):
        harness.measure((bench_step.trl,), work(bench_step, tmp_path, "lora"), warmup=1)
