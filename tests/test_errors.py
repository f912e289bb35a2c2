"""What an error of another library says, as part of a sentence."""

from __future__ import annotations

from lsemrl.errors import reason_of


def test_a_reason_is_one_line_and_never_nothing() -> None:
    assert reason_of(ValueError("one\n  two three"), 7) == "one two"
    assert reason_of(EOFError()) == "EOFError"
