"""Where the time of a training step goes."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds by stage, what a GPU still has in its queue included.

    Attributes:
        seconds: Wall-clock seconds of each stage so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as `stage`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
