"""The folders of runs: a new one, or the one that an interrupted run of the same command left behind.

A training run's folder holds run.json, written whole before anything else, which says what is being run and whether it
has ended; and a lock, held as long as the process lives, so that nobody takes up a run that is still at work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.files import write_text

CHECKPOINTS, SAMPLES, SKIPPED = "checkpoints", "samples.csv", "skipped.jsonl"
APPENDED = (SAMPLES, SKIPPED)
"""Files in a run's folder that steps append to."""
_RECORD, _LOCK = "run.json", ".lock"
_PLACES = ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar", "logger")
"""Fields of the trainer that say where a run is at work, not what it does."""

_held: list[int] = []  # descriptors of locks: closing one would let go of its lock


def new_version(root: Path, field: str = "trainer.default_root_dir") -> str:
    """Make the next free folder of a run under `root`, and return its name; `field` is where the user set `root`.

    Raises:
        UserError: `root` cannot be written to.
    """
    with _told(root, field):
        root.mkdir(parents=True, exist_ok=True)
        taken = [_number(path) for path in _versions(root)]
        name = f"version_{max(taken, default=-1) + 1}"
        (root / name).mkdir()
    return name


def open_run(root: Path, config: Mapping[str, Any], *, resume: bool) -> tuple[Path, Path | None]:
    """Take a folder for a training run and hold it until this process ends.

    Args:
        root: Where the folders of runs are.
        config: The run's whole configuration, as it would be saved.
        resume: Whether to go on with an interrupted run of the same configuration, if there is one that is not at work.

    Returns:
        The folder, and the newest checkpoint in it to go on from; None to begin.

    Raises:
        UserError: `root` cannot be written to.
    """
    identity = _identity(config)
    with _told(root, "trainer.default_root_dir"):
        left = sorted(_versions(root), key=_number, reverse=True) if resume else []
        for folder in left:
            record = _read(folder)
            if record is None or record["identity"] != identity or record["finished"] or not _lock(folder):
                continue
            found = checkpoints(folder)
            if not found:  # it never came so far, so that there is nothing to keep
                _empty(folder)
            return folder, found[-1] if found else None
        folder = root / new_version(root)
        _lock(folder)
        write_record(folder / _RECORD, {"identity": identity, "finished": False})
    return folder, None


def finish_run(folder: Path) -> None:
    """Record that the run in `folder` has come to its end, so that the same command begins another."""
    record = _read(folder)
    if record is not None:
        write_record(folder / _RECORD, {**record, "finished": True})


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (folder / CHECKPOINTS).glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The rollout step that a checkpoint stands before, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def file_sizes(folder: Path) -> dict[str, int]:
    """How long the files are that steps append to, once they are on the disk."""
    found = {}
    for name in APPENDED:
        path = folder / name
        if path.is_file():
            with path.open("ab") as file:
                os.fsync(file.fileno())
                found[name] = file.tell()
    return found


def truncate_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Drop what was appended after a checkpoint."""
    for name in APPENDED:
        if sizes.get(name):
            os.truncate(folder / name, sizes[name])
        else:
            (folder / name).unlink(missing_ok=True)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON; a kill leaves the old file or the new one.

    Raises:
        UserError: It cannot be written.
    """
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def is_rank_zero() -> bool:
    """Whether this process is the first of a run's, as torchrun, SLURM or Lightning started it."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def _identity(config: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in config.items() if name not in ("config", "checkpoints")}
    kept["trainer"] = {name: value for name, value in config.get("trainer", {}).items() if name not in _PLACES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _versions(root: Path) -> Iterator[Path]:
    return (path for path in root.glob("version_*") if path.name[8:].isdigit())


def _number(folder: Path) -> int:
    return int(folder.name[8:])


def _lock(folder: Path) -> bool:
    """Hold `folder` until this process ends; False if another does."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Not flock: a data worker would inherit it, and hold it for seconds after this process was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name in (_RECORD, _LOCK):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if {"identity", "finished"} <= record.keys() else None


@contextmanager
def _told(root: Path, field: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{field} is {str(root)!r}, which cannot be written to ({error.strerror}); name another folder"
        ) from error
