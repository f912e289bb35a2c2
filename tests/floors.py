"""The floors of the house, and which room imports which, read from the text of every module."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

FLOORS = (
    ("cli",),
    ("commands",),
    ("report",),
    ("evaluation",),
    ("modules",),
    ("metrics",),
    ("data", "rewards", "judging", "experiment"),
    ("types", "languages", "runs", "configs"),
    ("kernels", "micro"),
    ("errors", "files", "reading", "foreign", "canonical", "finite", "as_typed", "local_paths", "json_records"),
)
"""From the top; rooms on one floor know nothing of each other, but for types and the like, which are single files."""
LEVEL = {f"lsemrl.{room}": level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported(name: str) -> set[str]:
    """Every module that `name` imports anywhere in its text, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(name: str) -> set[str]:
    """The modules of this package among them; a package only where it is itself what is imported."""
    found = {module for module in imported(name) if module in FILES}
    return {module for module in found if not any(other.startswith(f"{module}.") for other in found)} - {name}


def room(name: str) -> str:
    """The folder under lsemrl/ that holds a module, or the module itself where it lies beside the folders."""
    return ".".join(name.split(".")[:2])
