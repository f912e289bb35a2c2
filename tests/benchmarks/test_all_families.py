"""The table of model families at its smallest."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import families
import pytest

from lsemrl.modules.families import window
from lsemrl.modules.policy_settings import LoraSettings

WINDOWED = (
    *("cwm", "dots1", "exaone4", "exaone_moe", "gpt_oss", "ministral", "ministral3", "olmo3", "phimoe", "smollm3"),
    "starcoder2",
)


@pytest.mark.slow
def test_the_smallest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/families.py", "qwen2", "rwkv", "--results", str(tmp_path)])
    families.main()
    _, *lines = (tmp_path / "families.csv").read_text().splitlines()
    learned, refused = csv.DictReader(lines)
    assert learned["way"] == "shared" and learned["greedy"] == "6" and not learned["reason"]
    off = ("scored", "gradient", "recomputed", "drawn", "peft", "merged", "full")
    assert all(0 <= float(learned[name]) < 1e-3 for name in off) and float(learned["moved"]) > 0.1
    assert refused["way"] == "refused" and "keeps no cache" in refused["reason"] and not refused["scored"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WINDOWED)
def test_rows_longer_than_a_window_share_their_prompt(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are known, whose own windows are wider than any row of the table."""
    mixed = {"sliding_window": 6, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    monkeypatch.setitem(families._OWN, kind, families._OWN.get(kind, {}) | mixed)
    families.save(families.configured(kind), tmp_path)
    policy = families.stirred(families.loaded(tmp_path, lora=LoraSettings(rank=4, alpha=8.0, dropout=0.0)), 0.1)
    whole = families.rows()
    assert families.furthest(families.scored(policy, whole), families.truth(policy.model, whole)) < 1e-4
    assert policy.shares_prompts and window(policy.model) == 6
