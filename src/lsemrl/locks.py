"""One process at a time, where two would mix up what they write."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedWriter
from pathlib import Path

from lsemrl.errors import UserError
from lsemrl.files import told


@contextmanager
def held(path: Path, field: str = "") -> Iterator[None]:
    """Hold the file or folder that a command writes, by a file beside it that is gone when the block ends.

    Args:
        path: It need not be there yet.
        field: As for `told`.

    Raises:
        UserError: Another process holds it, or nothing can be written there.
    """
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".{place.name}.lock")
    with told(path, field):
        beside.parent.mkdir(parents=True, exist_ok=True)
        file = beside.open("ab")
    with ExitStack() as opened:
        hold(opened.enter_context(file), path)
        while not _lies_at(beside, file):  # whoever held it took it away after we had opened it
            with told(path, field):
                file = beside.open("ab")
            hold(opened.enter_context(file), path)
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)


def _lies_at(path: Path, file: BufferedWriter) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def hold(file: BufferedWriter, path: Path) -> None:
    """Hold an open file until it is closed; `path` is what a person would wait for.

    Raises:
        UserError: Another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is at work on {str(path)!r}; wait for it, or end it") from None
    except OSError:  # some file systems have no locks
        pass
