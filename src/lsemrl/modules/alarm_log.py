"""Alarms as they are told: once for each kind, with rows to read, in a file that a resumed run goes on with."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lsemrl.errors import UserError
from lsemrl.files import append
from lsemrl.foreign import markdown

if TYPE_CHECKING:
    from lsemrl.types import Completion  # which loads torch, and the summary of a run waits for none

log = logging.getLogger(__name__)

_ROWS = 3
_TEXTS = ("source", "reference", "completion")


class Alarmed(UserError):
    """An alarm that is to stop the run came; it was saved if it was fit to be."""

    status = 3
    """Exit code."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """An alarm as it stands in alarms.jsonl.

    Attributes:
        rollout_step: When, counted from 0 as in samples.csv.
        kind: A field of `AlarmSettings`.
        sentence: What is going wrong, and what to do.
        rows: Completions of the step: source, reference, completion, reward.
    """

    rollout_step: int
    kind: str
    sentence: str
    rows: tuple[dict[str, str | float], ...]

    @property
    def steps(self) -> int:
        """How many rollout steps had been taken, as lines of progress count them."""
        return self.rollout_step + 1

    @property
    def page(self) -> str:
        """As Markdown."""
        rows = (" | ".join(markdown(str(value)) for value in row.values()) for row in self.rows)
        table = "\n".join(f"| {row} |" for row in rows)
        head = "| source | reference | completion | reward |\n|---|---|---|---:|"
        return f"**{markdown(self.sentence)}**\n\n{head}\n{table}"


def read_alarms(path: Path) -> list[Told]:
    """What has been told so far; a line that cannot be read is left out."""
    if not path.is_file():
        return []
    found = []
    # Texts hold other ends of lines, as U+2028, where splitlines would cut.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            said = json.loads(line)
            rows = [{**dict.fromkeys(_TEXTS, ""), **row, "reward": float(row["reward"])} for row in said["rows"]]
            found.append(Told(**{**said, "rows": tuple(rows)}))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def tell(
    path: Path, step: int, found: dict[str, str], completions: Sequence[Completion], rewards: Sequence[float]
) -> list[Told]:
    """Write out and log those of `found` that have not been told yet.

    Args:
        path: The file of the run's alarms.
        step: The rollout step.
        found: Sentences by their kind.
        completions: Of the step.
        rewards: Of each.

    Returns:
        What was new.

    Raises:
        UserError: The file cannot be written to.
    """
    known = {each.kind for each in read_alarms(path)}
    new = [
        Told(rollout_step=step, kind=kind, sentence=sentence, rows=_best(completions, rewards))
        for kind, sentence in found.items()
        if kind not in known
    ]
    for each in new:
        append(path, json.dumps(vars(each), ensure_ascii=False) + "\n")
        log.warning("alarm after %d rollout steps, %s: %s (rows in %s)", each.steps, each.kind, each.sentence, path)
    return new


def _best(completions: Sequence[Completion], rewards: Sequence[float]) -> tuple[dict[str, str | float], ...]:
    """The completion that was paid most for each of a few prompts: what the policy is being taught."""
    best: dict[str, tuple[float, Completion]] = {}
    for completion, reward in zip(completions, rewards, strict=True):
        before = best.get(completion.example.id)
        if before is None or reward > before[0] or math.isnan(before[0]):
            best[completion.example.id] = reward, completion
    return tuple(
        {
            "source": one.example.source,
            "reference": one.example.reference,
            "completion": one.text,
            "reward": round(reward, 4),
        }
        for reward, one in [*best.values()][:_ROWS]
    )
