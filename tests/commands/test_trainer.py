"""An interrupted run is found again by the command that it says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.modules.checkpoints import Interrupted
from lsemrl.runs import has_finished
from short_runs import At
from small_run import SMALL

WORDS = ["fit", "--config", str(CONFIGS / "sft.yaml"), *SMALL, "--data.batch_size=4", "--trainer.default_root_dir=runs"]


def stopped(at: int, *words: str) -> str:
    """What is said where SIGTERM comes after a step."""
    with pytest.raises(Interrupted) as told:
        run_trainer([*WORDS, *words], [At(at, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    return str(told.value)


@pytest.mark.slow
def test_a_run_from_a_checkpoint_goes_on_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_trainer(WORDS)
    saved = Path("runs/version_0/checkpoints/step_1")
    assert has_finished(Path("runs/version_0"))
    again = [f"--checkpoints.resume={saved}", "--trainer.max_steps=5"]
    kept = "runs/version_1/checkpoints/step_3"
    assert stopped(3, *again) == f"stopped by SIGTERM, saved in {kept}; the same command goes on from there"
    assert not has_finished(Path("runs/version_1"))
    run_trainer([*WORDS, *again])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["version_0", "version_1"]
    assert has_finished(Path("runs/version_1"))


@pytest.mark.slow
def test_a_run_that_nobody_finds_again_names_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    longer = "--trainer.max_steps=3"
    own = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine", longer]
    for words in (own, [longer, "--checkpoints.resume=never"]):
        said = stopped(2, *words)
        assert said.startswith("stopped by SIGTERM, saved in ") and said.endswith("/step_2 goes on from there")
        assert "; --checkpoints.resume " in said
    run_trainer([*WORDS, *own])
    assert "run.json" not in caplog.text
