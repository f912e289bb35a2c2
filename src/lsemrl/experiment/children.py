"""The processes of an experiment: the children at work, the folder they are held to, and the signals that end them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lsemrl.errors import UserError
from lsemrl.files import told


@dataclass
class Child:
    """The process of a run."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def ended(self) -> tuple[int, int] | None:
        """Its exit status and the most bytes it held; None while it goes on."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.log.close()
        unit = 1 if sys.platform == "darwin" else 1024
        return self.process.returncode, usage.ru_maxrss * unit

    def signal(self, number: int) -> None:
        """Signal the child and the processes it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def environment(parallel: int = 1) -> Mapping[str, str]:
    """Ours, less modules of the working folder, which `python -m` would put before all others (see `prepare_configs`).

    With several runs at a time, each has its share of the cores, for more threads than cores wait in vain.
    """
    share = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // parallel, 1))} if parallel > 1 else {}
    return {**share, **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


@contextmanager
def claimed(output: Path) -> Iterator[int]:
    """Hold `output` for us alone; the descriptor of the lock.

    Raises:
        UserError: It cannot be written to, or another process holds it.
    """
    path = output / ".lock"
    with told(output, "output"):
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"output is {str(output)!r}, where an experiment is at work (process {path.read_text().strip()}); wait "
                "for it, or end it"
            ) from None
        except OSError:  # some file systems have no locks
            pass
        write_pids(descriptor, [os.getpid()])
        yield descriptor
    finally:
        os.close(descriptor)


def write_pids(descriptor: int, pids: Sequence[int]) -> None:
    """Say in a lock file who holds it."""
    with suppress(OSError):  # of a full disk; they are for people only
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, ", ".join(map(str, pids)).encode(), 0)


@contextmanager
def listening() -> Iterator[list[int]]:
    """The signals that came, in order."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in numbers
        if signal.getsignal(number) != signal.SIG_IGN  # nohup
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
