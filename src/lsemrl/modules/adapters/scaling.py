"""A finished adapter at a part of its strength: base + scale * (trained - base), weight by weight.

Which is exact for the factors of a LoRA, since they are multiplied into one update (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor

from lsemrl.modules.adapters.loading import TRAINED, adapter_tensors
from lsemrl.types import UserError

_FIRST = ("lora_A", "lora_embedding_A")


@torch.no_grad()
def scale_adapter(model: Any, scale: float, folder: str, *, resized: bool) -> None:
    """Bring what the adapter changes to `scale` of it.

    Args:
        model: Carries the adapter; its factors, rows and modules are changed, the base is not.
        scale: In [0, 1].
        folder: The adapter's, as errors name it.
        resized: Whether it brought rows of embeddings that the base has not.

    Raises:
        UserError: A part of it is no plain difference from the base, such as DoRA's magnitudes.
    """
    scaled: set[int] = set()

    def to_scale(weight: Tensor, base: Tensor | float = 0.0) -> None:
        if id(weight) in scaled:  # two embeddings that are tied
            return
        weight.copy_(base + scale * (weight - base))
        scaled.add(id(weight))

    for module in model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer) and TRAINED not in layer.lora_variant:
            # The second factors carry the scale, the first ones stay.
            for weight in layer.lora_B[TRAINED].parameters() if TRAINED in layer.lora_B else ():
                to_scale(weight)
            if TRAINED in layer.lora_embedding_B:
                to_scale(layer.lora_embedding_B[TRAINED])
        elif isinstance(module, ModulesToSaveWrapper):
            base = dict(layer.original_module.named_parameters())
            for name, weight in layer.modules_to_save[TRAINED].named_parameters():
                to_scale(weight, base[name])
        elif isinstance(module, TrainableTokensLayer) and layer.tied_adapter is None:
            rows = layer.base_layer.weight[layer.token_indices[TRAINED]]
            to_scale(layer.trainable_tokens_delta[TRAINED], rows)
    rest = [
        key
        for key, weight in adapter_tensors(model).items()
        if id(weight) not in scaled and not any(f".{part}." in f".{key}." for part in _FIRST)
    ]
    rest += ["rows of embeddings that its base has not"] if resized else []
    if rest:
        raise UserError(
            f"policy.adapter_scale is {scale}, but policy.adapter {folder!r} has {rest[0]}, which is no plain "
            "difference from the base; leave it at 1"
        )
