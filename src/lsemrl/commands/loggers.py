"""Loggers by one word, beside a run's own metrics.csv and TensorBoard events."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError

_PROJECT = "lsemrl"


def _wandb(root: Path) -> Any:
    from lightning.pytorch.loggers import WandbLogger

    root.mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=_PROJECT, save_dir=root)


def _mlflow(root: Path) -> Any:
    from lightning.pytorch.loggers import MLFlowLogger

    root.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(  # into a database: MLflow 3 refuses to begin a folder of files
        experiment_name=_PROJECT,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}",
        artifact_location=str((root / "mlruns").resolve()),
    )


def _swanlab(root: Path) -> Any:
    make = import_module("swanlab.integration.pytorch_lightning").SwanLabLogger
    return make(project=_PROJECT, logdir=str(root / "swanlog"))


def _trackio(root: Path) -> Any:
    from lsemrl.modules.trackio_log import TrackioLog

    return TrackioLog(_PROJECT)


LOGGERS: dict[str, Callable[[Path], Any]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "trackio": _trackio,
}
"""By the names of the packages that they need: what makes each, given the folder of all runs."""


def named_logger(word: str, root: Path) -> Any:
    """The logger of `LOGGERS` that a word names.

    Args:
        word: A key of theirs.
        root: The folder of all runs.

    Raises:
        UserError: Its package is not installed.
    """
    if find_spec(word) is None:
        raise UserError(f"trainer.logger is {word}, whose package is not installed; pip install {word}")
    return LOGGERS[word](root)
