"""Text that others wrote, made fit for where it is shown: a terminal, a page, a spreadsheet.

Outputs of models, rows, names and what servers say may hold characters that a terminal obeys, that turn a line around,
or that a page takes for markup. What is written as data (JSON Lines, the outputs of `generate`) keeps them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

# Controls but line feed and tab, embeddings, overrides and isolates of writing direction, halves of characters. What
# scripts need is not among them: joiners, marks of direction, variation selectors.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f\ud800-\udfff]")
_MARKUP = re.compile(r"[\\`*_{}\[\]<>&|#~$!@]|(?<=\bwww)\.|:(?=//)", re.IGNORECASE)
_BLOCK = re.compile(r"^(?:(?=[-+=])|(\d+)(?=[.)](?:\s|$)))")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class ShownRecord(logging.LogRecord):
    """What is logged, fit for a terminal."""

    def getMessage(self) -> str:
        """The message, its arguments filled in."""
        return visible(super().getMessage())


def visible(text: str) -> str:
    r"""`text` with what a terminal or a page would obey written out, such as \x1b or \u202e; lines stay lines."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def markdown(text: str) -> str:
    """`text` in Markdown, on one line: nothing in it is markup, a link, or an image to be fetched."""
    line = _MARKUP.sub(r"\\\g<0>", " ".join(visible(text).split()))
    return _BLOCK.sub(r"\1\\", line)


def code(text: str) -> str:
    """`text` as a code span in Markdown, on one line."""
    line = " ".join(visible(text).split())
    ticks = "`" * (1 + _longest(line))
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """`text` as a code block in Markdown, which no line of it can end."""
    fence = "`" * max(3, 1 + _longest(text))
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def page_template(path: Path, **filters: Callable[..., object]) -> jinja2.Template:
    """The template of a page, whatever is filled in: no text in it is markup, or obeyed; what is not given raises."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # markup is the template's own
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.from_string(path.read_text(encoding="utf-8"))


def cell(text: str) -> str:
    """`text` for a spreadsheet, with an apostrophe before what it would take for a formula; numbers stay numbers."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _longest(text: str) -> int:
    """Backticks in the longest run of them."""
    return max(map(len, re.findall("`+", text)), default=0)
