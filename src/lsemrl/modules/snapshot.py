"""A checkpoint as a folder: what training needs to go on, written whole or not at all, and checked when it is read.

adapter/               the trained weights in peft's format (after full fine-tuning, the model in transformers')
reference.safetensors  the frozen adapter of the KL reference, where there is one
optimizer.safetensors  AdamW's moments, by the name of the weight
state.json             clocks, schedule, random numbers of every rank, and the checksums of the files above

Nothing is pickled, so that reading a stranger's checkpoint runs none of his code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsemrl.runs import checkpoints
from lsemrl.types import UserError

FORMAT = 1
_STATE = "state.json"


def write_snapshot(folder: Path, state: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Write a checkpoint under a temporary name, and give it its own when all of it is on the disk.

    Args:
        folder: Of the checkpoint; left as it is where it exists.
        state: What JSON can hold.
        fill: Writes the other files into the folder it is given.

    Raises:
        OSError: It cannot be written; nothing of it is left then.
    """
    part = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        sums = {str(path.relative_to(part)): _checksum(path) for path in files}
        record: dict[str, Any] = {"format": FORMAT, **state, "files": sums}
        (part / _STATE).write_text(json.dumps({**record, "checksum": _digest(record)}) + "\n", encoding="utf-8")
        for path in (*files, part / _STATE, *(path for path in part.rglob("*") if path.is_dir()), part):
            _sync(path)
        if folder.exists():
            shutil.rmtree(part)
        else:
            part.rename(folder)
            _sync(folder.parent)
    except Exception:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read_snapshot(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, after all of its files have been checked.

    Raises:
        UserError: It is no checkpoint, of a later format, or not as it was written.
    """
    try:
        record = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} is no checkpoint (it has no {_STATE}); name a folder under the checkpoints/ of a run"
        ) from error
    except ValueError as error:
        raise UserError(f"{str(folder)!r} is damaged ({_STATE} is not JSON); {_others(folder)}") from error
    if not isinstance(record, dict) or record.pop("checksum", None) != _digest(record):
        raise UserError(f"{str(folder)!r} is damaged ({_STATE} is not as it was written); {_others(folder)}")
    if record["format"] > FORMAT:
        raise UserError(
            f"{str(folder)!r} has format {record['format']}, and this lsemrl reads up to {FORMAT}; upgrade lsemrl"
        )
    for name, checksum in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{str(folder)!r} is damaged ({name} is missing); {_others(folder)}")
        if _checksum(path) != checksum:
            raise UserError(f"{str(folder)!r} is damaged ({name} is not as it was written); {_others(folder)}")
    return record


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder that is no checkpoint, such as the best adapter so far, in the place of the one before it.

    Args:
        folder: Holds the old files or the new, and is missing only between two renames.
        fill: Writes the files into the folder it is given, and makes it.

    Raises:
        OSError: It cannot be written.
    """
    part, old = folder.with_name(f".{folder.name}"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(part, ignore_errors=True)
    fill(part)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_snapshot(folder: Path) -> None:
    """Delete a checkpoint so that a kill leaves no half of it under its name."""
    gone = folder.with_name(f".{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def sweep(root: Path) -> None:
    """Delete what a kill left half written, or half deleted, among the checkpoints in `root`."""
    for left in root.glob(".step_*"):
        shutil.rmtree(left)


def _others(folder: Path) -> str:
    """What a user can do without this checkpoint."""
    others = [str(path) for path in checkpoints(folder.parent.parent) if path != folder]
    if not others:
        return "there is no other beside it: delete it, and run the same command again to begin anew"
    return f"delete it, and run the same command again to go on from the one before, {others[-1]!r}"


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
