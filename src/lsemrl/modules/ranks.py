"""What ranks tell each other; a process that is alone answers for all."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.distributed import (
    ReduceOp,
    all_gather_object,
    all_reduce,
    destroy_process_group,
    get_backend,
    get_world_size,
    is_initialized,
)

from lsemrl.types import UserError

T = TypeVar("T")


def leave_at_exit() -> None:
    """Have gloo's threads end before the process, which may abort otherwise; Lightning sees to it for NCCL alone."""

    def leave() -> None:
        if is_initialized():
            destroy_process_group()

    if is_initialized() and get_backend() == "gloo":
        atexit.register(leave)


def every_rank(own: T) -> list[T]:
    """What each rank gives, in their order; all must give something."""
    if not is_initialized():
        return [own]
    found: list[Any] = [None] * get_world_size()
    all_gather_object(found, own)
    return found


def together(work: Callable[[], T], meet: Callable[[], object] | None = None) -> list[T]:
    """What each rank makes of `work`, in their order.

    Args:
        work: What each does on its own.
        meet: Waits for all beforehand, where it is to be known how long; they meet in any case.

    Raises:
        UserError: That of the first rank that refused, on all of them: none waits for one that has gone.
    """
    own: T | UserError
    try:
        own = work()
    except UserError as error:
        own = error
    if meet:
        meet()
    found = every_rank(own)
    for one in found:
        if isinstance(one, UserError):
            raise one
    return [one for one in found if not isinstance(one, UserError)]


def highest(own: int, device: torch.device) -> int:
    """The highest of all ranks' numbers."""
    if not is_initialized():
        return own
    found = torch.tensor(own, device=device)
    all_reduce(found, ReduceOp.MAX)
    return int(found)


def averages(own: dict[str, float], device: torch.device) -> dict[str, float]:
    """Of each metric over the ranks where it is a number, by one exchange for all."""
    if not is_initialized():
        return own
    values = torch.tensor(list(own.values()), dtype=torch.float64)
    pair = torch.stack([values.nan_to_num(0.0), (~values.isnan()).double()]).to(device)
    all_reduce(pair)
    return dict(zip(own, (pair[0] / pair[1]).tolist(), strict=True))
