"""What a text names on this machine, known by its content: a file, files of rows, the folder of a model."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.identification.ngrams import ABOUT
from lsemrl.layouts import HUB, layout_of

_MODEL_FILES = ("config.json", "adapter_config.json", "modules.json", ABOUT)
"""One of them is in the folder of a model, an adapter, an encoder, an identifier."""


def hash_of(value: Any) -> str:
    """Of a value as JSON can hold it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_of(text: str, *, whole: bool = False) -> str | None:
    """A hash of the content of the file, files of rows, or model's folder that `text` names; None if it names none.

    Args:
        text: Any. Behind `HUB` it may be a folder of anything, which the hub's library reads.
        whole: Whether it may be that without.
    """
    local = text.removeprefix(HUB)
    try:
        path = Path(local).expanduser() if local and "\0" not in local else None
        if path is None:
            return None
        if path.is_file():
            return _content_hash(path)
        if (whole or local != text) and path.is_dir():
            return folder_hash(path)
        if layout := layout_of(text):
            return hash_of({name: _content_hash(file) for name, file in layout.files.items()})
        # Any other folder is more likely a word that happens to be a folder's name, or one that runs are written to.
        return folder_hash(path) if any((path / name).is_file() for name in _MODEL_FILES) else None
    except (OSError, RuntimeError, UserError):  # too long for a name; nobody's home; a word, and a folder of any files
        return None


def folder_hash(folder: Path) -> str:
    """Of all files in it, by their names, but for compiled code."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return hash_of({str(path.relative_to(folder)): _content_hash(path) for path in files})


def _content_hash(path: Path) -> str:
    status = path.stat()
    return _read_hash(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _read_hash(path: Path, size: int, modified: int) -> str:
    """Read once for all the runs that name it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
