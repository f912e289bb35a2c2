"""Adapters added to the weights they adapt, for as long as nobody trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.tensor import DTensor


@contextmanager
def merged_adapters(model: Any) -> Iterator[None]:
    """Inside, adapters are added to a copy of the weights they adapt: a third of the matmuls.

    Only in float32, where the sum loses nothing that matters; elsewhere the adapters stay beside the weights, which
    would swallow small updates. The weights themselves are never written to. To be called without gradients.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    layers = [layer for layer in layers if not layer.disable_adapters]
    plain = all(
        isinstance(layer.get_base_layer(), nn.Linear)
        and layer.get_base_layer().weight.dtype == torch.float32
        and not isinstance(layer.get_base_layer().weight, DTensor)
        and not layer.lora_variant
        for layer in layers
    )
    if not layers or not plain:
        yield
        return
    weights = [layer.get_base_layer().weight for layer in layers]
    own = [weight.data for weight in weights]
    summed = [
        weight + layer.get_delta_weight(layer.active_adapters[0]) for weight, layer in zip(own, layers, strict=True)
    ]
    with model.disable_adapter():
        try:
            for weight, data in zip(weights, summed, strict=True):
                weight.data = data
            yield
        finally:
            for weight, data in zip(weights, own, strict=True):
                weight.data = data
