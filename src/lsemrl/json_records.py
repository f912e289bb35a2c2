"""Records as JSON: a frozen dataclass written whole, and made again by the kinds that its fields are annotated with."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lsemrl.errors import UserError
from lsemrl.files import write_text
from lsemrl.reading import read_json

Record = TypeVar("Record")

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What a file of somebody's raises that is not what it should be."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN and infinities, which it has no numbers for, become strings.

    Raises:
        UserError: It cannot be written.
    """
    write_text(path, json.dumps(_writable(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_record(kind: type[Record], path: Path, version: int, remedy: str) -> Record:
    """Read what `write_json` wrote of a dataclass.

    Args:
        kind: A dataclass with a field `version`.
        path: The file.
        version: The latest that can be read.
        remedy: What to do where the file holds something else.

    Raises:
        UserError: There is no such file, it holds something else, or its version is a later one.
    """
    try:
        data = read_json(path)
        if int(data["version"]) <= version:
            made: Record = _made(data, kind, path.stem)
            return made
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error
    raise UserError(f"{path} is of version {data['version']}, this lsemrl reads up to {version}: update lsemrl")


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _writable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(each) for each in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _made(value: Any, hint: Any, name: str) -> Any:
    """`value` as `hint` has it; numbers without a fraction may stand for others.

    Raises:
        TypeError: It is of another kind.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        return hint(**{key: _made(each, hints.get(key), f"{name}.{key}") for key, each in value.items()})  # type: ignore[operator]
    if origin is UnionType:
        if type(value) in inner or (type(value) is int and float in inner):  # which stays as it was written
            return value
        kinds = (each for each in inner if each is float or dataclasses.is_dataclass(each))
        return _made(value, next(kinds, None), name)
    if origin is tuple and isinstance(value, list):
        return tuple(_made(each, inner[0], name) for each in value)
    if origin is dict and isinstance(value, dict):
        return {key: _made(each, inner[1], f"{name}.{key}") for key, each in value.items()}
    if hint is float and (type(value) in (int, float) or value in ("nan", "inf", "-inf")):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise TypeError(f"{name} is {str(value)[:60]!r}")
