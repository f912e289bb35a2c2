"""The files of a project, from their templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import yaml


def rendered(name: str, shown: dict[str, Any]) -> str:
    """The file `name` of a project, with what its template calls `p`."""
    return _template(f"{name}.jinja").render(p=shown)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "project"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = _as_yaml
    return environment.get_template(name)


def _as_yaml(value: Any) -> str:
    """On one line, quoted where YAML would read something else, also within a list or mapping."""
    if isinstance(value, str):
        plain = yaml.safe_load(value) == value and not set(value) & set("{}[],:#&*!|>'\"%@`")
        return value if plain else json.dumps(value, ensure_ascii=False)
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
    return text.strip()
