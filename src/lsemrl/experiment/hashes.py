"""What decides the outcome of a run, as hashes: its settings, the files they name, and the runs it builds on.

Code is not covered, but for the version of lsemrl where the embedded world is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsemrl import __version__, micro
from lsemrl.identification.ngrams import ABOUT
from lsemrl.layouts import layout_of

_MODEL_FILES = ("config.json", "adapter_config.json", "modules.json", ABOUT)
"""One of them is in the folder of a model, an adapter, an encoder, an identifier."""


def run_hashes(settings: Any, texts: Iterable[str], parents: Sequence[str], seed: int) -> dict[str, str]:
    """Hashes of a run by part, and of everything as `all`.

    Args:
        settings: Whatever it is told but its seed, as JSON can hold it.
        texts: The texts in there: those that name a file or the folder of a model stand for its content.
        parents: The hashes of the runs it builds on.
        seed: Its seed.
    """
    texts = sorted(texts)
    world = any(text.partition(":")[0] == micro.NAME for text in texts)
    data = {text: digest for text in texts if (digest := _file_hash(text))}
    parts = {
        "settings": _hash(settings),
        "data": _hash([data, [__version__, _folder_hash(micro.ASSETS)] if world else None]),
        "parents": _hash(list(parents)),
    }
    return {**parts, "all": _hash([parts, seed])}


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _file_hash(text: str) -> str | None:
    """Of the content of the file, files of rows, or model's folder that `text` names; None if it names none."""
    path = Path(text).expanduser() if text and "\0" not in text else None
    try:
        if path is None:
            return None
        if path.is_file():
            return _content_hash(path)
        if layout := layout_of(text):
            return _hash({name: _content_hash(file) for name, file in layout.files.items()})
        # Any other folder is more likely a word that happens to be a folder's name, or one that runs are written to.
        return _folder_hash(path) if any((path / name).is_file() for name in _MODEL_FILES) else None
    except (OSError, RuntimeError):  # too long for a name; or no such user's home
        return None


def _folder_hash(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return _hash({str(path.relative_to(folder)): _content_hash(path) for path in files})


def _content_hash(path: Path) -> str:
    status = path.stat()
    return _read_hash(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _read_hash(path: Path, size: int, modified: int) -> str:
    """Read once for all the runs that name it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
