"""What leaves this machine names files and folders, and does not say where they lay."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_WORDING = ("template", "system")
"""Fields whose text is what a policy is asked, whatever it begins with."""


def is_local(text: str) -> bool:
    """Whether `text` is a path of this machine: absolute, of a home, or of something that is there."""
    if "\n" in text or not text.strip():
        return False
    if text.startswith(("~", "./", "../", "file://")) or PurePosixPath(text).is_absolute():
        return True
    try:
        return PureWindowsPath(text).is_absolute() or ("/" in text and Path(text).exists())
    except (OSError, ValueError):  # too long for a name, or none at all
        return False


def name_only(text: str) -> str:
    """The last part of a path of this machine; any other text as it is."""
    if not is_local(text):
        return text
    return (PureWindowsPath(text) if PureWindowsPath(text).is_absolute() else PurePosixPath(text)).name or "folder"


def names_only(settings: Any) -> Any:
    """`settings`, nested as YAML is, with paths of this machine as names."""
    if isinstance(settings, dict):
        return {
            key: value if key in _WORDING and isinstance(value, str) else names_only(value)
            for key, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [names_only(value) for value in settings]
    return name_only(settings) if isinstance(settings, str) else settings
