"""The benchmark of kernels at its smallest, and that it says no speed of something wrong."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = "--device cpu --hidden 8 --vocabulary 61 --tokens 8 16 --length 4 --rounds 2 --no-compile --results"
OURS = (
    "lsemrl fused_policy_loss, float32 logits",
    "lsemrl token_logprobs",
    "lsemrl token_logprobs, no gradient",
)


@pytest.fixture
def bench_kernel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_kernel

    return bench_kernel


def run(bench_kernel: ModuleType, folder: Path) -> dict[tuple[int, str], dict[str, str]]:
    """The rows of the smallest run, by tokens and system."""
    bench_kernel.main([*SMALLEST.split(), str(folder)])
    about, *lines = (folder / "kernel_cpu.csv").read_text(encoding="utf-8").splitlines()
    assert about.startswith("# python benchmarks/bench_kernel.py --device cpu") and ", torch 2" in about.replace(
        ";", ","
    )
    return {(int(row["tokens"]), row["system"]): row for row in csv.DictReader(lines)}


def test_the_smallest_run(bench_kernel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(bench_kernel, tmp_path)
    for tokens in (8, 16):
        for name in OURS:
            row = rows[tokens, name]
            assert float(row["ms"]) > 0 and float(row["loss_error"]) < 1e-4
            assert float(row["tokens_per_s"]) == pytest.approx(1e3 * tokens / float(row["ms"]), rel=1e-2)
            floor = rows[tokens, "one matmul" if row["kind"] == "score" else "two matmuls"]
            assert float(row["times_floor"]) == pytest.approx(float(row["ms"]) / float(floor["ms"]), rel=1e-2)
        skipped = rows[tokens, "naive, compiled"]
        assert skipped["ms"] == "" and skipped["note"] == "skipped: --no-compile"
    printed = capsys.readouterr().out
    assert "16 tokens, hidden 8, vocabulary 61, float32" in printed and OURS[0] in printed


def test_no_speed_is_said_when_ours_is_wrong(
    bench_kernel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bench_kernel.fused

    def wrong(*given: Any) -> Any:
        loss, gradient = right(*given)
        return loss, 1.001 * gradient

    monkeypatch.setattr(bench_kernel, "fused", wrong)
    with pytest.raises(SystemExit, match="fused_policy_loss, float32 logits is wrong"):
        run(bench_kernel, tmp_path)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("times", [0.0, -1.0, 0.9])
def test_no_gradient_that_is_another_passes(bench_kernel: ModuleType, dtype: torch.dtype, times: float) -> None:
    given = bench_kernel.make_problem(256, 16, 64, 512, dtype, torch.device("cpu"))
    naive = next(one for one in bench_kernel.systems(dtype, torch.device("cpu"), False) if one.name == "naive")

    def wrong(of: Any) -> Any:
        loss, gradient = naive.run(of)
        return loss, times * gradient

    limit = bench_kernel.limits_of("train", given, [naive]).gradient
    assert bench_kernel.errors_of(naive, given).gradient <= limit
    assert bench_kernel.errors_of(replace(naive, run=wrong), given).gradient > limit


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_no_speed_is_said_of_another_that_is_wrong_or_fails(
    bench_kernel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    pytest.importorskip("trl", minversion="1.16", reason="trl >= 1.16 is not installed; it is needed for comparison")
    right = bench_kernel.trl_logprobs

    def faulty(given: Any) -> Any:
        if fault == "broken":
            raise RuntimeError("no kernel image\nis available")
        logprobs_M, entropy_M = right(given)
        return logprobs_M + 1e-2, entropy_M

    monkeypatch.setattr(bench_kernel, "trl_logprobs", faulty)
    rows = run(bench_kernel, tmp_path)
    note = {"wrong": "wrong: loss off by 0.01", "broken": "skipped: RuntimeError: no kernel image"}[fault]
    row = rows[16, "TRL chunked_logprob, no gradient"]
    assert row["note"].startswith(note) and not row["ms"] and not row["tokens_per_s"]
    assert float(rows[16, OURS[0]]["ms"]) > 0


def test_tokens_must_make_whole_sequences(bench_kernel: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_kernel.main(["--device", "cpu", "--tokens", "10", "--length", "4"])
    assert "--tokens 10 is no multiple of --length 4" in capsys.readouterr().err
