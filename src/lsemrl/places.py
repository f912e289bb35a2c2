"""What of a configuration says where a run is at work and what it reads lies, not what it does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

_PLACES = {
    "": ("config", "checkpoints"),
    "sampling": ("server", "server_timeout"),
    "trainer": ("accelerator", "default_root_dir", "devices", "num_nodes", "strategy", "enable_progress_bar", "logger"),
}
"""Fields by what they are of, that say where a run is at work, not what it does."""
_READ = ("adapter", "encoder", "identifier", "model", "path", "target_path")
"""Fields of what a run reads, which may be typed in several ways."""
_OWN = ("columns", "rewards")
"""Fields whose keys are the user's own, and no fields that an upgrade could bring or take."""


def without_places(value: Any, field: str = "") -> Any:
    """A configuration without what says where a run is at work, not what it does.

    Args:
        value: As YAML is.
        field: Which of a configuration it is; "" for the whole.
    """
    if isinstance(value, Mapping):
        places = _PLACES.get(field, ())
        return {name: without_places(inner, name) for name, inner in value.items() if name not in places}
    return [without_places(inner, field) for inner in value] if isinstance(value, list) else value


def wherever(config: Mapping[str, Any], root: str) -> Any:
    """A configuration that is the same wherever a run is at work, however what it reads is typed.

    Args:
        config: As YAML is.
        root: Where the run is, with links resolved; where all of it moves, what is read moves along.
    """
    return _seen(without_places(config), root)


def first_change(before: Mapping[str, Any], now: Mapping[str, Any], field: str = "") -> tuple[str, Any, Any] | None:
    """The first field, with both values, by which two configurations do another thing, whatever they read lies where.

    It is named as a command line has it.

    Args:
        before: As YAML is.
        now: Likewise. A field that one of them alone knows, as after an upgrade, is left out.
        field: Which of a configuration they are; "" for the whole.
    """
    own = field in _OWN
    for name, one in {**(dict.fromkeys(now) if own else {}), **without_places(before, field)}.items():
        if not own and name not in now:
            continue
        other = now.get(name)
        if not own and name in _READ and isinstance(one, str) and isinstance(other, str):
            continue
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            one, other = ({str(at): inner for at, inner in enumerate(each)} for each in (one, other))
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            if one != other:
                return name, one, other
        elif found := first_change(one, other, name):
            return (found[0] if name == "init_args" else f"{name}.{found[0]}", *found[1:])
    return None


def _seen(value: Any, root: str, field: str = "") -> Any:
    """`value` with ways from `root` to what is read."""
    if isinstance(value, Mapping):
        return {name: _seen(inner, root, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_seen(inner, root, field) for inner in value]
    there = field in _READ and isinstance(value, str) and os.path.exists(value)
    return os.path.relpath(os.path.realpath(value), root) if there else value
