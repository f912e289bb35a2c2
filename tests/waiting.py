"""A reward that holds a run back until whoever watches it has done what it had to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lsemrl.rewards import Chrf
from lsemrl.types import Completion


class Waiting(Chrf):
    """Chrf, which gives no fourth answer before there is a file `go` where the run works."""

    def __init__(self) -> None:
        super().__init__()
        self._given = 0

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """See `Chrf`."""
        while self._given >= 3 and not Path("go").exists():
            time.sleep(0.02)
        self._given += 1
        return super().__call__(completions)
