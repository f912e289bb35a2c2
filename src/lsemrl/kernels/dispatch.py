"""Which kernels serve a tensor."""

from __future__ import annotations

import importlib
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from lsemrl.kernels import torch_kernels

Backend = Literal["auto", "triton", "torch"]


class Kernels(Protocol):
    """The two passes over a chunk of logits: `torch_kernels` and `triton_kernels` are modules of this form.

    Both see logits x before temperature; z = (x - row's largest x) * inverse_temperature, in float32, never below
    -200, where exp(z) is 0 in float32 but exp(z) * z is no NaN.
    """

    def sum_rows(self, logits_CV: Tensor, targets_C: Tensor, inverse_temperature: float, sums_4C: Tensor) -> Tensor:
        """Write what log-probability, entropy and gradient of each row are made of.

        Args:
            logits_CV: float32, bfloat16 or float16; columns adjacent, rows any distance apart. Not to be read again.
            targets_C: int64, adjacent.
            inverse_temperature: > 0.
            sums_4C: float32, adjacent columns. Gets the largest logit; z of the target (here without the bound); the
                sum of exp(z) and the sum of exp(z) * z, both over all ids but the target. Leaving the target out
                keeps 1 - p exact where p rounds to 1.

        Returns:
            What `make_gradient` takes, [C, V]: the logits themselves, or what was made of them on the way.
        """

    def make_gradient(
        self, kept_CV: Tensor, targets_C: Tensor, inverse_temperature: float, terms_3C: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """The gradient of the loss with respect to the logits, in their place where the dtype allows.

        Args:
            kept_CV: What `sum_rows` returned; overwritten.
            targets_C: As there.
            inverse_temperature: As there.
            terms_3C: float32, adjacent columns: the largest logit; the factor of exp(z) away from the target; the
                gradient at the target.
            dtype: Of the gradient.

        Returns:
            `dtype` [C, V], columns adjacent.
        """


def kernels_for(backend: Backend, device: torch.device) -> Kernels:
    """The kernels that serve tensors of `device`.

    Raises:
        ValueError: No such backend, or Triton was asked for where it cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}: choose one of {', '.join(get_args(Backend))}")
    # Triton is made for GPUs from Ampere on, which have bfloat16, too; before, it does not compile what is in it.
    at_home = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if backend == "torch" or (backend == "auto" and not at_home):
        return torch_kernels
    try:
        triton_kernels = importlib.import_module("lsemrl.kernels.triton_kernels")
    except ImportError as error:
        if backend == "auto":
            return torch_kernels
        raise ValueError("backend is 'triton', which is not installed: install it, or choose 'torch'") from error
    if device.type != "cuda" and not triton_kernels.INTERPRETED:
        raise ValueError(f"backend is 'triton' and the tensors are on {device}: move them to CUDA, or choose 'torch'")
    return cast(Kernels, triton_kernels)
