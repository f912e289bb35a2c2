"""Float32 products of few rows on a CPU, of which BLAS makes a fraction of what it makes of many.

Sampling multiplies a row for each completion with every weight, and a chunk of the head's hidden states is a hundred
rows. With the weight as the left factor the same product is split well among threads, and a block of its rows at a
time stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 128
"""Rows above which nothing is gained."""
_LEAST_WEIGHTS = 1 << 18
"""Weights below which nothing is gained by several threads."""
_LEAST_BY_ONE = 1 << 22
"""Weights below which nothing is gained by one."""
_BLOCK = 512
"""Rows of a weight that are multiplied at a time."""


def are_few(rows: int, weight: Tensor) -> bool:
    """Whether a product of so many rows with a matrix is faster turned round."""
    return (
        type(weight) in (Tensor, nn.Parameter)  # none that is spread over ranks
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= (_LEAST_WEIGHTS if torch.get_num_threads() > 1 else _LEAST_BY_ONE)
        and 2 <= rows <= _MOST
    )


def multiply(x_MK: Tensor, weight_NK: Tensor, out_MN: Tensor) -> Tensor:
    """Write `x_MK` @ `weight_NK`.t() to `out_MN`, the weight as the left factor; without a gradient."""
    x_KM = x_MK.t()
    for block_BK, out_MB in zip(weight_NK.split(_BLOCK), out_MN.split(_BLOCK, dim=1), strict=True):
        out_MB.copy_(torch.mm(block_BK, x_KM).t())
    return out_MN


def linears_to_turn(model: nn.Module) -> list[nn.Linear]:
    """The plain linears of a model that compute otherwise within `turned`."""
    return [module for module in model.modules() if type(module) is nn.Linear and are_few(_MOST, module.weight)]


@contextmanager
def turned(linears: Sequence[Any]) -> Iterator[None]:
    """Inside, linears compute by `multiply` where rows are few; without gradients."""
    for module in linears:
        module.forward = partial(_linear, module)
    try:
        yield
    finally:
        for module in linears:
            del module.forward


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    """What `module` computes."""
    weight_NK, bias_N, rows = module.weight, module.bias, x.shape[:-1]
    if not are_few(rows.numel(), weight_NK) or x.dtype != weight_NK.dtype or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, weight_NK, bias_N)
    out_MN = multiply(x.reshape(rows.numel(), -1), weight_NK, x.new_empty(rows.numel(), len(weight_NK)))
    if bias_N is not None:
        out_MN += bias_N
    return out_MN.view(*rows, -1)
