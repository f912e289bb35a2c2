"""How weights are moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsemrl.errors import UserError
from lsemrl.finite import check_finite


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
    """A step whose gradient is not finite is skipped; after so many in a row the run stops."""

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
