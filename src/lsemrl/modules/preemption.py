"""Signals that ask a run to stop, and a SLURM job that is to come again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer

log = logging.getLogger(__name__)


class Signals:
    """SIGTERM, Ctrl-C and, in a SLURM job, the signal that comes before its time is up (`sbatch --signal`).

    Lightning's own handlers, which these replace, broadcast in the middle of whatever goes on, and write pickles.

    Attributes:
        came: The number of the signal that came; 0 before.
    """

    def __init__(self, trainer: Trainer) -> None:
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if environment is None and SLURMEnvironment.detect():
            environment = SLURMEnvironment()
        self._last_call: signal.Signals | None = None
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._last_call = environment.requeue_signal
        self._handlers: dict[int, Any] = {}
        self.came = 0

    def listen(self) -> None:
        """Take the signals."""

        def note(number: int, frame: FrameType | None) -> None:
            if self.came and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.came = self.came or number  # SIGTERM may follow the one that asked to be queued again

        try:
            for number in (signal.SIGTERM, signal.SIGINT, self._last_call):
                if number is not None:
                    self._handlers[number] = signal.signal(number, note)
        except ValueError:  # not the main thread
            self._handlers = {}

    def give_back(self) -> None:
        """Let the signals go where they went before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def requeue(self, number: int) -> None:
        """Have SLURM run the job again, if `number` is how it said that time is up."""
        if number != self._last_call:
            return
        job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
        if array:
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            log.warning("SLURM job %s was not queued again (%s); submit it again by hand", job, reason)
        else:
            log.warning("SLURM job %s is queued again", job)
