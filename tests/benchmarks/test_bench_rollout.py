"""The benchmark of sampling at its smallest."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from forks import Fork, benchmark

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = "--rows 2 9 --prompt 4 --tokens 3 --rounds 1"


@pytest.mark.slow  # 12 seconds
def test_the_smallest_run(tmp_path: Path) -> None:
    words = ["benchmarks/bench_rollout.py", *SMALLEST.split(), "--device", "cpu", "--results", str(tmp_path)]
    run = Fork(words, benchmark, folder=BENCHMARKS.parent).end()
    assert run.returncode == 0, run.stderr
    first, *lines = (tmp_path / "rollout_cpu_small.csv").read_text().splitlines()
    assert first.startswith(f"# python benchmarks/bench_rollout.py {SMALLEST}") and "torch " in first
    rows = list(csv.DictReader(lines))
    ways = ["transformers generate", "lsemrl loop"]
    assert [(row["rows"], row["way"]) for row in rows] == [(count, way) for count in ("2", "16") for way in ways]
    for row in rows:
        assert float(row["tokens_per_s"]) > 0
        if row["way"] == ways[0]:
            assert float(row["ratio"]) == pytest.approx(1)
