"""Words as people type them, made into those that jsonargparse reads, by the types of the settings alone."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from lsemrl.as_typed import kinds
from lsemrl.errors import UserError

_ALONE = ("help", "print_config")
"""Options of jsonargparse's own that nothing follows."""


def spelled_out(words: Sequence[str], hints: Mapping[str, Any], placed: str = "") -> list[str]:
    """One word for every option, with its value.

    `--batch-size 8` has an underscore, `--from zh` one behind it, `--sample` is true, as is `--sample true`, `--seeds 1
    2` is a list and `--path a b --path c d` a list of lists; words by their place are one list, where a list is meant.
    Lists are written as JSON. Of a list in brackets and one in words the later counts.

    Args:
        words: As they were typed.
        hints: The types of the options, by name; of others, nothing but the value is taken.
        placed: The one among them that is given by its place.

    Raises:
        UserError: A file or folder is given twice, of which one would do nothing.
    """
    spelled: list[str] = []
    paths: dict[str, str] = {}
    lists: dict[str, list[Any]] = {}
    rest = deque(words)
    while rest:
        word = rest.popleft()
        by_name = word.startswith("--")
        name, equals, value = word[2:].partition("=") if by_name else (placed, "=", word)
        under = name.replace("-", "_")
        name = next((own for own in (under, f"{under}_") if own in hints), name)  # from is none of Python's names
        values, flag, item = [value] if equals else [], hints.get(name) is bool, item_of(hints.get(name))
        said = bool(rest) and rest[0] in ("true", "false")
        most = 0 if equals or name in _ALONE else int(said) if flag else len(rest) if item else 1
        while rest and len(values) < most and not rest[0].startswith("--"):
            values.append(rest.popleft())
        if item and not (by_name and len(values) == 1 and values[0].startswith("[")):  # that is a list already
            lists.setdefault(name, []).extend([values] if get_origin(item) is list else values)
        elif by_name:
            lists.pop(name, None)  # a whole list stands in place of what came before it
            if Path in kinds(hints.get(name)):
                if name in paths:
                    raise UserError(f"--{name} is given twice ({paths[name]}, {''.join(values)}); give it once")
                paths[name] = "".join(values)
            spelled.append("=".join([f"--{name}", *(values or ["true"] * flag)]))
        else:
            spelled.append(word)
    return spelled + [("" if name == placed else f"--{name}=") + json.dumps(found) for name, found in lists.items()]


def item_of(hint: Any) -> Any:
    """The type of what a list holds; None for the type of no list."""
    return next((get_args(kind)[0] for kind in kinds(hint) if get_origin(kind) is list), None)
