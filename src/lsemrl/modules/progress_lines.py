"""Progress as plain lines, for a log, `tee` or SLURM, where a bar would leave nothing or a mess."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lsemrl.durations import Pace


class ProgressLines(Callback):
    """Prints a line to standard error at the first step, at the last, and between them at most every 30 seconds."""

    def __init__(self) -> None:
        self._pace, self._from = Pace(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, at whichever step a run goes on from."""
        self._pace, self._from = Pace(), pl_module.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say where the run is, if it is time."""
        step, steps = pl_module.global_step, int(trainer.estimated_stepping_batches)
        done = step - self._from
        if not trainer.is_global_zero or not done or not self._pace.due(anyhow=step >= steps):
            return
        shown = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        left = self._pace.left(done, steps - self._from)
        print(f"step {step} of {steps}: {shown}; {left}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what validation found."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            found = (f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items() if "/" in name)
            scores = ", ".join(text for text in found if text.startswith("val/"))
            print(f"validated at step {pl_module.global_step}: {scores}", file=sys.stderr, flush=True)
