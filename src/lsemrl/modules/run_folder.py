"""When a run takes its folder: once all checks have passed and there is something to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lsemrl.files import make_folder, write_text
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.runs import CONFIG, begin_run, finish_run, later_run, new_folder


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says of a run.

    Attributes:
        root: Where its folder is to be.
        config: Its whole configuration.
        text: The same as YAML.
        resume: Whether an interrupted run of the same configuration is to be taken up.
        checkpoint: The one to go on from, if there is one; the first rank knows.
    """

    root: Path
    config: Mapping[str, Any]
    text: str
    resume: bool = False
    checkpoint: Path | None = None


class RunFolder(Callback):
    """Takes a folder, tells logger and module, and writes config.yaml; to be the first of the callbacks."""

    def __init__(self, asked: Asked) -> None:
        """
        Args:
            asked: See there.
        """
        self.asked = asked
        self._taken = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder of the run that is gone on with."""
        if stage != "fit":
            return
        found = trainer.strategy.broadcast(str(self.asked.checkpoint) if self.asked.checkpoint else None)
        if found is None:
            return
        checkpoint = Path(found)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.resume = checkpoint
        self._take(trainer, pl_module, checkpoint.parents[1])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a new folder, unless one is gone on with."""
        if not self._taken:
            own = trainer.is_global_zero
            folder = begin_run(self.asked.root, self.asked.config, resume=self.asked.resume) if own else Path()
            self._take(trainer, pl_module, Path(trainer.strategy.broadcast(str(folder))))
            _tell_of_later(pl_module)
        self._configuration(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the run has ended, once everything is there."""
        assert isinstance(pl_module, PolicyModule)
        if trainer.is_global_zero:
            finish_run(pl_module.folder, pl_module.rollout_step)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make a folder for the outputs that are there now."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, PolicyModule)
            pl_module.folder = new_folder(self.asked.root, "predict")
        self._configuration(trainer, pl_module)

    def _take(self, trainer: Trainer, module: LightningModule, folder: Path) -> None:
        assert isinstance(module, PolicyModule)
        self._taken = True
        module.folder = folder
        for each in (*trainer.loggers, *trainer.callbacks):  # type: ignore[attr-defined]
            if isinstance(each, MetricsLog):
                each.folder = folder
            if isinstance(each, Checkpoints):
                each.found_again = self.asked.resume

    def _configuration(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PolicyModule)
        if trainer.is_global_zero:
            make_folder(module.folder)
            write_text(module.folder / CONFIG, self.asked.text)
            if trainer.state.fn == "fit":
                for logger in trainer.loggers:
                    logger.log_hyperparams(dict(_dotted(self.asked.config)))


def _tell_of_later(module: LightningModule) -> None:
    """Say where the adapter to start from is of a run that was repeated: a project's files go on naming the first."""
    assert isinstance(module, PolicyModule)
    run = module.policy.adapter.parent if module.policy.adapter else None
    if run and (later := later_run(run)):
        module.say(f"warning: policy.adapter is of {run}, and {later.name} beside it is of a later run")


def _dotted(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value
