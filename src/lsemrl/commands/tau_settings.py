"""How tau is derived: settings, which are read before what derives it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsemrl.modules.sampling import Sampling
from lsemrl.types import UserError


@dataclass(frozen=True, kw_only=True)
class TauSettings:
    """tau, below which the similarity reward pays nothing: a quantile of what a policy earns before RL."""

    policy: str | None = None
    """The policy that RL is to start from: an adapter folder, a model folder or hub id, or "micro" for the embedded
    cold start. null leaves tau as the GRPO configuration has it."""
    quantile: float = 0.05
    """Share of outputs that lie below tau, in (0, 1). The paper takes the minimal adequacy seen in the cold start and
    names no number; a low quantile is our choice, for a minimum is one output's luck."""
    rows: int = 500
    """Rows to answer, at most, of the cold start's (`data.splits.cold_start_count`; of all training rows if that is
    0)."""
    sampling: Sampling | None = None
    """How to draw the outputs, one for each row; null draws as RL will by the configuration that `grpo` names, or
    without one as the paper (temperature 0.8, top-p 0.9)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the policy's frozen weights are read in."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise UserError(f"tau.quantile is {self.quantile}; it must be in (0, 1)")
        if self.rows < 1:
            raise UserError(f"tau.rows is {self.rows}; it must be 1 or more")
