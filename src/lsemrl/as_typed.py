"""The text of a setting is taken as it was typed, and its name too.

jsonargparse reads the value of an option of a class as YAML, and hands it on as Python prints what came of that: a text
with a colon becomes a dictionary and then its repr, and null the text "None". It has no setting for this, so that the
one method through which every value goes is wrapped. Of a field that is an int or a float it takes what Python lists
first, and Python lists a union as the library had it that was imported first: a whole number may come as a float, and
1.0 of the batches is all of them. It also takes the beginning of a name for the whole of it,
as argparse does and its next version no longer will; a name that is unknown is told with the nearest one instead.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_UNKNOWN = re.compile(
    r"unrecognized arguments: --([\w.-]+)|Option '([\w.]+)' is not accepted|"
    r"Group '([\w.]+)' does not accept option '(\w+)'"
)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NULL = ("null", "Null", "NULL", "~")


class _Typed(str):
    """Marks text that is not to be read before the field that it is meant for is known."""


@functools.cache  # once a process
def take_text_as_typed() -> None:
    """Make every parser of jsonargparse do so."""
    _take_names_whole()
    _take_whole_numbers()
    from jsonargparse._typehints import ActionTypeHint
    from jsonargparse._util import NestedArg

    check = ActionTypeHint._check_type

    @functools.wraps(check)
    def check_typed(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        own = kinds(self._typehint)
        if isinstance(value, _Typed):
            value = str(value)
        if isinstance(value, NestedArg) and type(value.val) is str:
            if any(get_origin(kind) is dict and str in kinds(get_args(kind)[1]) for kind in own):
                value = {**((cfg and cfg.get(self.dest)) or {}), value.key: value.val}
            elif not any(issubclass(get_origin(kind) or NoneType, (Mapping, list, tuple)) for kind in own):
                raw = NestedArg(key=value.key, val=_Typed(value.val))
                if "." in value.key:
                    return check(self, raw, append=append, cfg=cfg, mode=mode)
                with suppress(TypeError, ValueError):  # a group of settings is read at once: {train: 20}
                    return check(self, raw, append=append, cfg=cfg, mode=mode)
        elif type(value) is str and own & {str, Path} and own <= {str, Path, NoneType}:
            if NoneType in own and value in _NULL:
                return None
            return value if str in own else Path(value)
        return check(self, value, append=append, cfg=cfg, mode=mode)

    setattr(ActionTypeHint, "_check_type", check_typed)  # noqa: B010


def _take_whole_numbers() -> None:
    from jsonargparse import _typehints

    adapt = _typehints.adapt_typehints

    @functools.wraps(adapt)
    def adapt_whole(val: Any, typehint: Any, *args: Any, **settings: Any) -> Any:
        whole = type(val) is int or (type(val) is str and _WHOLE.fullmatch(val))
        if whole and {int, float} <= (own := kinds(typehint)) and str not in own:
            return int(val)
        return adapt(val, typehint, *args, **settings)

    setattr(_typehints, "adapt_typehints", adapt_whole)  # noqa: B010


def _take_names_whole() -> None:
    from jsonargparse import ArgumentParser

    make, error = ArgumentParser.__init__, ArgumentParser.error

    @functools.wraps(make)
    def make_whole(self: Any, *args: Any, **settings: Any) -> None:
        make(self, *args, **{"allow_abbrev": False, **settings})

    @functools.wraps(error)
    def error_with_nearest(self: Any, message: str, *args: Any, **settings: Any) -> Any:
        unknown = _UNKNOWN.search(message)
        if unknown:
            known = [name.removeprefix("--") for name in self._option_string_actions]
            near = difflib.get_close_matches(".".join(filter(None, unknown.groups())), known, n=1)
            message += f" (the nearest is {near[0]})" if near else ""
        return error(self, message, *args, **settings)

    setattr(ArgumentParser, "__init__", make_whole)  # noqa: B010
    setattr(ArgumentParser, "error", error_with_nearest)  # noqa: B010


def kinds(hint: Any) -> set[Any]:
    """The members of a union, or the one type that `hint` is."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
