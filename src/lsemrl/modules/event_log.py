"""TensorBoard's events: the rows of metrics.csv again, written at once, where Lightning's logger has a thread for it.

What a thread cannot write is told late, with a traceback, or not at all.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

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

    def _write(self, **fields: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        append(self.path, record.getvalue())
