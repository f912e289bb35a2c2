"""The floors of the house, read from what every module imports; run it to draw them again.

python tests/floors.py
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
FILES = {
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "src").rglob("*.py"))
}
FLOORS = (
    ("cli",),
    ("commands",),
    ("report",),
    ("evaluation",),
    ("modules",),
    ("metrics",),
    ("data", "rewards", "judging", "experiment"),
    ("layouts", "contents"),
    ("types", "languages", "runs", "config_files", "json_records", "unfinished"),
    ("identification", "kernels", "micro"),
    ("scripts", "locks"),
    (
        "files",
        "reading",
        "foreign",
        "canonical",
        "finite",
        "model_names",
        "as_typed",
        "local_paths",
        "places",
        "durations",
        "matmul",
        "devices",
    ),
    ("errors",),
)
"""From the top: folders, and single modules that lie beside them."""
LEVELS = {f"lsemrl.{name}": level for level, names in enumerate(FLOORS) for name in names}
_BESIDE = {"lsemrl", "lsemrl.__main__"}
"""The version, which all may ask for, and the door."""


@functools.cache
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
    """The modules of this package that `name` imports; a folder's own only where nothing below it is meant."""
    found = imported(name) & FILES.keys() - _BESIDE - {name}
    return {module for module in found if not any(other.startswith(f"{module}.") for other in found)}


def room(name: str) -> str:
    """The folder or single module of `FLOORS` that a module is in."""
    return ".".join(name.split(".")[:2])


def is_folder(room: str) -> bool:
    """Whether a room is a folder, which knows nothing of others on its floor; single modules may."""
    return FILES[room].name == "__init__.py"


def drawn() -> str:
    """The floors as SVG: a line for whatever one room imports of another, strong where that is the next floor."""
    width, height, step, margin, space = 1080, 40, 84, 20, 10
    boxes, centres = [], {}
    for level, names in enumerate(FLOORS):
        each, y = (width - 2 * margin + space) / len(names) - space, margin + level * step
        for at, name in enumerate(names):
            x = margin + at * (each + space)
            kind = "folder" if is_folder(f"lsemrl.{name}") else "file"
            centres[f"lsemrl.{name}"] = (x + each / 2, y)
            boxes.append(f'<rect class="{kind}" x="{x:.0f}" y="{y}" width="{each:.0f}" height="{height}" rx="6"/>')
            boxes.append(f'<text x="{x + each / 2:.0f}" y="{y + height // 2 + 5}">{name}</text>')
    edges = {(room(name), room(other)) for name in FILES.keys() - _BESIDE for other in own(name)}
    lines = []
    for above, below in sorted(edges):
        if LEVELS[above] < LEVELS[below]:
            (x1, y1), (x2, y2) = centres[above], centres[below]
            kind = "near" if LEVELS[below] == LEVELS[above] + 1 else "far"
            curve = (
                f"M{x1:.0f},{y1 + height} C{x1:.0f},{y1 + height + step // 2} {x2:.0f},{y2 - step // 2} {x2:.0f},{y2}"
            )
            lines.append(f'<path class="{kind}" d="{curve}"/>')
    style = (
        "rect{stroke:#345;stroke-width:1}.folder{fill:#dfe9f5}.file{fill:#f4f1e6}path{fill:none}"
        "text{font-family:sans-serif;font-size:15px;text-anchor:middle;fill:#123}"
        ".near{stroke:#357;stroke-width:1.6}.far{stroke:#9ab;stroke-width:.7}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * margin + len(FLOORS) * step}">',
        "<title>Which room of lsemrl imports which: only downwards</title>",
        f"<style>{style}</style>",
        f'<rect width="{width}" height="{2 * margin + len(FLOORS) * step}" style="fill:#fff;stroke:none"/>',
    )
    return "\n".join([*head, *lines, *boxes, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
