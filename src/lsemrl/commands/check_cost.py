"""What training on rows would take, told in sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lsemrl.types import UserError

if TYPE_CHECKING:
    from lsemrl.modules.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step of RL is taken to be, for what it costs."""

    batch_size: int = 16
    """Prompts."""
    num_generations: int = 8
    """Completions for each."""
    epochs: int = 1
    """Times that every training row is used."""
    tflops: float = 100.0
    """What the machine computes in a second of such work, in 10^12 operations: a third of what its data sheet says."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_generations", "epochs", "tflops"):
            if not 0 < getattr(self, name) < 1e9:
                raise UserError(f"step.{name} is {getattr(self, name)}; give a number above 0")


def cost_lines(cost: Cost, step: Step) -> list[str]:
    """What a step and a run would take, in sentences.

    Args:
        cost: Of a step.
        step: What it was taken to be.
    """
    steps = max(1, cost.rows // step.batch_size) * step.epochs
    hours = steps * cost.operations / (step.tflops * 1e12) / 3600
    spent = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
    return [
        f"the model has {cost.weights / 1e6:,.1f} million weights; {cost.trained / 1e6:,.1f} million are trained",
        f"a step of {cost.prompts} prompts with {step.num_generations} completions each, as long as the references, "
        f"draws {cost.sampled:,} tokens in {cost.operations / 1e12:,.3g} trillion operations on average",
        f"memory: {cost.memory}, in a step of the longest rows",
        f"{steps:,} steps: at least {spent} at {step.tflops:g} trillion operations a second; drawing tokens one by one "
        "leaves most machines half idle",
    ]
