"""The benchmark of rounding at its smallest."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import rounding

from modules.adapters.kinds import save_adapter, save_model


def test_the_smallest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", "tied")
    adapter = save_adapter(str(model), tmp_path / "adapter")
    (tmp_path / "texts.txt").write_text("今天我们去学校。\n他们在家里吃饭。\n", encoding="utf-8")
    words = {"model": model, "adapter": adapter, "text": tmp_path / "texts.txt", "column": "text", "results": tmp_path}
    flags = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["benchmarks/rounding.py", *flags])
    rounding.main()
    _, *lines = (tmp_path / "rounding.csv").read_text().splitlines()
    rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    assert [row["part"] for row in rows] == list(rounding.PARTS)
    assert all(0 < row["by_chance"] < row["policy_from_base"] for row in rows if row["part"] >= 0.1)
    assert all(row["nearest"] > 0 for row in rows) and rows[-1]["policy_from_base"] > rows[0]["policy_from_base"]
