"""TensorBoard's events: the rows of metrics.csv again, texts, and settings, all written at once.

Lightning's logger has a thread for it.

What a thread cannot write is told late, with a traceback, or not at all.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from lsemrl.files import append


class EventLog:
    """An events.out.tfevents file, begun with its first row."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        """
        Args:
            folder: Of the run.
            resumed_at: The step that it goes on from: hides what an earlier file has of it and of later ones.
        """
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self.path = folder / name
        self._write(file_version="brain.Event:2")
        if resumed_at is not None:
            self._write(step=resumed_at, session_log=SessionLog(status=SessionLog.START))

    def append(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append an event.

        Raises:
            UserError: The file cannot be written to.
        """
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._write(step=step, summary=Summary(value=values))

    def append_text(self, name: str, text: str, step: int) -> None:
        """Append Markdown, which TensorBoard shows under Text.

        Raises:
            UserError: The file cannot be written to.
        """
        self._write(step=step, summary=summary.text(name, text))

    def append_settings(self, settings: Mapping[str, Any]) -> None:
        """Append the settings of a run, for TensorBoard's HParams.

        Args:
            settings: Dotted fields and their values; what is no number, text or truth value is shown as JSON.

        Raises:
            UserError: The file cannot be written to.
        """
        plain = {
            name: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
            for name, value in settings.items()
        }
        for part in summary.hparams(plain, {"loss": 0.0}):  # which names a column, and must not be empty
            self._write(summary=part)

    def _write(self, **fields: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        append(self.path, record.getvalue())
