"""An interrupted run is found again by the command that it says, and a repeated one is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.errors import UserError
from lsemrl.modules.alarm_log import Alarmed
from lsemrl.modules.checkpoints import Interrupted
from lsemrl.rewards import Reward
from lsemrl.runs import has_finished
from lsemrl.types import Completion
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
def test_a_run_that_nobody_finds_again_names_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    longer = "--trainer.max_steps=3"
    said = stopped(2, longer, "--checkpoints.resume=never")
    assert said.startswith("stopped by SIGTERM, saved in ") and said.endswith("/step_2 goes on from there")
    assert "; --checkpoints.resume " in said


@pytest.mark.slow
def test_an_alarm_at_the_end_has_its_exit_code_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    off = dict.fromkeys(("gamed", "language", "length", "template", "shared", "copied", "ties"))
    alarms = json.dumps({**off, "kl": 1e-9, "window": 2, "on_alarm": "stop", "unrewarded": False})
    words = ["fit", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, "--data.splits.cold_start_count=8"]
    words.append("--data.batch_size=4")
    words += [f"--model.alarms={alarms}", "--trainer.default_root_dir=runs", "--trainer.max_steps=2"]
    words += ["--data.splits.cold_start_count=8", "--model.optimizer.lr=0.01"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    told = capsys.readouterr()
    assert ended.value.code == Alarmed.status
    assert "done: runs/version_0 holds" in told.out
    assert "the run is complete, and an alarm came at its end (kl is " in told.err
    assert has_finished(Path("runs/version_0"))


class Listed(Reward):
    """A reward of a user's own, which keeps nothing of where its words lie."""

    def __init__(self, path: str, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.words = Path(path).read_text().split()

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([float(one.text in self.words) for one in completions])


def test_what_a_reward_of_ones_own_reads_must_be_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    Path("words.txt").write_text("one")
    words = ["fit", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, "--data.splits.cold_start_count=8"]
    words += ["--data.batch_size=4", "--trainer.default_root_dir=runs", "--trainer.max_steps=2"]
    listed = {"class_path": "test_trainer.Listed", "init_args": {"path": "words.txt"}}
    words.append(f"--model.rewards.mine={json.dumps(listed)}")
    with pytest.raises(Interrupted):
        run_trainer(words, [At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    Path("words.txt").write_text("two")
    with pytest.raises(UserError, match=r"^rewards\.mine\.path is not what it was when 'runs/version_0/"):
        run_trainer(words)


class Rows(Logger):
    """Writes where it stands, as W&B does by default."""

    save_dir, name, version = ".", "rows", "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        Path("rows").write_text(f"{step} {metrics['loss']}")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_logger_of_ones_own_writes_beside_the_files_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    Path("config.yaml").write_text("# mine\n")
    run_trainer([*WORDS, "--trainer.logger=test_trainer.Rows", "--trainer.enable_progress_bar=true"])
    assert Path("config.yaml").read_text() == "# mine\n" and Path("rows").read_text().startswith("0 ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "rows", "runs"]
    folder = Path("runs/version_0")
    assert has_finished(folder) and (folder / "adapter").is_dir() and (folder / "metrics.csv").is_file()
    assert "\n1 of 1 steps: loss " in capsys.readouterr().err


def test_a_trial_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_trainer([*WORDS, "--trainer.fast_dev_run=true", "--checkpoints.monitor=val/chrf"])
    assert list(tmp_path.iterdir()) == []


def test_a_word_names_a_logger_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lsemrl.commands.loggers.find_spec", lambda package: None)
    word, none = Path("word.yaml"), Path("none.yaml")
    word.write_text("trainer: {logger: trackio}\n")
    none.write_text("trainer: {logger: false}\n")
    for words in (["--config=word.yaml"], ["--config=none.yaml", "--trainer.logger", "trackio"]):
        with pytest.raises(UserError, match=r"trainer\.logger is trackio, whose package is not installed; pip install"):
            run_trainer([*WORDS, *words])
    with pytest.raises(SystemExit):
        main([*WORDS, "--trainer.logger=tensorboard"])
    assert "mlflow" in capsys.readouterr().err


def test_every_step_is_logged_unless_something_else_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_trainer(["fit", "--print_config"])
    assert "log_every_n_steps: 1\n" in capsys.readouterr().out


def test_an_adapter_of_a_run_that_was_repeated_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (tmp_path / "cold_start" / name for name in ("version_0", "version_1"))
    for run in (first, second):
        shutil.copytree(micro.COLD_START, run / "adapter")
        (run / "config.yaml").touch()
    words = ["fit", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, "--data.splits.cold_start_count=8"]
    words.append("--data.batch_size=4")
    for run in (first, second):
        with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
            main([*words, f"--trainer.default_root_dir={tmp_path / 'rl'}", f"--model.policy.adapter={run / 'adapter'}"])
    said = [line for line in caplog.messages if "of a later run" in line]
    assert said == [f"warning: policy.adapter is of {first}, and version_1 beside it is of a later run"]
