"""What a verb asks at a terminal where a word is missing; elsewhere it is refused."""

from __future__ import annotations

import sys

from lsemrl.errors import UserError

_FROM = "the language that is translated from, such as en (of other rows give --task headline or instruction)"
_TO = "the language that is to be learned, such as bo"


def at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def languages(from_: str | None, to: str | None, *, translates: bool) -> tuple[str, str]:
    """What --from and --to name; no language is translated from where nothing is translated.

    Raises:
        UserError: See `answered`.
    """
    asked = answered(from_, "--from", _FROM) if translates else from_ or ""
    return asked, answered(to, "--to", _TO)


def answered(value: str | None, option: str, what: str, default: str = "") -> str:
    """`value`, or what is typed where there is none.

    Args:
        value: As given by `option`; None where it was not.
        option: Such as --to.
        what: What it is, with an example.
        default: What an empty line means; "" asks again.

    Raises:
        UserError: It was not given, and nobody can be asked or answers.
    """
    if value is not None:
        return value
    if not at_terminal():
        raise UserError(f"{option} is not given; name {what}")
    typed = ""
    while not typed:
        try:
            typed = input(f"{what}{f' [{default}]' if default else ''}: ").strip() or default
        except EOFError:
            raise UserError(f"{option} is not given; name {what}") from None
    return typed
