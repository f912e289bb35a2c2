"""The files of a project, from their templates."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml

_PLAIN = re.compile(r"[^\W\d][\w./ -]*|/[\w./-]+")


def rendered(name: str, shown: dict[str, Any]) -> str:
    """The file `name` of a project, with what its template calls `p`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "project"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": _as_yaml, "shell": shlex.quote}
    return environment.get_template(f"{name}.jinja").render(p=shown)


def _as_yaml(value: Any) -> str:
    """On one line, quoted where YAML would read something else, also within a list or mapping."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value  # which on others may raise
        return value if plain else json.dumps(value, ensure_ascii=False)
    # In a list, for behind null or a number by itself there is a line that ends the document.
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000)
    return text.strip()[1:-1]
