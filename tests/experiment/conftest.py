"""Fixtures of the experiment runner's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    made.configs.mkdir()
    (made.configs / "base.yaml").write_text("trainer: {max_steps: 100}\nmodel: {class_path: a.SFT}\n")
    (made.configs / "rl.yaml").write_text("model: {class_path: a.GRPO, init_args: {loss: {beta: 0.1}}}\n")
    monkeypatch.setenv("FAKE_JOURNAL", str(tmp_path / "journal.jsonl"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lsemrl.experiment.run._POLL", 0.01)  # the stand-in takes no longer
    return made
