"""From the path that a user gives to what tells a language."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable
from pathlib import Path

from lsemrl.errors import UserError
from lsemrl.identification.base import Identifier
from lsemrl.identification.fasttext import FastTextIdentifier
from lsemrl.identification.ngrams import ABOUT, WEIGHTS, load
from lsemrl.reading import user_path

_PRETRAINED = (".bin", ".ftz")


def read_identifier(path: str, language: str, same: Callable[[str, str], bool] = operator.eq) -> Identifier:
    """What tells `language`, read once.

    Args:
        path: A folder of `lsemrl fit-language`, or a model of fastText.
        language: The code of a language.
        same: Whether two codes are of one language.

    Raises:
        UserError: It is neither, cannot be read, or tells another language.
    """
    place, named = user_path(path), f"language.identifier is {path!r}, which"
    if place.suffix in _PRETRAINED:
        return _pretrained(place, language)
    if not (place / ABOUT).is_file():
        raise UserError(
            f"{named} holds no {ABOUT}; name a folder that lsemrl fit-language wrote, or a model of fastText "
            f"({', '.join(_PRETRAINED)})"
        )
    files = [place / name for name in (ABOUT, WEIGHTS) if (place / name).exists()]
    found = _fitted(place, tuple(os.stat(file).st_mtime_ns for file in files))
    if not (found.language == language or same(found.language, language)):
        raise UserError(f"{named} tells {found.language!r} and not {language!r}; fit one with --to {language}")
    return found


@functools.lru_cache(maxsize=8)
def _fitted(folder: Path, written: tuple[int, ...]) -> Identifier:
    return load(folder)


@functools.lru_cache(maxsize=2)
def _pretrained(path: Path, language: str) -> Identifier:
    return FastTextIdentifier(path, language)
