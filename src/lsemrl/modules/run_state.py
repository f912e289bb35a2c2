"""The state of a run: gathered from all ranks for a checkpoint, and put back where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lsemrl import __version__
from lsemrl.files import replace_folder
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.best import Best
from lsemrl.modules.callback_states import restore_states, states_of
from lsemrl.modules.ground import check_ground, checksum_of
from lsemrl.modules.optimization import set_schedule
from lsemrl.modules.policy import Policy
from lsemrl.modules.ranks import every_rank
from lsemrl.modules.reference import held_against
from lsemrl.modules.sharding import scatter_into, whole_tensors
from lsemrl.modules.snapshot import read_snapshot
from lsemrl.modules.trainer_settings import batches_of_epoch, planned_steps
from lsemrl.rewards.base import add_up
from lsemrl.runs import file_sizes
from lsemrl.types import UserError


def gather_state(
    module: PolicyModule, epoch: int, batches: int, stands_on: Mapping[str, str]
) -> tuple[dict[str, Any], Callable[[Path], None]] | None:
    """What stands before batch `batches` of `epoch`, for `write_snapshot`; all ranks must call.

    Args:
        module: What is trained; its Trainer's clocks and optimizer are taken down.
        epoch: Counted from 0.
        batches: Of this epoch, which have been learned from.
        stands_on: Hashes of what must be the same when the run goes on.

    Returns:
        The state as JSON can hold it, and what writes the other files into a folder; None for all ranks but the first.
    """
    policy, trainer = module.policy, module.trainer
    trained = policy.trained()
    weights = whole_tensors(trained)
    reference = whole_tensors(held_against(policy))
    (optimizer,) = trainer.optimizers
    moments = whole_tensors(
        {
            f"{name}/{key}": value
            for name, parameter in trained.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    )
    ranks = every_rank(module.own_state())
    if not trainer.is_global_zero:
        return None
    state = {
        "lsemrl": __version__,
        "torch": torch.__version__,
        "module": type(module).__name__,
        "rollout_step": module.rollout_step,
        "optimizer_step": trainer.global_step,
        "epoch": epoch,
        "rows": batches * _rows_a_batch(trainer),
        "rows_checksum": _rows_checksum(trainer),
        "ordered_by": _ordered_by(trainer),
        "stands_on": stands_on,
        "schedule": {"last_epoch": trainer.lr_scheduler_configs[0].scheduler.last_epoch},
        "appended": file_sizes(module.folder),
        "callbacks": states_of(trainer.callbacks),  # type: ignore[attr-defined]
        "ranks": ranks,
    }

    def fill(folder: Path) -> None:
        policy.save(folder / "adapter", weights)
        save_file(moments, folder / "optimizer.safetensors")
        if reference:
            save_file(reference, folder / "reference.safetensors")

    return state, fill


def save_policy(module: PolicyModule, folder: Path, chosen: Best | None = None) -> None:
    """Write what is trained to `folder`, whole or not at all; all ranks must call.

    Args:
        module: What is trained.
        folder: Replaced where it is there.
        chosen: What it was chosen by, if it was; it goes along.

    Raises:
        UserError: It cannot be written.
    """
    weights = whole_tensors(module.policy.trained())

    def fill(part: Path) -> None:
        module.policy.save(part, weights)
        if chosen:
            chosen.write(part)

    if module.trainer.is_global_zero:
        replace_folder(folder, fill)


def restore_state(
    module: PolicyModule, folder: Path, stands_on: Mapping[str, str], *, same_run: bool
) -> dict[str, Any]:
    """Put everything where it was when a checkpoint was written.

    Args:
        module: What is trained; its Trainer's clocks and optimizer are set.
        folder: Of the checkpoint.
        stands_on: Hashes of what is found now.
        same_run: Whether it is the run itself that goes on; of another, callbacks remember nothing.

    Returns:
        The state that was written.

    Raises:
        UserError: The checkpoint is damaged, or of another configuration or other rows.
    """
    trainer, state = module.trainer, read_snapshot(folder)
    if (of := state.get("module", type(module).__name__)) != type(module).__name__:
        raise UserError(
            f"checkpoints.resume is {str(folder)!r}, of a run of {of}, and model is {type(module).__name__}; leave "
            "resume out, and begin from what that run has learned, its adapter/, by policy.adapter"
        )
    if state["rows_checksum"] != _rows_checksum(trainer):
        raise UserError(
            f"{str(folder)!r} was written while training on other rows than data now gives; restore the data, or "
            "set checkpoints.resume to never to begin anew"
        )
    _check_rows(trainer, state["rows"], folder)
    if state["rows"]:
        _check_order(state.get("ordered_by", {}), _ordered_by(trainer), folder)
    if "stands_on" in state:
        check_ground(state["stands_on"], stands_on, folder, same_run=same_run)
    trained = module.policy.trained()
    scatter_into(trained, module.policy.read(folder / "adapter"))
    _restore_reference(module.policy, folder)
    (optimizer,) = trainer.optimizers
    _restore_optimizer(optimizer, trained, load_file(folder / "optimizer.safetensors"))
    # By the settings of now, whose rate, schedule and batches may be others.
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, LambdaLR)
    done = state["epoch"] * batches_of_epoch(trainer) + state["rows"] // _rows_a_batch(trainer)
    tried, updates = state["optimizer_step"] + state["ranks"][0]["skipped"][0], module.updates_per_batch()
    module.planned_steps = planned_steps(trainer, updates, tried - done * updates)
    set_schedule(scheduler, module.optimizer, state["schedule"]["last_epoch"], module.planned_steps)
    _set_clocks(trainer, state)
    module.rollout_step = state["rollout_step"]
    if same_run:
        restore_states(trainer.callbacks, state.get("callbacks", {}))  # type: ignore[attr-defined]
    module.resume_state(followed(state["ranks"], trainer.global_rank, trainer.world_size))
    return state


def followed(ranks: Sequence[dict[str, Any]], rank: int, world: int) -> dict[str, Any]:
    """What one rank goes on with of what `PolicyModule.own_state` gave on each rank of then.

    On another number of ranks nobody's random numbers go on, but what is of the run does: what was skipped, what had
    to be lowered on any rank, and what rewards counted on all of them.

    Args:
        ranks: What it gave, rank by rank.
        rank: Which of those there are now.
        world: How many there are now.
    """
    if len(ranks) == world:
        return ranks[rank]
    lowered = [one["micro_batch_tokens"] for one in ranks if one["micro_batch_tokens"]]
    return {
        "skipped": ranks[0]["skipped"],  # by all together
        "micro_batch_tokens": min(lowered, default=None),
        "sampling_parts": max(one["sampling_parts"] for one in ranks),
        "random": None,
        "rewards": add_up([one["rewards"] for one in ranks[rank::world] if "rewards" in one]),
    }


def _restore_reference(policy: Policy, folder: Path) -> None:
    kept, path, settings = held_against(policy), folder / "reference.safetensors", policy.settings
    written = path.is_file()
    if written and kept:
        scatter_into(kept, load_file(path))
    # What nothing is held to by now is passed over; what nothing was held to yet, and never moves, is as it was read.
    elif (written and settings.reference != "none") or (kept and settings.ref_model_sync_steps):
        raise UserError(
            f"policy.reference is {settings.reference!r}, but {str(folder)!r} was written with another; "
            "resume with the configuration that wrote it"
        )


def _restore_optimizer(optimizer: Optimizer, trained: Mapping[str, Any], moments: dict[str, Tensor]) -> None:
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        if kind == "step":
            optimizer.state[trained[name]][kind] = value
        else:
            moment = optimizer.state[trained[name]][kind] = torch.zeros_like(trained[name])
            scatter_into({key: moment}, moments)


def _set_clocks(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Put Lightning's counters where a run that was never interrupted has them before this step."""
    loop, epoch = trainer.fit_loop, state["epoch"]
    batches = state["rows"] // _rows_a_batch(trainer)

    def progress(done: int, begun: int) -> dict[str, int]:
        return {"ready": begun, "started": begun, "processed": done, "completed": done}

    counted: Any = loop.state_dict()
    epochs = progress(epoch, epoch + 1 if batches else epoch)
    counted["epoch_progress"] = {"total": epochs, "current": epochs}
    steps = state["rollout_step"]
    counted["epoch_loop.batch_progress"] = {
        "total": progress(steps, steps),
        "current": progress(batches, batches),
        "is_last_batch": False,
    }
    taken = {"ready": state["optimizer_step"], "completed": state["optimizer_step"]}
    counted["epoch_loop.manual_optimization.optim_step_progress"] = {"total": taken, "current": taken}
    counted["epoch_loop.state_dict"]["_batches_that_stepped"] = steps  # the step of what Lightning itself logs
    counted["state_dict"]["combined_loader"] = [{"batches": batches}]
    loop.load_state_dict(counted)


def _check_rows(trainer: Trainer, rows: int, folder: Path) -> None:
    """Refuse to go on within an epoch by batches that do not begin where the last one ended.

    Raises:
        UserError: Rows would be learned from twice.
    """
    if rows % _rows_a_batch(trainer) == 0:
        return
    asked, ranks = trainer.datamodule.data.batch_size, trainer.world_size  # type: ignore[attr-defined]
    fit = [size for size in range(1, rows + 1) if rows % (size * ranks) == 0]
    below, above = [size for size in fit if size < asked][-1:], [size for size in fit if size > asked][:1]
    sizes = " or ".join(map(str, (*below, *above)))
    raise UserError(
        f"data.batch_size is {asked} on {ranks} ranks, and {str(folder)!r} was written {rows:,} rows into an epoch, "
        "which no whole number of such batches makes up; "
        + (f"resume it with data.batch_size {sizes}" if sizes else "resume it on a number of ranks that divides them")
    )


def _check_order(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on within an epoch in another order.

    Raises:
        UserError: Rows would be learned from twice, and others never.
    """
    for field in before:
        if before[field] != now.get(field):
            raise UserError(
                f"{field} is {now.get(field)}, and {str(folder)!r} was written within an epoch whose rows are in "
                f"another order, by {before[field]}; resume it with that"
            )


def _ordered_by(trainer: Trainer) -> dict[str, Any]:
    found: dict[str, Any] = trainer.datamodule.data.ordered_by  # type: ignore[attr-defined]
    return found


def _rows_a_batch(trainer: Trainer) -> int:
    """Over all ranks."""
    rows: int = trainer.datamodule.data.batch_size * trainer.world_size  # type: ignore[attr-defined]
    return rows


def _rows_checksum(trainer: Trainer) -> str:
    return checksum_of(trainer.datamodule.data.train_examples)  # type: ignore[attr-defined]
