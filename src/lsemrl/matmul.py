"""As what matrices are multiplied: mixed precision, settings, environment variables and containers make it less."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_SIZE = 256


def float32_products(device: torch.device) -> Literal["float32", "tf32", "bfloat16"]:
    """As exactly as what `device` multiplies two matrices of float32 now, measured on such a product.

    PyTorch's settings do not tell it: they have two sets of names, of which the one cannot be asked once the other was
    used, they differ between backends, and an environment variable changes their defaults.
    """
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    with torch.autocast(device.type, enabled=False):
        found = (one.to(device) @ other.to(device)).cpu()
    exact = one.double() @ other.double()
    off = float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    return "float32" if off < 1e-5 else "tf32" if off < 1e-3 else "bfloat16"


def product_dtype(operand: Tensor) -> torch.dtype:
    """What an operand of a matmul is when it is multiplied: its own dtype, or that of mixed precision."""
    kind = operand.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else operand.dtype
