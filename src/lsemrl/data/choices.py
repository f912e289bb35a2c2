"""What a row of multiple choice gives to choose from, and which of it is right."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lsemrl.canonical import canonical

SEPARATOR = "|"
"""Between choices in a cell of a table."""
_DIGITS = 4
"""From how many on a number is no choice's."""


def listed(value: object) -> object:
    """A cell of a table as a list: JSON, or texts with | between them; what is a list already as it is."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            pass  # a text that begins with a bracket
    return value.split(SEPARATOR)


def labels_of(value: object) -> list[str]:
    """What choices are called: their `label` beside their `text`, as a list or one by one; empty without."""
    given: object = None
    if isinstance(value, Mapping):
        given = value.get("label")
    elif isinstance(value, list):
        given = [each.get("label") for each in value if isinstance(each, Mapping)]
    return [str(each).strip() for each in given] if isinstance(given, list) and None not in given else []


def fault_of_choices(choices: Sequence[str]) -> str:
    """Why texts are no choice; "" if they are one."""
    if len(choices) < 2:
        return f"has {len(choices)} choice, not 2 or more (in a table with {SEPARATOR} between)"
    forms = list(map(canonical, choices))
    twice = next((choice for choice, form in zip(choices, forms, strict=True) if forms.count(form) > 1), "")
    return twice and f"has the choice {twice[:60]!r} twice"


def chosen(value: object, choices: Sequence[str], labels: Sequence[str] = ()) -> int:
    """Which of `choices` is right, from 0.

    Args:
        value: A number from 0; or a text: that of the choice, its letter from A, or its number from 0.
        choices: Distinct texts.
        labels: What they are called, which then comes before letters and numbers of ours: some files count from 1.

    Raises:
        ValueError: None is meant, or one by its text and another by its label, letter or number.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"is {type(value).__name__}, not a text or a whole number")
    text = str(value).strip()
    found = {at for at, choice in enumerate(choices) if isinstance(value, str) and canonical(choice) == canonical(text)}
    ours = not any(label.isdecimal() for label in labels)  # else a number that is no label is nothing
    if text in labels:
        found.add(labels.index(text))
    elif ours and len(text) == 1 and text.isascii() and text.isalpha():
        found.add(ord(text.upper()) - ord("A"))
    elif ours and text.isascii() and text.isdecimal() and len(text) < _DIGITS:
        found.add(int(text))
    found &= set(range(len(choices)))
    if len(found) > 1:
        raise ValueError(
            f"is {text!r}, which is the text of one choice and the letter or number of another: write it otherwise"
        )
    if not found:
        names = f"or its label ({', '.join(labels)})" if labels else "its letter from A or its number from 0"
        raise ValueError(f"is {text[:60]!r}, which is none of the {len(choices)} choices by its text, {names}")
    return found.pop()
