"""The Trainer's settings: those under which a policy can be trained, and the number of steps they come to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_info

from lsemrl.devices import slow_dtype
from lsemrl.metrics.settings import LESS
from lsemrl.modules.adapters.config import check_placement, without_effect
from lsemrl.modules.policy import Policy
from lsemrl.types import UserError


def check_trainer(trainer: Trainer, policy: Policy, stage: str) -> None:
    """Refuse to run a policy where and as the Trainer would.

    Args:
        trainer: Its strategy and precision.
        policy: Before its weights are read.
        stage: Of Lightning's.

    Raises:
        UserError: Ranks would not stay in step, or weights would be of dtypes in which they cannot be trained.
    """
    settings = policy.settings
    trained = dict.fromkeys(("max_steps", "max_epochs", "limit_train_batches"), "trained")
    for name, lost in {**trained, "log_every_n_steps": "logged"}.items():
        if stage == "fit" and getattr(trainer, name) == 0:
            raise UserError(f"trainer.{name} is 0, so that nothing would be {lost}; give 1 or more")
    for name in ("val_check_interval", "check_val_every_n_epoch"):
        if stage == "fit" and trainer.limit_val_batches and getattr(trainer, name) == 0:
            raise UserError(
                f"trainer.{name} is 0; give a number above it, or to validate never set trainer.limit_val_batches to 0"
            )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy | ModelParallelStrategy):
        raise UserError(
            f"trainer.strategy is {type(trainer.strategy).__name__}, under which ranks do not stay in step; "
            "use the overlay configs/ddp.yaml or configs/fsdp.yaml"
        )
    device, sharded = trainer.strategy.root_device, isinstance(trainer.strategy, ModelParallelStrategy)
    if stage == "fit" and sharded and device.type == "cpu" and torch.__version__ < "2.9":
        raise UserError(
            "on a CPU PyTorch 2.8 adds up the gradients of ranks under FSDP, which are to be averaged; install PyTorch "
            "2.9 or later, or use the overlay configs/ddp.yaml"
        )
    if policy.adapter_config is not None:
        check_placement(policy.adapter_config, sharded=sharded, halved=stage == "fit" and settings.dtype == "bfloat16")
        if stage == "fit" and policy.adapter and (line := without_effect(settings.lora, policy.adapter_config)):
            rank_zero_info(line)
    if stage == "fit" and (settings.train, settings.dtype) == ("full", "bfloat16"):
        raise UserError(
            "policy.train is full and policy.dtype is bfloat16, which rounds small steps away; set policy.dtype to "
            "float32, and trainer.precision to bf16-mixed for its speed"
        )
    if settings.flex_attention and stage == "fit" and device.type == "cpu":
        raise UserError("policy.flex_attention is true, but it has no backward pass on a CPU; set it to false")
    if line := slow_dtype("bfloat16" if trainer.precision == "bf16-mixed" else settings.dtype, device):
        rank_zero_info(f"{line}, and trainer.precision to 32-true")
    # Whole models in half precision would take adapters with them; float16 would need its gradients scaled.
    if trainer.precision not in ("32-true", "bf16-mixed"):
        raise UserError(
            f"trainer.precision is {trainer.precision}; choose 32-true or bf16-mixed, and set policy.dtype to "
            "bfloat16 to halve frozen weights"
        )


def check_manual(trainer: Trainer) -> None:
    """Refuse what the Trainer does for modules that leave their optimizer steps to it, or that can be copied whole.

    Raises:
        UserError: Gradients would be accumulated or clipped by it, or ranks be copies of this process.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "trainer.strategy makes ranks by copying this process (spawn, fork, notebook), which a run cannot be; use "
            "the overlay configs/ddp.yaml or configs/fsdp.yaml, which start each anew"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; raise data.batch_size instead: "
            "model.micro_batch_tokens bounds what memory a step takes"
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}; set model.optimizer.max_grad_norm instead"
        )


def check_callbacks(callbacks: Iterable[Callback], known: Sequence[str]) -> None:
    """Refuse callbacks that would end a run by what is not measured, or at its best; or that tune what is not there.

    Args:
        callbacks: Of the Trainer.
        known: What validation measures.

    Raises:
        UserError: The first such.
    """
    for each in callbacks:
        if isinstance(each, LearningRateFinder):
            raise UserError(
                "trainer.callbacks names LearningRateFinder, which knows no optimizer of ours; set model.optimizer.lr"
            )
        if not isinstance(each, EarlyStopping):
            continue
        of = f"trainer.callbacks: EarlyStopping goes by {each.monitor!r}"
        # What else there is to go by is known only once a step has been logged, see `check_monitors`.
        if each.monitor not in known and (each.monitor.startswith("val/") or f"val/{each.monitor}" in known):
            raise UserError(
                f"{of}, which validation does not measure; choose one of {', '.join(known)}, or name others in "
                "metrics.names"
            )
        less = each.monitor in [f"val/{name}" for name in LESS]
        if each.monitor in known and each.mode != ("min" if less else "max"):
            raise UserError(
                f"{of} with mode {each.mode}, and of that {'less' if less else 'more'} is better; set mode to "
                f"{'min' if less else 'max'}"
            )


def check_monitors(callbacks: Iterable[Callback], logged: Collection[str]) -> None:
    """Refuse, once a step has been logged, to train on until Lightning misses what a run is to be ended by.

    Args:
        callbacks: Of the Trainer, which `check_callbacks` has let pass.
        logged: What a step has logged.

    Raises:
        UserError: A callback goes by something else.
    """
    for each in callbacks:
        if not isinstance(each, EarlyStopping) or not each.strict or each.monitor.startswith("val/"):
            continue
        if each.monitor not in logged:
            near = get_close_matches(each.monitor, logged) or sorted(logged)
            raise UserError(
                f"trainer.callbacks: EarlyStopping goes by {each.monitor!r}, which no step of training logs; choose "
                f"one of {', '.join(near)}, or set its strict to false if a callback of yours logs it later"
            )


def batches_of_epoch(trainer: Trainer) -> int:
    """The training batches that an epoch has."""
    # Not from the Trainer's own loader: made this early, it would never be told where a checkpoint left off.
    batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    share = trainer.limit_train_batches
    return min(batches, share) if isinstance(share, int) else int(batches * (share or 1.0))


def planned_steps(trainer: Trainer, updates_per_batch: int, ahead: int = 0) -> int:
    """The optimizer steps that a run will take: a batch that is begun takes all of its own.

    Args:
        trainer: Its data and its limits.
        updates_per_batch: Optimizer steps that one training batch takes.
        ahead: Steps that a run which goes on has tried beyond those that its rows would come to now, as in larger
            batches or on more ranks: it ends so many later.

    Raises:
        UserError: The run has no end, or would never be validated.
    """
    batches = batches_of_epoch(trainer)
    every = trainer.val_check_interval
    counted_anew = trainer.limit_val_batches and trainer.check_val_every_n_epoch is not None
    if counted_anew and isinstance(every, int) and every > batches:
        raise UserError(
            f"trainer.val_check_interval is {every}, but an epoch has {batches} batches; lower it, or set "
            "trainer.check_val_every_n_epoch to null to count across epochs"
        )
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    # The Trainer looks at its limit between batches only.
    limit = math.inf if trainer.max_steps == -1 else math.ceil(trainer.max_steps / updates_per_batch)
    steps = min(batches * epochs * updates_per_batch + ahead, limit * updates_per_batch)
    if math.isinf(steps):
        raise UserError("the run has no end: set trainer.max_epochs, or trainer.max_steps (in optimizer steps)")
    return int(steps)
