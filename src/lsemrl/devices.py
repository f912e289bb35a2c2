"""Where is computed: on a CPU or on a CUDA device, which PyTorch calls AMD's GPUs, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsemrl.errors import UserError

if TYPE_CHECKING:
    import torch


def computing_device(name: str | None = None, field: str = "device") -> torch.device:
    """The device of a name, or a GPU where there is one.

    Args:
        name: Such as cpu, cuda or cuda:1; None for the first CUDA device, or the CPU where there is none.
        field: What the user calls it.

    Raises:
        UserError: There is no such device here, or it is of a kind on which nothing was tried, such as mps, where
            sampling finds no float64.
    """
    import torch  # for which words that cannot be do not wait

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{field} is {name!r}; choose cpu, cuda, or cuda:1 and so on")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"{field} is {name!r}, but torch sees {count or 'no'} CUDA device{'s' * (count != 1)} here")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes bfloat16 itself: NVIDIA's do from Ampere on."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def slow_dtype(dtype: str, device: torch.device) -> str:
    """What to say of a policy's dtype on a device; "" where it is computed as fast as any."""
    if dtype != "bfloat16" or device.type != "cuda" or has_bfloat16(device):
        return ""
    return "this GPU does not compute bfloat16 itself, which makes it slow; set policy.dtype to float32"
