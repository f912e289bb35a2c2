"""Trackio, which has no logger of Lightning's: a run is begun with its first row."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class TrackioLog(Logger):
    """Sends rows and settings to Trackio."""

    def __init__(self, project: str) -> None:
        """
        Args:
            project: The name under which Trackio shows the run.
        """
        super().__init__()
        self._project = project
        self._run: Any = None
        self._settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """Trackio names runs itself."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the settings for the run that is to begin."""
        self._settings = dict(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send a row."""
        trackio = import_module("trackio")
        if self._run is None:
            self._run = trackio.init(project=self._project, config=self._settings)
        trackio.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._run is not None:
            import_module("trackio").finish()
