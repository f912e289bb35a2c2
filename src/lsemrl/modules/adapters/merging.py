"""Adapters added to the weights they adapt: while nobody trains, or for good in a model that is exported."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from lsemrl.errors import reason_of
from lsemrl.modules.quantization import is_quantized, plain_linear, plain_weight
from lsemrl.types import UserError

_KEPT = 0.9
"""The share of an update that must survive rounding for merged weights to stand for it."""


@contextmanager
def merged_adapters(model: Any) -> Iterator[float | None]:
    """Inside, adapters are added to a copy of the weights they adapt: a third of the matmuls.

    Only where that loses little, which is factors beside linears, and rows that stand in for a base's rows. What else
    there is, such as magnitudes or biases, is computed as peft does. Sums are made in float32 and rounded once, to the
    dtype of the weights; half precision swallows small updates, so that a young adapter is not merged there. Weights
    of 4 bits are written out in the dtype that they compute in. The weights themselves are never written to. To be
    called without gradients.

    Yields:
        The share of the update that rounding leaves, as its projection on the whole; None where nothing is rounded.
    """
    merged: list[tuple[Any, Callable[[], None]]] = []  # with what takes it back
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        sums, kept = _sums(model)
    try:
        for layer, adapted in sums:
            base = layer.get_base_layer()
            if is_quantized(base.weight):
                merged.append((layer, partial(setattr, layer, "base_layer", base)))
                layer.base_layer = plain_linear(base, adapted)
            else:
                merged.append((layer, partial(setattr, base.weight, "data", base.weight.data)))
                base.weight.data = adapted
            layer.merged_adapters.append(layer.active_adapters[0])
        yield kept
    finally:
        for layer, take_back in reversed(merged):
            take_back()
            layer.merged_adapters.clear()


def adapted_weights(model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight that the adapter changes, as published and with the adapter; to be called without gradients."""
    for module in model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer):
            name = layer.active_adapters[0]
            weight = layer.get_param() if hasattr(layer, "get_param") else plain_weight(_weight(layer))
            if name in layer.lora_variant:
                yield weight, layer.lora_variant[name].merge_safe(layer, name, weight.detach().clone())
            else:
                yield weight, weight + layer.get_delta_weight(name)
        elif isinstance(module, ModulesToSaveWrapper):
            copied = dict(layer.modules_to_save[layer.active_adapters[0]].named_parameters())
            yield from ((weight, copied[name]) for name, weight in layer.original_module.named_parameters())
        elif isinstance(module, TrainableTokensLayer) and layer.tied_adapter is None:
            yield layer.base_layer.weight, layer.get_merged_weights(layer.active_adapters)


def merge_for_good(model: Any) -> Any:
    """The plain model that base and adapter make together; `model` is used up.

    Raises:
        UserError: No plain model computes the same.
    """
    shared = _users(model)
    for module in model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer) and shared[id(_weight(layer))] > 1:  # what is tied to it is not adapted
            layer.get_base_layer().weight = nn.Parameter(_weight(layer).detach().clone())
    try:
        return model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = reason_of(error)
        raise UserError(
            f"--merged: base and adapter make no plain model ({reason}); use the adapter instead"
        ) from error


def _sums(model: Any) -> tuple[list[tuple[Any, Tensor]], float | None]:
    """Layers with the weights that they may compute with instead of their own, and the share that rounding left."""
    shared, tokens = _users(model), defaultdict[int, list[Any]](list)
    linears: list[tuple[Any, Tensor]] = []
    products: list[Tensor] = []
    for module in model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer) and _is_plain(layer) and shared[id(_weight(layer))] == 1:
            weight, update = plain_weight(_weight(layer)), layer.get_delta_weight(layer.active_adapters[0])
            linears.append((layer, (weight + update).to(weight.dtype)))
            if weight.dtype != torch.float32:
                left = linears[-1][1] - weight.float()
                products.append(torch.stack([(left * update).sum(), update.square().sum()]))
        elif isinstance(module, TrainableTokensLayer) and _stands_in(layer):
            tokens[id(layer.base_layer.weight)].append(layer)
    kept = None
    if products:
        left_over, whole = torch.stack(products).sum(dim=0).tolist()
        kept = left_over / whole if whole else 1.0
    sums = linears if kept is None or kept >= _KEPT else []
    for rows_of, layers in tokens.items():
        if len(layers) == shared[rows_of] and len({id(layer.trainable_tokens_delta) for layer in layers}) == 1:
            rows = layers[0].get_merged_weights(layers[0].active_adapters)
            sums += [(layer, rows) for layer in layers]
    return sums, kept


def _users(model: Any) -> Counter[int]:
    """How many modules compute with a weight, by its identity."""
    return Counter(id(weight) for module in model.modules() if (weight := module._parameters.get("weight")) is not None)


def _weight(layer: Any) -> Any:
    return getattr(layer.get_base_layer(), "weight", None)


def _stands_in(layer: Any) -> bool:
    """Whether a layer of single rows would compute as it does with these rows in its weight."""
    plain = not isinstance(layer.base_layer.weight, DTensor) and getattr(layer.base_layer, "bias", None) is None
    return plain and not layer.disable_adapters and bool(layer.active_adapters)


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        not layer.disable_adapters
        and len(layer.active_adapters) == 1
        and layer.active_adapters[0] in layer.lora_A
        and isinstance(base, nn.Linear | Conv1D)
        and layer.lora_A[layer.active_adapters[0]].weight.dtype == torch.float32
        and not isinstance(base.weight, DTensor)
        and not layer.lora_variant
        and not layer.lora_bias.get(layer.active_adapters[0], False)
    )
