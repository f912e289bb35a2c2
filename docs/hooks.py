"""What mkdocs does not do by itself: the README, which lies outside docs, as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGE = "first_day.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the README, its links as seen from docs; those that lead elsewhere are left as their words."""
    text = (Path(config.config_file_path).parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(
        r"(?<!!)\[([^\]]+)\]\((?!docs/|http)[^)]*\)", r"\1", text.replace("# lsemrl\n", "# The first day\n", 1)
    )
    files.append(File.generated(config, PAGE, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead to that page."""
    return markdown.replace("](../README.md)", f"]({PAGE})")
