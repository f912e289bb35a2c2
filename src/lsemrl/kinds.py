"""Whether a record that was made from somebody's JSON holds what it says it holds."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def check_kinds(record: Any) -> None:
    """Look at every field of a dataclass, and of those within it.

    Raises:
        TypeError: One is of another kind than it is annotated with; numbers without a fraction may stand for others.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _holds(value, hint):
            raise TypeError(f"{name} is {str(value)[:60]!r}")


def _holds(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_holds(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_holds(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_holds(each, inner[1]) for each in value.values())
    if dataclasses.is_dataclass(hint):
        check_kinds(value)
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
