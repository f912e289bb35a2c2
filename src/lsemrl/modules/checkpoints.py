"""When a run is saved, and how it goes on.

A checkpoint is what stands before a rollout step. A step that was interrupted is taken again from its beginning: its
prompts, completions and dropout are drawn from the same random numbers, so that it comes to the same bits, whether it
was killed while sampling, between two optimizer steps, or while this was being written.
"""

from __future__ import annotations

import logging
import math
import shlex
import signal
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks import ModelCheckpoint as LightningsOwn

from lsemrl.files import remove_folder
from lsemrl.metrics.settings import LESS
from lsemrl.modules.alarm_log import Alarmed
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.best import Best, read_best
from lsemrl.modules.callback_states import states_of
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.preemption import Signals
from lsemrl.modules.ranks import highest
from lsemrl.modules.run_state import gather_state, restore_state, save_policy
from lsemrl.modules.server import ServerGone
from lsemrl.modules.snapshot import check_there, write_snapshot
from lsemrl.modules.trainer_settings import batches_of_epoch, check_callbacks, check_monitors
from lsemrl.runs import ADAPTER, AUTO, BEST, CHECKPOINTS, NEVER, checkpoints, truncate_files
from lsemrl.types import UserError

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal came, and the run was saved if it was fit to be.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int, left: str) -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name}, {left}")


class Checkpoints(Checkpoint):
    """Saves a run every so many rollout steps and where SIGTERM or Ctrl-C stops it, and takes it up again.

    Attributes:
        found_again: Whether the same command finds the run again; whoever looks for it says so.
    """

    found_again = False

    def __init__(
        self,
        every_n_steps: int = 50,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        resume: str = AUTO,
    ) -> None:
        """
        Args:
            every_n_steps: Save before every so many rollout steps; 0 only where a signal stops the run, and at its end.
            keep: How many checkpoints are kept; older ones are deleted. With 0 none is written.
            monitor: A validation metric; the adapter that did best by it is kept in best/. Never choose a reward: it
                would keep the best-hacked policy.
            mode: Whether more or less of it is better.
            resume: auto goes on with the last run of the same configuration, if it was interrupted; never begins
                anew; the folder of an interrupted run goes on with that one, wherever what it reads lies by now; or a
                folder under checkpoints/, from which a new run goes on, and which is part of its configuration.
        """
        if every_n_steps < 0:
            raise UserError(f"checkpoints.every_n_steps is {every_n_steps}; give 0 or more")
        if keep < 0:
            raise UserError(f"checkpoints.keep is {keep}; give 0 or more")
        if monitor is not None and "reward" in monitor:
            raise UserError(
                f"checkpoints.monitor is {monitor!r}, which would keep the best-hacked policy; name a metric of "
                "validation, such as val/chrf"
            )
        if monitor in [f"val/{name}" for name in LESS] and mode == "max":
            raise UserError(
                f"checkpoints.monitor is {monitor!r}, of which less is better, and checkpoints.mode max would keep the "
                "worst; set it to min"
            )
        self.every_n_steps, self.keep, self.monitor, self.mode = every_n_steps, keep, monitor, mode
        self.resume: Path | None = None if resume in (AUTO, NEVER) else Path(resume)
        self._best: Best | None = None  # what is in best/, if this run put it there
        self._saved = -1  # rollout step of the newest checkpoint
        self._newest: Path | None = None  # that checkpoint
        self._unproven = False  # whether it is still to be seen that training goes on from it
        self._owed: str | None = None  # why a checkpoint that was due has not been written yet
        self._before: tuple[int, int] | None = None  # epoch and batch of the step that is taken

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would save or choose otherwise."""
        self.signals = Signals(trainer)
        if stage != "fit":
            return
        if self.resume is not None:
            check_there(self.resume)
        if any(isinstance(callback, LightningsOwn) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "trainer.callbacks names Lightning's ModelCheckpoint, whose pickles cannot be resumed exactly; set "
                "checkpoints.every_n_steps, checkpoints.keep and checkpoints.monitor instead"
            )
        assert isinstance(pl_module, PolicyModule)
        known = [f"val/{name}" for name in pl_module.scorer.gives(pl_module.scored_examples(stage))]
        if self.monitor not in (None, *known):
            raise UserError(
                f"checkpoints.monitor is {self.monitor!r}, which validation does not measure; choose one of "
                f"{', '.join(known)}, or name others in metrics.names"
            )
        check_callbacks(trainer.callbacks, known)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from a checkpoint, if there is one to go on from."""
        assert isinstance(pl_module, PolicyModule)
        self._stands_on = pl_module.stands_on()
        if self.keep:
            states_of(trainer.callbacks)  # type: ignore[attr-defined]  # which tells what it cannot hold
        if self.resume is not None:
            self._load(pl_module, self.resume)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take signals, now that Lightning has taken them; and say so where no validation will come to choose by."""
        self.signals.listen()
        assert isinstance(pl_module, PolicyModule)
        every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
        if self.monitor is None or not trainer.limit_val_batches or every is None:  # by the clock
            return
        first = int(every + (0 if epochs is None else (epochs - 1) * batches_of_epoch(trainer)))
        steps = -(-pl_module.planned_steps // pl_module.updates_per_batch())
        if first > steps:
            pl_module.say(
                f"warning: this run of {steps:,} {pl_module.step_name}s ends before its first validation, after "
                f"{first:,}, so that nothing is chosen by {self.monitor}; lower trainer.val_check_interval or "
                "check_val_every_n_epoch"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.signals.give_back()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save before a step that is due, or because a signal or an alarm came."""
        assert isinstance(pl_module, PolicyModule)
        step, self._before = pl_module.rollout_step, (trainer.current_epoch, batch_idx)
        came = highest(self.signals.came, pl_module.device)
        alarmed = highest(pl_module.alarm is not None, pl_module.device)
        due = self.every_n_steps and step and step % self.every_n_steps == 0
        unsaved = None
        if (due or came or alarmed or self._owed) and step != self._saved:
            unsaved = self._save(pl_module, trainer.current_epoch, batch_idx)
        if came:
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self.signals.requeue(came)
            raise Interrupted(came, self._left(unsaved))
        if alarmed:
            trainer.strategy.barrier()
            why = pl_module.alarm or "the first rank says why"
            raise Alarmed(f"stopped by an alarm ({why}), {self._left(unsaved)}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Delete what is older than the checkpoints to keep, once a step has gone well from the newest."""
        assert isinstance(pl_module, PolicyModule)
        check_monitors(trainer.callbacks, trainer.callback_metrics)  # type: ignore[attr-defined]
        if self._unproven and not pl_module.skipped.in_a_row:
            self._rotate(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where whoever draws has gone: all ranks then stand before the step that asked."""
        assert isinstance(pl_module, PolicyModule)
        if isinstance(exception, ServerGone) and self._before and pl_module.rollout_step != self._saved:
            self._save(pl_module, *self._before)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best adapter."""
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics[self.monitor])
        assert isinstance(pl_module, PolicyModule)
        if math.isnan(score) or pl_module.unsound():
            return
        found = Best(metric=self.monitor, mode=self.mode, value=score, step=pl_module.rollout_step)
        if found.beats(self._best):
            save_policy(pl_module, pl_module.folder / BEST, found)
            self._best = found

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the adapter, and save the run for whoever trains on."""
        assert isinstance(pl_module, PolicyModule)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        reason = pl_module.unsound()
        if reason:
            kept = checkpoints(pl_module.folder)
            where = f"the last checkpoint is {str(kept[-1])!r}" if kept else "there is no checkpoint"
            raise UserError(f"{reason}, so that the run ends without an adapter; {where}; lower optimizer.lr")
        save_policy(pl_module, pl_module.folder / ADAPTER)
        # Lightning has counted the epoch already where the last step ended it.
        whole = trainer.fit_loop.epoch_progress.current
        done = 0 if whole.completed == whole.ready else trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if pl_module.rollout_step != self._saved:
            self._save(pl_module, whole.completed, done)
        self._rotate(pl_module)

    def _save(self, module: PolicyModule, epoch: int, batches: int) -> str | None:
        """Write a checkpoint of what stands before batch `batches` of `epoch`; all ranks must call.

        Returns:
            Why there is none: nobody should go on from it, none is kept, or it could not be written.
        """
        if not self.keep:
            return "checkpoints.keep is 0, or trainer.enable_checkpointing false"
        reason = module.unsound()
        if reason and not self._owed:
            module.say(f"no checkpoint of {module.step_name} {module.rollout_step} is written: {reason}")
        self._owed = reason
        if reason:
            return reason
        found = gather_state(module, epoch, batches, self._stands_on)
        target = module.folder / CHECKPOINTS / f"step_{module.rollout_step}"
        try:
            if found is not None:
                write_snapshot(target, *found)
        except UserError as error:
            log.warning("%s could not be written (%s); training goes on without it", target, error.__cause__)
            reason = f"it could not be written ({error.__cause__})"
        reason = module.trainer.strategy.broadcast(reason)
        if reason is None:
            self._saved, self._newest, self._unproven = module.rollout_step, target, True
        return reason

    def _left(self, unsaved: str | None) -> str:
        """What a run that stops leaves, and what goes on from there.

        Args:
            unsaved: Why it was not saved as it stands; None if it was.
        """
        saved = f"not saved, since {unsaved}" if unsaved else f"saved in {self._newest}"
        if self._newest is None:
            return f"{saved}; the same command begins anew"
        command = "the same command" if self.found_again else f"--checkpoints.resume {shlex.quote(str(self._newest))}"
        return f"{saved}; {command} goes on from {'the last checkpoint' if unsaved else 'there'}"

    def _rotate(self, module: PolicyModule) -> None:
        """Delete all checkpoints but the newest."""
        self._unproven = False
        if not module.trainer.is_global_zero or not self.keep:
            return
        try:
            for old in checkpoints(module.folder)[: -self.keep]:
                remove_folder(old)
        except OSError as error:
            log.warning("an old checkpoint in %s could not be deleted (%s)", module.folder, error)

    def _load(self, module: PolicyModule, folder: Path) -> None:
        trainer, own = module.trainer, folder.parent.parent == module.folder
        state = restore_state(module, folder, self._stands_on, same_run=own)
        step, ranks = state["rollout_step"], len(state["ranks"])
        self._saved, self._newest = step, folder
        if own:
            self._best = read_best(module.folder / BEST)
        if trainer.is_global_zero:
            if own:
                truncate_files(module.folder, state["appended"])
                for logger in trainer.loggers:
                    if isinstance(logger, MetricsLog):
                        logger.rewind(step)
            module.say(f"going on from {folder}, before {module.step_name} {step}")
            if ranks != trainer.world_size:
                module.say(
                    f"it was written by {ranks} ranks and is read by {trainer.world_size}: weights, optimizer and the "
                    "rows still to come are the same, the samples drawn will be others"
                )
        if trainer.fit_loop.done and not own:  # of its own, a kill prevented only that it was said to have ended
            raise UserError(
                f"{str(folder)!r} is of a run that has come to its end; raise trainer.max_epochs or trainer.max_steps "
                "to train on"
            )
