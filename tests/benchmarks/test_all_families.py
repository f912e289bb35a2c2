"""The table of model families at its smallest."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import families
import pytest


@pytest.mark.slow
def test_the_smallest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/families.py", "qwen2", "mamba", "--results", str(tmp_path)])
    families.main()
    _, *lines = (tmp_path / "families.csv").read_text().splitlines()
    learned, refused = csv.DictReader(lines)
    assert learned["way"] == "shared" and learned["greedy"] == "6" and not learned["reason"]
    off = ("scored", "gradient", "recomputed", "drawn", "peft", "merged", "full")
    assert all(0 <= float(learned[name]) < 1e-3 for name in off) and float(learned["moved"]) > 0.1
    assert refused["way"] == "refused" and "keeps no cache" in refused["reason"] and not refused["scored"]
