"""Whole tensors out of shards and back; what is not sharded passes through."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU; all ranks must ask for the same."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().to("cpu", copy=True).contiguous()
        for name, value in tensors.items()
    }


@torch.no_grad()
def scatter_into(targets: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Copy whole tensors into `targets` of the same names, each rank its shards."""
    for name, target in targets.items():
        value = whole[name].to(target.device)
        target.copy_(
            distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value
        )
    return targets
