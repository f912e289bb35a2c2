"""What somebody should know of rows: a sentence, how bad it is, and a few of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import regex

Level = Literal["refused", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A row of a finding.

    Attributes:
        place: file:line, with its own id if it has one.
        source: What the policy is shown.
        target: The first accepted output.
        why: What is special about it, if anything beyond the finding.
    """

    place: str
    source: str
    target: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that somebody should know.

    Attributes:
        level: "refused" is what cannot work.
        says: A sentence, with the count.
        rows: A few of them, the worst first.
    """

    level: Level
    says: str
    rows: tuple[Shown, ...] = ()


def reasons(bad: Sequence[str]) -> list[str]:
    """Why rows cannot be used, each kind once with its count, the most frequent first."""
    kinds = Counter(regex.sub(r"\d+", "N", reason) for reason in bad)
    first = {regex.sub(r"\d+", "N", reason): reason for reason in reversed(bad)}
    return [f"{count:,} {'row' if count == 1 else 'rows'}: {first[kind]}" for kind, count in kinds.most_common()]
