"""TensorBoard's events: the rows of metrics.csv again, written at once, where Lightning's logger has a thread for it.

What a thread cannot write is told late, with a traceback, or not at all.
"""

from __future__ import annotations

import io
import os
import socket
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from lsemrl.files import append


class EventLog(Logger):
    """Writes an events.out.tfevents file in the folder of a run.

    Attributes:
        folder: The run's; to be set before anything is logged.
        resumed_at: The step that the run goes on from: hides what an earlier file has of it and of later ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.resumed_at: int | None = None
        self._path: Path | None = None

    @property
    def name(self) -> str:
        """Nothing: the folder says it all."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder says it all."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """The run's folder."""
        return None if self.folder is None else str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> EventLog:
        """Itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append an event.

        Raises:
            UserError: The file cannot be written to.
        """
        if self._path is None:
            assert self.folder is not None
            name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._path = self.folder / name
            self._write(file_version="brain.Event:2")
            if self.resumed_at is not None:
                self._write(step=self.resumed_at, session_log=SessionLog(status=SessionLog.START))
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(step=step or 0, summary=Summary(value=values))

    def _write(self, **fields: Any) -> None:
        assert self._path is not None
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        append(self._path, record.getvalue())
