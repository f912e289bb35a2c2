"""Configuration files: where the shipped ones lie, which of the user's can be read, and whose classes they may name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsemrl import __version__
from lsemrl.as_typed import take_text_as_typed
from lsemrl.errors import UserError
from lsemrl.reading import Unreadable, check_file, read_yaml, user_path

CONFIGS = next(
    folder for folder in (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs") if folder.is_dir()
)
"""The shipped configurations: inside an installed package, or beside src/ in a checkout."""
CONFIG_VERSION = 1
"""Raised when a configuration of an older version would be misread."""


def read_config(path: str | Path, field: str = "--config") -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
        path: The file.
        field: Where the user named it.

    Raises:
        UserError: It cannot be read, holds no fields, or is of a later version.
    """
    try:
        check_file(path)
    except Unreadable as reason:
        raise UserError(f"{field} is {str(path)!r}, which cannot be read ({reason}); name a YAML file") from reason
    try:
        content = read_yaml(path)
    except Unreadable as reason:
        raise UserError(f"{field} is {str(path)!r}, which is not YAML in UTF-8 ({reason}); mend the file") from reason
    if not isinstance(content, dict):
        raise UserError(f"{field} is {str(path)!r}, which holds no fields; write `field: value` lines")
    version = content.get("config_version", CONFIG_VERSION)
    if not isinstance(version, int) or not 1 <= version <= CONFIG_VERSION:
        raise UserError(
            f"config_version in {path} is {version!r}, but this lsemrl ({__version__}) reads up to {CONFIG_VERSION}; "
            "upgrade lsemrl, or rewrite the file"
        )
    return content


def prepare_configs(words: list[str]) -> list[str]:
    """Make ready for a parser of jsonargparse: the words for it, in which --print_config has its comments.

    What it would only report at length is refused. A `class_path` may name a module of the user's, which is looked for
    in the working directory and beside each configuration, behind what is installed.

    Raises:
        UserError: A file after --config is one that `read_config` refuses.
    """
    from jsonargparse import set_parsing_settings

    for path in _named(words):
        read_config(path)
    for folder in (Path.cwd(), *(user_path(path).parent.resolve() for path in _named(words))):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    take_text_as_typed()
    return ["--print_config=comments" if word == "--print_config" else word for word in words]


def _named(words: list[str]) -> Iterator[str]:
    for at, word in enumerate(words):
        if word in ("--config", "-c") and at + 1 < len(words):
            yield words[at + 1]
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")
