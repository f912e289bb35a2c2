"""The one error that is told to a user in a sentence.

Imports nothing, so that the command line can answer at once.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: the field, the value got, the remedy."""


def reason_of(error: Exception, longest: int | None = 200) -> str:
    """What an error says, in one line of at most so many characters; what it is called where it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
