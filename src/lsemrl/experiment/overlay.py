"""Another world for an experiment: other models, files and lengths in the same stages."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from lsemrl.errors import UserError

FIELDS = (
    "config_version", "description", "output", "seeds", "seconds", "configs", "overrides", "stages", "reports",
)  # fmt: skip
_MAPPINGS = ("configs", "overrides", "stages", "reports")


def overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An experiment's file with an overlay put over it.

    Args:
        content: The experiment's.
        overlay: `configs` names what is read in place of a configuration; `overrides`, by verb, and then `stages`, by
            patterns of their names, go over each stage's own overrides; `reports`, by patterns of their names, over a
            report's fields; description, output, seeds and seconds take the place of the experiment's.
        where: The overlay's file.

    Raises:
        UserError: The overlay has another field, or one of another kind.
    """
    for field in overlay:
        if field not in FIELDS:
            raise UserError(f"{where} has the field {field!r}; an overlay's are {', '.join(FIELDS)}")
    parts = {field: overlay.get(field) or {} for field in _MAPPINGS}
    for field, value in parts.items():
        inner = value.values() if isinstance(value, dict) and field != "configs" else ()
        if not isinstance(value, dict) or not all(isinstance(each, dict) for each in inner):
            raise UserError(f"{field} in {where} is {value!r}; write `name: value` lines")
    result = copy.deepcopy(dict(content))
    result |= {name: overlay[name] for name in ("description", "output", "seeds", "seconds") if name in overlay}
    common = content.get("overrides") or {}
    for stage in result.get("stages") or ():
        if not isinstance(stage, dict):
            continue  # told when stages are read
        if isinstance(stage.get("configs"), list):
            stage["configs"] = [parts["configs"].get(name, name) for name in stage["configs"]]
        if isinstance(stage.get("overrides", {}), dict):
            verb, name = stage.get("verb"), str(stage.get("name"))
            # All that the file says comes first: a later override may be of a part of an earlier one.
            stage["overrides"] = {**(common.get(verb) or {}), **(stage.get("overrides") or {})}
            for fields in (parts["overrides"].get(verb, {}), *_fitting(parts["stages"], name)):
                stage["overrides"] |= fields
    for name, report in (result.get("reports") or {}).items():
        for fields in _fitting(parts["reports"], name):
            report |= fields
    return result


def _fitting(by_pattern: Mapping[str, Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    return (fields for pattern, fields in by_pattern.items() if fnmatch(name, pattern))
