"""What decides the outcome of a run, as hashes: its settings, the files they name, and the runs it builds on.

Code is not covered, but for the version of lsemrl where the embedded world is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsemrl import __version__, micro
from lsemrl.contents import content_of, folder_hash, hash_of
from lsemrl.experiment.fields import Field, strings

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
        "settings": hash_of(settings),
        "data": hash_of([data, [__version__, folder_hash(micro.ASSETS)] if world else None]),
        "parents": hash_of(list(parents)),
    }
    return {**parts, "all": hash_of([parts, seed])}


def file_hashes(fields: Iterable[Field]) -> dict[str, str | None]:
    """For each text in `fields` the hash of what it names: a file or the folder of a model; None if it names none."""
    found: dict[str, str | None] = {}
    for path, value in fields:
        name = path.rpartition(".")[2]
        for text in strings(value) if name not in _WRITTEN else ():
            found[text] = found.get(text) or content_of(text, whole=name in _FOLDERS)
    return found
