"""What jsonargparse reads of a class's source and docstrings is read once a process, not for every line that is typed.

One command asks for a class once, so that this saves nothing there; here it is a tenth of each.
"""

from __future__ import annotations

import functools
from typing import Any

from jsonargparse import _signatures

_read = functools.cache(_signatures.get_signature_parameters)


def _copied(of: Any, method: str | None = None, logger: Any = None) -> list[Any]:
    return [*_read(of, method)]


def read_once() -> None:
    """From now on, in this process and its forks."""
    setattr(_signatures, "get_signature_parameters", _copied)  # noqa: B010
