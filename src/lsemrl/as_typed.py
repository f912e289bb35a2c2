"""The text of a setting is taken as it was typed, and its name too.

jsonargparse reads the value of an option of a class as YAML, and hands it on as Python prints what came of that: a text
with a colon becomes a dictionary and then its repr, and null the text "None". It has no setting for this, so that the
one method through which every value goes is wrapped. Of a field that is an int or a float it takes what Python lists
first, and Python lists a union as the library had it that was imported first: a whole number may come as a float, and
1.0 of the batches is all of them. It also takes the beginning of a name for the whole of it,
as argparse does and its next version no longer will; a name that is unknown is told with the nearest one instead.

Of a mistake in a union it hands on what the first member said, which may be no more than that no text was given; and
what stands in place of the fields of a group it takes for a module, for YAML, or for them. Both are told as they are.
Of a dictionary of groups it keeps but the last field that is given by itself; here each joins those before it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import yaml

if TYPE_CHECKING:
    from jsonargparse._util import NestedArg

_UNKNOWN = re.compile(
    r"unrecognized arguments: --([\w.-]+)|Option '([\w.]+)' is not accepted|"
    r"Group '([\w.]+)' does not accept option '(\w+)'"
)
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NULL = ("null", "Null", "NULL")
"""YAML's, without ~, which is home to whoever types it."""
_VALUES = {str, bool, int, float, list, dict, tuple, Path, Any}
"""Types that are no group of fields."""
_SHOWN = 100
_LARGEST = 1_000_000
"""Bytes of a file of fields; YAML reads a text for as long as it is."""
_FEW = 8
"""Fields that are listed where none is like what was given."""


class _Typed(str):
    """Marks text that is not to be read before the field that it is meant for is known."""


class NotFields(TypeError):
    """Something else in place of the fields of a group: a text, a file of anything but fields, a list.

    Attributes:
        text: What was given, as it is shown.
        several: Whether that is a list.
        field: The first of the group that are settings; "FIELD" of a class, where that depends.
        example: A value for it.
    """

    def __init__(self, name: str, value: Any, group: type) -> None:
        shown = "null" if value is None else repr(value)
        self.text = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} …"
        self.several = isinstance(value, list) or str(value).startswith("[")
        self.field, self.example = "FIELD", "VALUE"
        if is_dataclass(group):
            self.field = next(iter(inspect.signature(group).parameters))
            taken = (
                value is not None
                and not self.several
                and len(str(value)) <= _SHOWN
                and str in kinds(get_type_hints(group)[self.field])
            )
            self.example = shlex.quote(str(value)) if taken else self.example
        super().__init__(f'Parser key "{name}": {self.text} is no group of fields')


@functools.cache  # once a process
def take_text_as_typed() -> None:
    """Make every parser of jsonargparse do so."""
    _take_names_whole()
    _take_whole_numbers()
    _tell_what_a_union_refused()
    _refuse_what_is_no_fields()
    _take_values()


def _take_values() -> None:
    from jsonargparse import Namespace
    from jsonargparse._typehints import ActionTypeHint
    from jsonargparse._util import NestedArg

    check = ActionTypeHint._check_type

    @functools.wraps(check)
    def check_typed(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        own = kinds(self._typehint)
        if isinstance(value, _Typed):
            value = str(value)
        if isinstance(value, NestedArg) and type(value.val) is str:
            before = cfg and cfg.get(self.dest)  # a word, or a list, where a class may stand too
            value = _joined(self.dest, value, dict(before) if isinstance(before, (Mapping, Namespace)) else {}, own)
        elif type(value) is str and own & {str, Path} and own <= {str, Path, NoneType}:
            if value not in _NULL:
                return value if str in own else Path(value)
            if NoneType not in own:  # as in a file
                raise TypeError(f'Parser key "{self.dest}": Expected a str. Got value: None')
            return None
        try:
            found = check(self, value, append=append, cfg=cfg, mode=mode)
            _check_names(self.dest, found, own)
            groups = [kind for kind in own if inspect.isclass(kind) and is_dataclass(kind)]
            meant = type(found) is str and not all(_is_no_fields(found, group) for group in groups)
            # What fits no group is a text to the union that has one beside it; as fields, the group says what it takes.
            return check(self, yaml.safe_load(found), append=append, cfg=cfg, mode=mode) if meant else found
        except (TypeError, ValueError) as error:
            if stands := _instead_of_fields(self.dest, value, own):
                raise stands from error
            raise

    setattr(ActionTypeHint, "_check_type", check_typed)  # noqa: B010


def _joined(dest: str, given: NestedArg, before: dict[str, Any], own: set[Any]) -> Any:
    """One field of a dictionary, with those that it has already; of anything else the field as it was given.

    Args:
        dest: What the dictionary is called.
        given: The field, whose value is a text.
        before: What the dictionary holds so far.
        own: The types of the setting.
    """
    name, _, field = given.key.partition(".")
    if each := next(filter(is_dataclass, map(_of_each, own)), None):
        return {**before, name: _fields_of_one(field, given.val, before.get(name, {}), each)}
    if field and any(map(inspect.isclass, {*map(_of_each, own)} - _VALUES)):
        if field == "class_path" and not before:  # all of the key is taken for the name then
            return {name: {field: given.val}}
        if field != "class_path":
            _check_known(dest, name, before)
        return given
    if any(str in kinds(_of_each(kind)) for kind in own):
        return {**before, given.key: given.val}
    # The name of a class is meant for no field.
    if given.key.rpartition(".")[2] == "class_path" or any(map(_holds_several, own)):
        return given
    return given._replace(val=_Typed(given.val))


def _instead_of_fields(dest: str, value: Any, own: set[Any]) -> NotFields | None:
    """What stands in place of the fields of a group, or of one in a dictionary of groups; None if nothing does."""
    from jsonargparse._util import NestedArg

    (group, *others) = own - {NoneType}
    given = {dest: value}
    if inspect.isclass(each := _of_each(group)):
        named = {value.key: value.val} if isinstance(value, NestedArg) else _mapping(value)
        group, given = each, {f"{dest}.{name}": one for name, one in named.items()}
    of_fields = not others and inspect.isclass(group) and group not in _VALUES
    for name, one in given.items() if of_fields else ():
        if (one is None and group is each) or _is_no_fields(one, group):
            return NotFields(name, one, group)
    return None


def _holds_several(kind: Any) -> bool:
    """Whether a type is a dictionary, a list or a tuple."""
    origin = get_origin(kind)
    return inspect.isclass(origin) and issubclass(origin, (Mapping, list, tuple))


def _of_each(kind: Any) -> Any:
    """The type of the values, where a type is a dictionary."""
    return get_args(kind)[1] if get_origin(kind) is dict else None


def _fields_of_one(field: str, text: str, before: Mapping[str, Any], group: Any) -> Any:
    """One group of a dictionary of them: a field of it with those that it has already, or all it is."""
    if field:
        return {**dict(before.get("init_args", before)), field: text}
    if _is_no_fields(text, group):
        return text
    return _mapping(Path(text).read_bytes() if os.path.isfile(text) else text)


def _check_known(dest: str, name: str, known: Mapping[str, Any]) -> None:
    """Refuse a field of what a dictionary has not, as no class is known for it."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        there = f"the nearest is {near[0]}" if near else f"there are {', '.join(known) or 'none'}"
        raise TypeError(f'Parser key "{dest}": {name} has no class yet, and so no fields ({there})')


def _check_names(dest: str, found: Any, own: set[Any]) -> None:
    """Refuse a name in a dictionary that YAML took for something else: no is Norwegian, and False."""
    for name in found if isinstance(found, dict) and any(get_origin(kind) is dict for kind in own) else ():
        if type(name) is not str:
            raise TypeError(f'Parser key "{dest}": Expected a str as a name. Got value: {name!r}')


def _mapping(value: Any) -> dict[str, Any]:
    """What is, or as YAML says, a dictionary; of anything else an empty one."""
    try:
        found = yaml.safe_load(value) if isinstance(value, (str, bytes)) else value
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _tell_what_a_union_refused() -> None:
    from jsonargparse import _typehints

    refuse = _typehints.raise_union_unexpected_value

    def refuse_telling(subtypes: Any, val: Any, exceptions: list[Exception]) -> None:
        refuse(subtypes, val, sorted(exceptions, key=_is_of_another_type))

    setattr(_typehints, "raise_union_unexpected_value", refuse_telling)  # noqa: B010


def _is_of_another_type(error: BaseException | None) -> bool:
    """Whether the parser alone speaks: a value is no such type."""
    while error is not None:
        if type(error) not in (TypeError, ValueError):
            return False
        error = error.__cause__ or error.__context__
    return True


def _refuse_what_is_no_fields() -> None:
    from jsonargparse import ArgumentParser
    from jsonargparse._actions import _ActionConfigLoad
    from jsonargparse._typehints import ActionTypeHint

    load, check = _ActionConfigLoad._load_config, ArgumentParser._check_value_key

    @functools.wraps(load)
    def load_fields(self: Any, value: Any, parser: Any) -> Any:
        value = str(value) if isinstance(value, _Typed) else value
        if _is_no_fields(value, self.basetype):
            raise NotFields(self.dest, value, self.basetype)
        return load(self, value, parser)

    @functools.wraps(check)
    def check_fields(self: Any, action: Any, value: Any, *args: Any, **settings: Any) -> Any:
        group = isinstance(action, _ActionConfigLoad) and not isinstance(value, str)  # those are loaded
        if group and (value is None or _is_no_fields(value, action.basetype)):
            raise NotFields(action.dest, value, action.basetype)
        if value is None and isinstance(action, ActionTypeHint) and action.default is not None:
            action._check_type_(None)  # of a file it is let pass, whatever the type
        return check(self, action, value, *args, **settings)

    setattr(_ActionConfigLoad, "_load_config", load_fields)  # noqa: B010
    setattr(ArgumentParser, "_check_value_key", check_fields)  # noqa: B010


def _is_no_fields(value: Any, group: type) -> bool:
    """Whether a value can be neither the fields of a group, nor a file of them, nor a class that stands for them."""
    if not isinstance(value, str):
        return isinstance(value, (list, int, float))
    written = os.path.isfile(value)
    if written and os.path.getsize(value) > _LARGEST:
        return True
    if not written and not is_dataclass(group):
        from jsonargparse._typehints import resolve_class_path_by_name

        parts = str(resolve_class_path_by_name(group, value)).split(".")
        if len(parts) > 1 and all(part.isidentifier() for part in parts):
            return False
    try:
        found = yaml.safe_load(Path(value).read_bytes() if written else value)
    except (yaml.YAMLError, ValueError, RecursionError, OSError):
        return True
    # A text with a colon is a mapping too.
    meant = written or value.lstrip().startswith("{") or not is_dataclass(group)
    return not isinstance(found, dict) or not (meant or {*found} & {*inspect.signature(group).parameters})


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
            fields = [name for name in known if name not in ("-h", "help") and not name.endswith(".help")]
            listed = f" (there are {', '.join(fields)})" if unknown[2] and 0 < len(fields) <= _FEW else ""
            message += f" (the nearest is {near[0]})" if near else listed
        return error(self, message, *args, **settings)

    setattr(ArgumentParser, "__init__", make_whole)  # noqa: B010
    setattr(ArgumentParser, "error", error_with_nearest)  # noqa: B010


def kinds(hint: Any) -> set[Any]:
    """The members of a union, or the one type that `hint` is."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
