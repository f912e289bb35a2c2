"""Values of a row by the name of their column, also within others: `translation.zh`, `messages.user`.

A list of turns is told by their roles. A row is one question and its answer, so that a role which comes twice is
refused, and so is what was said before the question or between it and the answer: it would be lost. What the system
says stands before what the user asks, as in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ROLES = ("role", "from")
_SAID = ("content", "value")
_ASKING = ("user", "human")
_SYSTEM = ("system", "developer")
_DEPTH = 3


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of `column`: the one of exactly this name, else the one that its dots lead to; None if none.

    Raises:
        ValueError: Its dots lead to turns that are no single question and answer.
    """
    return row[column] if column in row else _within(row, column)


def _within(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        parts = path.split(".")
        for at in range(len(parts), 0, -1):  # names that hold dots themselves come first
            name, rest = ".".join(parts[:at]), ".".join(parts[at:])
            if name in value:
                return _within(value[name], rest) if rest else value[name]
        return None
    if _are_turns(value):
        return _said_by(value, path)
    if isinstance(value, list):
        name, _, rest = path.partition(".")
        found = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
        return _within(found, rest) if rest else found
    return None


def text_of(value: Any) -> str | None:
    """The text that a value is; of a list of accepted ones, as `records` takes it, the first; None if there is none."""
    if isinstance(value, list) and value:
        value = value[0].get("text") if isinstance(value[0], Mapping) else value[0]
    return value if isinstance(value, str) else None


def names_in(row: Mapping[str, Any]) -> list[str]:
    """Every name that `value_of` takes, down to a few levels."""
    return list(dict.fromkeys(_names(row, "", _DEPTH)))


def _names(value: Any, before: str, depth: int) -> Iterator[str]:
    if depth == 0:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{before}{name}"
            yield from _names(inner, f"{before}{name}.", depth - 1)
    elif _are_turns(value):
        yield from (f"{before}{_role(turn)}" for turn in value)


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) and _role(turn) for turn in value)


def _role(turn: Mapping[str, Any]) -> str:
    role = next((turn[key] for key in _ROLES if key in turn), None)
    return role if isinstance(role, str) else ""


def _said_by(turns: list[Mapping[str, Any]], role: str) -> Any:
    places = [at for at, turn in enumerate(turns) if _role(turn) == role]
    if len(places) > 1:
        raise ValueError(f"has {len(places)} turns of {role!r}; give a row for each question and its answer")
    if not places:
        return None
    said = _text(turns[places[0]])
    if role in _SYSTEM:
        return said
    before = [_role(turn) for turn in turns[: places[0]] if _role(turn) not in _SYSTEM]
    known = any(_role(turn) in _ASKING for turn in turns)  # roles of one's own are in an order of one's own
    lost = next((name for name in before if name not in _ASKING or role in _ASKING), None) if known else None
    if lost is not None:
        raise ValueError(f"has a turn of {lost!r} before that of {role!r}, which would be lost; give rows without it")
    if role not in _ASKING:
        return said
    system = [text for turn in turns if _role(turn) in _SYSTEM and isinstance(text := _text(turn), str)]
    return "\n".join([*system, said]) if isinstance(said, str) else said


def _text(turn: Mapping[str, Any]) -> Any:
    """What a turn says; text that comes in parts is put together."""
    said = next((turn[key] for key in _SAID if key in turn), None)
    if not isinstance(said, list):
        return said
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in said]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"has a turn of {_role(turn)!r} that holds more than text")
    return "".join(map(str, texts))
