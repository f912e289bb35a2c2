"""The benchmark of growth at its smallest."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from forks import Fork, benchmark

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = "--sweep group --values 2 3 --prompts 1 --prompt 4 --completion 2 --steps 1 --warmup 1"


@pytest.mark.slow  # 6 seconds
def test_the_smallest_run(tmp_path: Path) -> None:
    words = ["benchmarks/bench_scaling.py", *SMALLEST.split(), "--device", "cpu", "--results", str(tmp_path)]
    run = Fork(words, benchmark, folder=BENCHMARKS.parent).end()
    assert run.returncode == 0, run.stderr
    first, *lines = (tmp_path / "scaling_group_cpu.csv").read_text().splitlines()
    assert first.startswith(f"# python benchmarks/bench_scaling.py {SMALLEST}") and "torch " in first
    rows = list(csv.DictReader(lines))
    assert [(row["group"], row["prompt"], row["completion"]) for row in rows] == [("2", "4", "2"), ("3", "4", "2")]
    for row in rows:
        assert float(row["step_s"]) > 0 and float(row["peak_mb"]) >= float(row["loaded_mb"]) > 0
    assert (tmp_path / "scaling_group_cpu.png").read_bytes().startswith(b"\x89PNG")
