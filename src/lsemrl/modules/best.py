"""What the policy in a run's best/ was chosen by, written beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lsemrl.json_records import write_json

_FILE = "best.json"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best score so far.

    Attributes:
        metric: Of validation.
        mode: Whether its "max" or its "min" is the best.
        value: The score.
        step: How many rollout steps had been taken, as checkpoints are counted.
    """

    metric: str
    mode: str
    value: float
    step: int

    def beats(self, other: Best | None) -> bool:
        """Whether it takes the place of `other`, which stays where they are equal, or were chosen otherwise."""
        if other is None or (other.metric, other.mode) != (self.metric, self.mode):
            return True
        return self.value > other.value if self.mode == "max" else self.value < other.value

    def write(self, folder: Path) -> None:
        """Put it beside the weights in `folder`."""
        write_json(folder / _FILE, asdict(self))


def read_best(folder: Path) -> Best | None:
    """What `Best.write` wrote; None where nothing of it can be read."""
    try:
        said = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return Best(
            metric=str(said["metric"]), mode=str(said["mode"]), value=float(said["value"]), step=int(said["step"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
