"""Loggers by one word, against their offline modes, where their packages are installed."""

from __future__ import annotations

import sqlite3
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from lsemrl.commands.loggers import LOGGERS


def text_of(database: Path) -> str:
    with sqlite3.connect(database) as connection:
        return "\n".join(line for line in connection.iterdump())


@pytest.mark.parametrize("name", LOGGERS)
def test_rows_and_settings_are_written_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable, value in (
        ("WANDB_MODE", "offline"),
        ("SWANLAB_MODE", "offline"),
        ("TRACKIO_DIR", str(tmp_path / "trackio")),
        ("HF_HUB_OFFLINE", "1"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ):
        monkeypatch.setenv(variable, value)
    root = tmp_path / "runs"
    logger = LOGGERS[name](root)
    logger.log_hyperparams({"model.optimizer.lr": 0.125})
    for step in range(3):
        logger.log_metrics({"rewards/similarity/mean": 0.75, "loss": float(step)}, step=step)
    logger.finalize("success")
    if name in ("wandb", "swanlab"):
        import_module(name).finish()  # as they do at the end of the process
    written = {
        "wandb": lambda: next(root.glob("wandb/offline-run-*/*.wandb")).read_bytes().decode("utf-8", "replace"),
        "mlflow": lambda: text_of(root / "mlflow.db"),
        "swanlab": lambda: next(root.glob("swanlog/run-*/*.swanlab")).read_bytes().decode("utf-8", "replace"),
        "trackio": lambda: text_of(next((tmp_path / "trackio").glob("*.db"))),
    }[name]()
    assert "rewards/similarity/mean" in written or b"rewards/similarity/mean".hex() in written.lower()
    assert not [path for path in tmp_path.iterdir() if path.name not in ("runs", "trackio")]  # nothing lies elsewhere
