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
    for name, value in _fields_of_classes(content):
        if not isinstance(value, dict):
            shown = "null" if value is None else repr(value)[:100]
            raise UserError(f"{name} in {path} is {shown}; write `field: value` lines below it, or leave it out")
    return content


def _fields_of_classes(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in `init_args`, with the path that leads to it."""
    named = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in named:
        path = f"{name}.{key}" if name else str(key)
        if key == "init_args":
            yield path, value
        yield from _fields_of_classes(value, path)


def prepare_configs(words: list[str]) -> list[str]:
    """Make ready for a parser of jsonargparse: the words for it, in which --print_config has its comments.

    Files come before fields, so that what is typed overrides what they say wherever it stands. What the parser would
    only report at length is refused. A `class_path` may name a module of the user's, which is looked for in the working
    directory and beside each configuration, behind what is installed.

    Raises:
        UserError: A file after --config is one that `read_config` refuses.
    """
    from jsonargparse import set_parsing_settings

    files, others = _apart(words)
    for path in files:
        read_config(path)
    for folder in (Path.cwd(), *(user_path(path).parent.resolve() for path in files)):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    take_text_as_typed()
    others = ["--print_config=comments" if word == "--print_config" else word for word in others]
    verb = 1 if others and not others[0].startswith("-") else 0
    return [*others[:verb], *(f"--config={path}" for path in files), *others[verb:]]


def config_path(name: str | Path) -> str:
    """The user's file of that name, else the shipped one, with or without its folder `configs`."""
    parts = Path(name).parts
    shipped = CONFIGS.joinpath(*parts[parts[:1] == ("configs",) :])
    return str(name) if user_path(name).exists() or not shipped.is_file() else str(shipped)


def _apart(words: list[str]) -> tuple[list[str], list[str]]:
    """The files after --config, and the other words."""
    files, others, rest = [], [], iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c") and (equals or (value := next(rest, ""))):
            files.append(config_path(value))
        else:
            others.append(word)
    return files, others
