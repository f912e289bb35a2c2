"""Progress as plain lines, for a log, `tee` or SLURM, where a bar would leave nothing or a mess."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lsemrl.durations import Pace
from lsemrl.modules.base import PolicyModule


class ProgressLines(Callback):
    """Prints a line to standard error at the first step, at the last, and between them every 30 seconds."""

    def __init__(self) -> None:
        self._pace, self._from = Pace(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, at whichever step a run goes on from."""
        assert isinstance(pl_module, PolicyModule)
        self._pace, self._from = Pace(), pl_module.rollout_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say where the run is, if it is time."""
        assert isinstance(pl_module, PolicyModule)
        step = pl_module.rollout_step
        # Steps that were skipped are taken again where trainer.max_steps counts those of the optimizer.
        steps = max(step, -(-pl_module.planned_steps // pl_module.updates_per_batch()))
        if not trainer.is_global_zero or not self._pace.due(anyhow=step == steps):
            return
        shown = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        left = self._pace.left(step - self._from, steps - self._from)
        print(f"{step} of {steps} {pl_module.step_name}s: {shown}; {left}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what validation found."""
        assert isinstance(pl_module, PolicyModule)
        if trainer.is_global_zero and not trainer.sanity_checking:
            found = (f"{name} {float(value):.4g}" for name, value in trainer.callback_metrics.items() if "/" in name)
            scores = ", ".join(text for text in found if text.startswith("val/"))
            after = f"{pl_module.rollout_step} {pl_module.step_name}s"
            print(f"validated after {after}: {scores}", file=sys.stderr, flush=True)
