"""Loggers by one word, beside a run's own metrics.csv and TensorBoard events."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

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


LOGGERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "wandb": (_wandb, "wandb"),
    "mlflow": (_mlflow, "mlflow"),
    "swanlab": (_swanlab, "swanlab"),
    "trackio": (_trackio, "trackio"),
}
"""What makes each, given the folder of all runs, and the package that it needs."""
