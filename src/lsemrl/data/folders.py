"""Datasets that are folders or lie on the Hugging Face hub: Parquet files, what `datasets` saved, what it can load."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lsemrl.data.formats import read_parquet
from lsemrl.data.rows import Row, first_line, numbered
from lsemrl.layouts import HUB
from lsemrl.reading import user_path
from lsemrl.types import UserError

_SPLITS = {"train", "training", "validation", "valid", "dev", "test", "testing"}
_OF_HUB = re.compile(r"-\d+-of-\d+\.")  # before which is the split, whatever it is called


def read_parquets(path: str, files: Mapping[str, Path], split: str) -> Iterator[Row]:
    """The rows of Parquet files, in the order of their names; where they lie in several folders, that is told.

    Args:
        path: The folder, as the user calls it.
        files: By their names in it.
        split: Where names tell splits apart, as those of the hub do (train-00000-of-00002.parquet): which to read.

    Raises:
        UserError: One cannot be read, none is of the split, or some tell none where others do.
    """
    words = {name: set(re.split(r"[\W_]+", name.lower())) for name in files}
    told = set().union(*words.values()) & _SPLITS
    untold = [
        name for name in files if told and not words[name] & {*_SPLITS, split.lower()} and not _OF_HUB.search(name)
    ]
    if untold:
        raise UserError(
            f"path {path!r} holds files of {', '.join(sorted(told))}, and {', '.join(untold)} beside them, whose names "
            "tell no split; name a file, or give those a folder of their own"
        )
    chosen = [name for name in files if not told or split.lower() in words[name]]
    if not chosen:
        raise UserError(f"split is {split!r}, but the files in {path!r} are of {', '.join(sorted(told))}; name one")
    folders = list(dict.fromkeys(str(Path(name).parent) for name in chosen))
    if len(folders) > 1:  # which on the hub are languages as often as they are parts
        some = f"{', '.join(folders[:3])}{', …' if len(folders) > 3 else ''}"
        told_of = f"path {path!r} has rows in {len(folders)} folders ({some}), all of which are read"
        warnings.warn(f"{told_of}; name one of them as path to read it alone", stacklevel=2)
    for name in chosen:
        yield from read_parquet(str(Path(path) / name))


def read_saved(path: str, split: str) -> Iterator[Row]:
    """The rows of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        UserError: It cannot be loaded, or has no such split.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(user_path(path)))
        splits = list(found) if isinstance(found, datasets.DatasetDict) else []
        rows = list(found.get(split, []) if splits else found)
    except Exception as error:  # whatever it is, it is about what lies in the folder
        raise UserError(
            f"path {path!r} cannot be loaded as what datasets saved ({first_line(error)}); save it again"
        ) from None
    if splits and split not in splits:
        raise UserError(f"split is {split!r}, but {path!r} holds {', '.join(splits)}; name one")
    yield from _rows(path, rows)


def read_hub(path: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """A Hugging Face dataset, `path` being hub:owner/name.

    Raises:
        UserError: It cannot be loaded.
    """
    import datasets

    try:
        found = datasets.load_dataset(path.removeprefix(HUB), config, split=split, revision=revision)
        rows = list(found)
    except (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"path {path!r} (config {config}, split {split}, revision {revision}) "
            f"cannot be loaded as a Hugging Face dataset: {first_line(error)}; correct these fields"
        ) from None
    yield from _rows(path, rows)


def _rows(path: str, rows: Iterable[dict[str, object]]) -> Iterator[Row]:
    return (numbered(path, number, columns) for number, columns in enumerate(rows, start=1))
