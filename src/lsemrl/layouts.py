"""Rows that are no single file: texts by language side by side, a folder of Parquet, one that `datasets` saved.

Beside the data, who hashes what a run is made of must know which files a path means.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lsemrl.errors import UserError
from lsemrl.languages import is_language, is_same
from lsemrl.reading import user_path

HUB = "hub:"
"""Begins the name of a Hugging Face dataset, or of a folder that their library is to read."""
PACKED = (".gz", ".zst")
"""Ends of the names of packed files."""
_SAVED = ("dataset_dict.json", "state.json")
_LOG = "log"
"""How what a tool said of its work is called, though it is the code of Logo too."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a path that names no file means.

    Attributes:
        kind: Line n of every text file answers line n of the others; Parquet files; or what `save_to_disk` wrote.
        files: By what to call them: of texts the language, as it is in the file's name.
    """

    kind: Literal["texts", "parquet", "saved"]
    files: Mapping[str, Path]


def format_of(path: str | Path) -> str:
    """How the name of a file ends that is told by it, such as .jsonl; of packed files what is packed."""
    return Path(without_packing(str(path))).suffix.lower()


def without_packing(name: str) -> str:
    """A name without the end that says how it is packed."""
    return next((name[: -len(end)] for end in PACKED if name.lower().endswith(end)), name)


def layout_of(path: str) -> Layout | None:
    """What `path` means where it names no file; None where that is nothing known.

    A folder is one of `datasets`, one of Parquet files (in it or one level below), or one with a text file for each
    language (FLORES: dev/bod_Tibt.dev). What is not there at all may be what such files begin with (Moses and OPUS:
    bible.bo-zh for bible.bo-zh.bo and bible.bo-zh.zh). A log beside them is none of them: texts in Logo are log_Latn.
    """
    where = user_path(path)
    if os.path.isdir(where):  # unlike Path.is_dir it says of what may not be looked at, or cannot be, that it is none
        if any(os.path.isfile(where / name) for name in _SAVED):
            return Layout(kind="saved", files=_named(where, where.rglob("*")))
        tables = [*where.glob("*.parquet"), *where.glob("*/*.parquet")]
        if tables:
            return Layout(kind="parquet", files=_named(where, tables))
        return _texts(path, [(file.partition(".")[0], where / file) for file in _files(where)])
    if os.path.lexists(where):
        return None
    begins = f"{where.name}."
    ends = [
        (without_packing(file.removeprefix(begins)), where.parent / file)
        for file in _files(where.parent)
        if file.startswith(begins)
    ]
    pair = where.name.rpartition(".")[2].split("-")  # OPUS says which two
    told = [(name, file) for name, file in ends if name in pair]
    return _texts(path, told if len(told) > 1 else ends)


def name_among(names: Iterable[str], asked: str, where: str) -> str:
    """The one of `names` that `asked` means: exactly, or as a tag of the same language.

    Raises:
        UserError: There is none, or several could be meant.
    """
    names = list(names)
    alike = [asked] if asked in names else [name for name in names if is_same(name, asked)]
    if len(alike) != 1:
        what = "could be any of" if alike else "is none of"
        raise UserError(
            f"{asked!r} {what} {', '.join(alike or names)}, which {where!r} holds; name the right one in columns "
            f"(columns: {{{asked}: ...}})"
        )
    return alike[0]


def _texts(path: str, found: list[tuple[str, Path]]) -> Layout | None:
    files: dict[str, Path] = {}
    for name, file in sorted(found):
        if not is_language(name) or name.lower() == _LOG:
            continue
        if name in files:
            raise UserError(
                f"path {path!r} means {files[name].name!r} and {file.name!r}, both of {name}; name the files with path "
                "and target_path"
            )
        files[name] = file
    return Layout(kind="texts", files=files) if len(files) > 1 else None


def _named(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in sorted(files) if file.is_file()}


def _files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    except OSError:  # whoever reads the path tells why
        return []
