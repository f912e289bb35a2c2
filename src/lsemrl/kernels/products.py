"""Float32 products with a large weight on a CPU, by oneDNN where PyTorch would ask MKL.

Sampling multiplies a row for each completion with every weight, and a chunk of the head's hidden states is a hundred
rows: of so few MKL makes a fraction of what it makes of many, and two threads hardly more than one. A weight that many
products share is packed: laid out once as oneDNN reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST_WEIGHTS = 1 << 19
"""Weights below which nothing is gained."""
_FEW, _MANY = 8, 64
"""From so many rows on, their number is made a multiple of this."""


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by oneDNN where that is faster and no gradient is asked for."""
    recorded = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (x, weight_NK, bias_N)
    )
    rows = x.numel() // max(weight_NK.shape[1], 1)
    if rows < 2 or recorded or x.dtype != weight_NK.dtype or not is_large(weight_NK):
        return nn.functional.linear(x, weight_NK, bias_N)
    return multiply(x, weight_NK, bias_N)


def is_large(weight_NK: Tensor) -> bool:
    """Whether oneDNN multiplies with a weight faster than what PyTorch would take."""
    return (
        type(weight_NK) in (Tensor, nn.Parameter)  # none that is spread over ranks
        and weight_NK.device.type == "cpu"
        and weight_NK.dtype == torch.float32
        and weight_NK.numel() >= _LEAST_WEIGHTS
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )


def multiply(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """`x` [..., K] @ `weight_NK`.t() + `bias_N`, of a weight that `is_large`, packed or not; without a gradient."""
    width = x.shape[-1]
    rows = x.numel() // width
    x_MK = x.reshape(rows, width)
    # What oneDNN compiles for every number of rows takes milliseconds, and stays in memory.
    if beyond := -rows % (1 if rows < _FEW else _FEW if rows < _MANY else _MANY):
        x_MK = nn.functional.pad(x_MK, (0, 0, 0, beyond))
    bias_N = None if bias_N is None else bias_N.contiguous()  # of which it reads as many numbers as lie there in a row
    made_MN: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")
    return made_MN[:rows].view(*x.shape[:-1], made_MN.shape[-1])


def packed(weight_NK: Tensor) -> Tensor:
    """A copy of a weight that `is_large` as oneDNN reads it, which nothing but `multiply` can."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_NK)
    return copy
