"""Gradients of one optimizer step: on each rank one micro-batch after the other, and over the ranks once.

Ranks deal their rows into micro-batches on their own and may have unlike numbers of them. So DDP, which would have
gradients meet in every backward pass, is told not to; they meet in `sum_gradients`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_reduce, get_world_size, is_initialized
from torch.nn.parallel import DistributedDataParallel

from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy import Policy
from lsemrl.modules.ranks import highest
from lsemrl.types import Sequences

LossOf = Callable[[MicroBatch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Part:
    """What goes through the policy in a step.

    Attributes:
        of: The task, or the anchor beside it.
        whole: This rank's completions.
        rows: int64, those of the step.
        loss_of: This rank's share of the loss of a micro-batch, and sums of metrics.
    """

    of: Literal["task", "anchor"]
    whole: Sequences
    rows: Tensor
    loss_of: LossOf


@dataclass(frozen=True)
class Passed:
    """A part that has gone through.

    Attributes:
        part: See there.
        batches: Its micro-batches.
        losses: Of each.
    """

    part: Part
    batches: Sequence[MicroBatch]
    losses: Sequence[Tensor]

    def bad(self) -> list[MicroBatch]:
        """Those whose loss is not finite."""
        return [batch for batch, loss in zip(self.batches, self.losses, strict=True) if not loss.isfinite()]


def accumulate(
    wrapped: Any, batches: Iterable[tuple[MicroBatch, bool]], loss_of: LossOf, backward: Callable[[Tensor], None]
) -> dict[str, list[Tensor]]:
    """Gradients of this rank's share of a step.

    Args:
        wrapped: What is trained, as the strategy of ranks has it.
        batches: Of this rank, by `in_step`.
        loss_of: This rank's share of the loss of a micro-batch, and sums of metrics.
        backward: Called on each loss.

    Returns:
        Losses and metrics of the micro-batches that count.
    """
    apart: AbstractContextManager[Any]
    if isinstance(wrapped, DistributedDataParallel):
        apart, scale = wrapped.no_sync(), 1
    else:  # strategies that shard average over ranks where we want the sum
        apart, scale = nullcontext(), get_world_size() if is_initialized() else 1
    found: dict[str, list[Tensor]] = defaultdict(list)
    with apart:
        for batch, counts in batches:
            loss, metrics = loss_of(batch)
            backward(loss * scale if counts else loss * 0)
            for name, value in {**metrics, "loss": loss}.items() if counts else ():
                found[name].append(value.detach())
    return found


def in_step(batches: Sequence[MicroBatch], policy: Policy, device: torch.device) -> Iterator[tuple[MicroBatch, bool]]:
    """Micro-batches, each with whether it counts.

    Where weights are sharded, all ranks must pass through them equally often; who has done repeats the last one.
    """
    most = highest(len(batches), device) if policy.sharded else len(batches)
    yield from ((batch, True) for batch in batches)
    yield from ((batches[-1], False) for _ in range(most - len(batches)))


def sum_gradients(wrapped: Any, policy: nn.Module) -> bool:
    """Add up what ranks have apart, and say whether there was anything to add."""
    if not isinstance(wrapped, DistributedDataParallel):
        return False
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # A rank has none for experts that none of its tokens came to, and ranks add up weight by weight.
    reached = torch.tensor([each.grad is not None for each in trained], dtype=torch.uint8, device=trained[0].device)
    all_reduce(reached, ReduceOp.MAX)
    summed = [each for each, anywhere in zip(trained, reached.tolist(), strict=True) if anywhere]
    for parameter in summed:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for work in [all_reduce(parameter.grad, async_op=True) for parameter in summed]:
        work.wait()
    return True
