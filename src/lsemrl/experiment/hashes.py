"""What decides the outcome of a run, as hashes: its settings, the files they name, and the runs it builds on.

Code is not covered, but for the version of lsemrl where the embedded world is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsemrl import __version__, micro
from lsemrl.errors import UserError
from lsemrl.experiment.fields import Field, strings
from lsemrl.identification.ngrams import ABOUT
from lsemrl.layouts import HUB, layout_of

_MODEL_FILES = ("config.json", "adapter_config.json", "modules.json", ABOUT)
"""One of them is in the folder of a model, an adapter, an encoder, an identifier."""
_FOLDERS = ("include",)
"""Fields that name a folder of anything."""
_WRITTEN = ("skipped_path",)
"""Fields that name what a run writes."""


def run_hashes(
    settings: Any, files: Mapping[str, str | None], world: bool, parents: Sequence[str], seed: int
) -> dict[str, str]:
    """Hashes of a run by part, and of everything as `all`.

    Args:
        settings: Whatever it is told but its seed, as JSON can hold it.
        files: See `file_hashes`.
        world: Whether anything of it is the embedded world's.
        parents: The hashes of the runs it builds on.
        seed: Its seed.
    """
    data = {text: digest for text, digest in sorted(files.items()) if digest}
    parts = {
        "settings": _hash(settings),
        "data": _hash([data, [__version__, _folder_hash(micro.ASSETS)] if world else None]),
        "parents": _hash(list(parents)),
    }
    return {**parts, "all": _hash([parts, seed])}


def file_hashes(fields: Iterable[Field]) -> dict[str, str | None]:
    """For each text in `fields` the hash of what it names: a file or the folder of a model; None if it names none."""
    found: dict[str, str | None] = {}
    for path, value in fields:
        name = path.rpartition(".")[2]
        for text in strings(value) if name not in _WRITTEN else ():
            found[text] = found.get(text) or _file_hash(text, whole=name in _FOLDERS)
    return found


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _file_hash(text: str, *, whole: bool) -> str | None:
    """Of the content of the file, files of rows, or model's folder that `text` names; None if it names none.

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
            return _folder_hash(path)
        if layout := layout_of(text):
            return _hash({name: _content_hash(file) for name, file in layout.files.items()})
        # Any other folder is more likely a word that happens to be a folder's name, or one that runs are written to.
        return _folder_hash(path) if any((path / name).is_file() for name in _MODEL_FILES) else None
    except (OSError, RuntimeError, UserError):  # too long for a name; nobody's home; a word, and a folder of any files
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
