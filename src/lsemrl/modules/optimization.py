"""AdamW, its learning-rate schedule, and one clipped step: what manual optimization leaves to us."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.types import UserError


def check_float32(trained: Mapping[str, Tensor]) -> None:
    """Refuse weights that would not keep what is added to them.

    Raises:
        UserError: The first that is of another dtype.
    """
    for name, weight in trained.items():
        if weight.dtype != torch.float32:
            raise UserError(
                f"policy.adapter trains {name} in {str(weight.dtype).removeprefix('torch.')}, which rounds small "
                "steps away; set policy.dtype to float32"
            )


def make_optimizer(
    parameters: Iterable[Parameter], settings: OptimizerSettings, steps: int
) -> tuple[Optimizer, LRScheduler]:
    """AdamW over what is trained, and a schedule that ends after `steps` optimizer steps."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = AdamW(trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    return optimizer, LambdaLR(optimizer, _share(settings, steps))


def _share(settings: OptimizerSettings, steps: int) -> Callable[[int], float]:
    """Of the rate, by the optimizer steps that were taken before, of `steps`."""
    warmup = math.ceil(settings.warmup_ratio * steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[
            settings.schedule
        ]

    return share


def set_schedule(schedule: LambdaLR, settings: OptimizerSettings, taken: int, steps: int) -> None:
    """Put a schedule where it stands after `taken` optimizer steps, and have it end after `steps`."""
    share = _share(settings, steps)
    schedule.lr_lambdas = [share] * len(schedule.base_lrs)
    schedule.last_epoch, schedule._step_count = taken, taken + 1
    schedule._last_lr = [rate * share(taken) for rate in schedule.base_lrs]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def clipped_step(optimizer: Optimizer, schedule: LRScheduler, max_grad_norm: float) -> Tensor:
    """Clip, step, advance the schedule, clear the gradients; where the gradient is not finite, only clear it.

    Returns:
        The gradient norm before clipping, float32 scalar.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = clip_grad_norm_(parameters, max_grad_norm)
    if hasattr(norm, "full_tensor"):  # of shards; to import their type would cost half a second
        norm = norm.full_tensor()
    if bool(norm.isfinite()):
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return norm
