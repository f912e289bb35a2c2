"""Numbers in settings: one that is infinite, or none, passes many a comparison, and does its harm late."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from lsemrl.errors import UserError


def check_finite(settings: object, name: str) -> None:
    """Refuse a dataclass of settings, called `name` by users, in which a number is not finite.

    Raises:
        UserError: The first one that is not.
    """
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}  # type: ignore[arg-type]
    check_all_finite(values, name)


def check_all_finite(values: Mapping[str, Any], name: str = "") -> None:
    """The same for fields that stand in dictionaries and lists, at any depth.

    Raises:
        UserError: The first number that is not finite, by the dotted path of its field.
    """
    for path, number in _numbers(values, name):
        if not math.isfinite(number):
            raise UserError(f"{path} is {number}; give a finite number")


def check_seed(seed: int, name: str) -> None:
    """Refuse a seed that some library would refuse, each in words of its own.

    Raises:
        UserError: It is not from 0 to 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{name} is {seed}; give a number from 0 to {2**32 - 1}")


def check_all_seeds(values: Mapping[str, Any], name: str = "") -> None:
    """The same for every seed in dictionaries, at any depth.

    Raises:
        UserError: The first that is not.
    """
    for field, inner in values.items():
        path = name if field == "init_args" else f"{name}.{field}" if name else str(field)
        if isinstance(inner, Mapping):
            check_all_seeds(inner, path)
        elif field in ("seed", "seed_everything") and isinstance(inner, int):
            check_seed(inner, path)


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            # As users write it, who leave init_args out.
            yield from _numbers(inner, path if name == "init_args" else f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, path)
