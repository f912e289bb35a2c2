"""AdamW, its learning-rate schedule, and one clipped step: what manual optimization leaves to us."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lsemrl.finite import check_finite
from lsemrl.types import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW with warm-up and decay."""

    lr: float = 1e-4
    """Learning rate after warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments."""
    warmup_ratio: float = 0.05
    """Share of the optimizer steps over which the rate rises from zero, in [0, 1)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls to zero after warm-up, or stays."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    max_skipped_steps: int = 5
    """A step whose loss or gradient is not finite is skipped; after so many in a row the run stops."""

    def __post_init__(self) -> None:
        check_finite(self, "optimizer")
        for name, ok, rule in (
            ("lr", 0 < self.lr <= 1e30, "above 0 and at most 1e30"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)"),
            ("max_grad_norm", self.max_grad_norm > 0, "above 0"),
            ("max_skipped_steps", self.max_skipped_steps >= 1, "at least 1"),
        ):
            if not ok:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be {rule}")


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
    warmup = math.ceil(settings.warmup_ratio * steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[
            settings.schedule
        ]

    return optimizer, LambdaLR(optimizer, share)


def set_schedule(schedule: LambdaLR, steps: int) -> None:
    """Put a schedule where it stands after `steps` optimizer steps."""
    schedule.last_epoch, schedule._step_count = steps, steps + 1
    schedule._last_lr = [
        rate * share(steps) for rate, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
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
