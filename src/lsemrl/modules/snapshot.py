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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lsemrl.files import replace_folder, write_text
from lsemrl.runs import checkpoints
from lsemrl.types import UserError

FORMAT = 1
_STATE = "state.json"


def write_snapshot(folder: Path, state: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Write a checkpoint.

    Args:
        folder: Of the checkpoint; left as it is where it exists.
        state: What JSON can hold.
        fill: Writes the other files into the folder it is given.

    Raises:
        UserError: It cannot be written; nothing of it is left then.
    """

    def write(part: Path) -> None:
        fill(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        sums = {str(path.relative_to(part)): _checksum(path) for path in files}
        record: dict[str, Any] = {"format": FORMAT, **state, "files": sums}
        write_text(part / _STATE, json.dumps({**record, "checksum": _digest(record)}) + "\n")

    if not folder.exists():
        replace_folder(folder, write)


def check_there(folder: Path) -> None:
    """Refuse what is no checkpoint, without reading one that is.

    Raises:
        UserError: It is none.
    """
    if not (folder / _STATE).is_file():
        raise UserError(
            f"{str(folder)!r} is no checkpoint (it has no {_STATE}); name a folder under the checkpoints/ of a run"
        )


def read_snapshot(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, after all of its files have been checked.

    Raises:
        UserError: It is no checkpoint, of a later format, or not as it was written.
    """
    check_there(folder)
    try:
        record = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read ({error}); give it back its rights") from error
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
