"""Another world for an experiment: other models, files and lengths in the same stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from lsemrl.errors import UserError
from lsemrl.experiment.plan import VERBS

FIELDS = (
    "config_version", "description", "output", "seeds", "seconds", "configs", "overrides", "stages", "reports",
)  # fmt: skip
_MAPPINGS = ("configs", "overrides", "stages", "reports")


def overlaid(
    content: Mapping[str, Any], overlay: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """An experiment's file with an overlay put over it, and what of the overlay fits nothing there.

    Args:
        content: The experiment's.
        overlay: `configs` names what is read in place of a configuration; `overrides`, by verb, and then `stages`, by
            patterns of their names, go over each stage's own overrides; `reports`, by patterns of their names, over a
            report's fields; description, output, seeds and seconds take the place of the experiment's.
        where: The overlay's file.

    Raises:
        UserError: The overlay has another field, or one of another kind, or overrides what is no verb.
    """
    for field in overlay:
        if field not in FIELDS:
            raise UserError(f"{where} has the field {field!r}; an overlay's are {', '.join(FIELDS)}")
    parts = {field: overlay.get(field) or {} for field in _MAPPINGS}
    for field, value in parts.items():
        inner = value.values() if isinstance(value, dict) and field != "configs" else ()
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in inner):
            raise UserError(f"{field} in {where} is {value!r}; write `name: value` lines")
    for verb in parts["overrides"]:
        if verb not in VERBS:
            raise UserError(f"overrides in {where}: verb is {verb!r}; choose one of {', '.join(VERBS)}")
    unused = {f"{field}.{name}": None for field, value in parts.items() for name in value}
    result = copy.deepcopy(dict(content))
    result |= {name: overlay[name] for name in ("description", "output", "seeds", "seconds") if name in overlay}
    common = content.get("overrides") or {}

    def fitting(field: str, name: Any) -> Iterator[Any]:
        for pattern, value in parts[field].items():
            if pattern == name or (field in ("stages", "reports") and fnmatch(str(name), pattern)):
                unused.pop(f"{field}.{pattern}", None)
                yield value

    for stage in result.get("stages") or ():
        if not isinstance(stage, dict):
            continue  # told when stages are read
        if isinstance(stage.get("configs"), list):
            stage["configs"] = [next(fitting("configs", name), name) for name in stage["configs"]]
        if isinstance(stage.get("overrides", {}), dict):
            verb, name = stage.get("verb"), stage.get("name")
            stage["overrides"] = over(
                common.get(verb) or {},
                stage.get("overrides") or {},
                *fitting("overrides", verb),
                *fitting("stages", name),
            )
    for name, report in (result.get("reports") or {}).items():
        for fields in fitting("reports", name):
            report |= fields
    return result, tuple(unused)


def over(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in the order of the layers: on a command line the later one wins, also over a part of another."""
    result: dict[str, Any] = {}
    for field, value in (each for layer in layers for each in layer.items()):
        result.pop(field, None)
        result[field] = value
    return result
