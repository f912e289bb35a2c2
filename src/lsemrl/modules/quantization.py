"""A base in 4 bits: read so, told from others, and written out as the plain model that it computes as.

The linears of the layers hold NF4 (QLoRA, arXiv 2305.14314) and compute in the dtype of the policy, by bitsandbytes.
The rounded model is the base in everything: what is trained, sampled from, measured and exported has the same weights,
so that no log-prob is of a model that nobody deploys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig


def in_four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers reads a model by, to compute in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_layout(model: nn.Module) -> None:
    """Leave weights as they were read.

    On some CPUs bitsandbytes packs them anew for inference, in bfloat16 whatever the dtype: completions would be drawn
    from another model than the one that learns.
    """
    for module in model.modules():
        if is_quantized(getattr(module, "weight", None)):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(weight: Any) -> bool:
    """Whether it holds 4 bits a number."""
    return getattr(weight, "quant_state", None) is not None


def plain_weight(weight: Any) -> Tensor:
    """The weight as it computes: of 4 bits, its numbers [out, in] in the dtype that it computes in."""
    if not is_quantized(weight):
        return weight  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def plain_size(weight: Any) -> int:
    """Bytes of `plain_weight`."""
    if not is_quantized(weight):
        return int(weight.nbytes)
    return int(weight.quant_state.shape.numel() * weight.quant_state.dtype.itemsize)


def plain_linear(linear: Any, weight: Tensor) -> nn.Linear:
    """A linear like one of 4 bits that computes with a plain weight [out, in]."""
    made = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    made.weight, made.bias = nn.Parameter(weight, requires_grad=False), linear.bias
    return made


def written_out(model: Any) -> Any:
    """The plain model in float32 that one of 4 bits computes as; `model` is used up."""
    return model.dequantize().float()
