"""The blocks of a page of Markdown, and the commands in them.

A comment before a block, which a reader of the page does not see, says what is special about it:
`<!-- not run: needs a GPU -->`, or `<!-- given: pairs.tsv -->` for files that a user has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(str(path.relative_to(ROOT)) for at in ("docs", "docs/results") for path in sorted((ROOT / at).glob("*.md"))),
]
_COMMENT = re.compile(r"<!-- (not run|given): (.*) -->")


@dataclass
class Block:
    """Lines that are no prose.

    Attributes:
        line: Of the page, from 1.
        kind: What the fence says; sh, where it is indented.
        text: Without fence and indent.
        not_run: Why; "" where it is run.
        given: Files that a user has.
    """

    line: int
    kind: str
    text: str
    not_run: str = ""
    given: tuple[str, ...] = ()


def blocks(page: str) -> Iterator[Block]:
    """Of a page, from top to bottom."""
    said: dict[str, str] = {}
    lines = [*(ROOT / page).read_text(encoding="utf-8").splitlines(), ""]
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if found := _COMMENT.fullmatch(line):
            said[found[1]] = found[2]
            continue
        if line.startswith("```"):
            kind, end = line[3:], lines.index("```", at)
            body, at = lines[at:end], end + 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            kind, body = "sh", [each[4:] for each in lines[start:at]]
        else:
            assert not (line.strip() and said), f"{page}:{start + 1}: a comment {said} that stands before no block"
            continue
        given = tuple(filter(None, said.get("given", "").split(", ")))
        yield Block(start + 1, kind, "\n".join(body).strip() + "\n", said.get("not run", ""), given)
        said = {}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell's."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";|&"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def verbs(text: str) -> Iterator[list[str]]:
    """What follows `lsemrl`, also where srun or torchrun start it."""
    for words in commands(text):
        if words[0] in ("lsemrl", "srun", "torchrun"):
            yield words[words.index("lsemrl") + 1 :]


def configs(words: list[str]) -> list[str]:
    """The files that a verb is to read."""
    return [words[at + 1] for at, word in enumerate(words) if word in ("--config", "--overlay")]
