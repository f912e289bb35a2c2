"""Adapters added to the weights they adapt: while nobody trains, or for good in a model that is exported."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from lsemrl.errors import reason_of
from lsemrl.kernels.products import is_large, linear, multiply, packed
from lsemrl.matmul import product_dtype
from lsemrl.modules.quantization import is_quantized, plain_linear, plain_weight
from lsemrl.types import UserError


@contextmanager
def merged_adapters(model: Any, onednn: bool = False) -> Iterator[None]:
    """Inside, adapters are added to a copy of the weights they adapt: a third of the matmuls.

    Only where the sum computes the same, which is factors beside linears, and rows that stand in for a base's rows.
    What else there is, such as magnitudes or biases, is computed as peft does. Sums are made in float32 and `rounded`
    once, to what the weights are multiplied in. Weights of 4 bits are written out in the dtype that they compute in.
    In mixed precision the linears beside them are there in its dtype too, which else were cast with every token.
    The weights themselves are never written to. To be called without gradients.

    Args:
        model: Any.
        onednn: Compute linears by `lsemrl.kernels.products`, with packed copies; a step cannot be compiled then.
    """
    sums, casts = _sums(model, onednn), [(each, each.weight.to(product_dtype(each.weight))) for each in recast(model)]
    with ExitStack() as taken_back:
        for layer, adapted in sums:
            base = layer.get_base_layer()
            if isinstance(adapted, nn.Module):
                taken_back.callback(setattr, layer, "base_layer", base)
                layer.base_layer = adapted
            elif adapted.is_mkldnn:
                taken_back.callback(delattr, layer, "forward")
                layer.forward = partial(multiply, weight_NK=adapted, bias_N=base.bias)
            else:
                taken_back.callback(setattr, base.weight, "data", base.weight.data)
                base.weight.data = adapted
            taken_back.callback(layer.merged_adapters.clear)
            layer.merged_adapters.append(layer.active_adapters[0])
        for each, cast in casts:
            taken_back.callback(setattr, each, "weight", each.weight)
            each.weight = nn.Parameter(cast, requires_grad=False)  # not its data, which embeddings may be tied to
        for each in _large_linears(model) if onednn else ():
            taken_back.callback(delattr, each, "forward")
            each.forward = partial(linear, weight_NK=each.weight, bias_N=each.bias)
        yield


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


def merge_for_good(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The plain model that base and adapter make together; `model` is used up.

    Args:
        model: In float32.
        dtype: What the plain model is in. The sums are `rounded` to it, as those of `merged_adapters` are.

    Raises:
        UserError: No plain model computes the same.
    """
    shared = _users(model)
    for module in model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer) and shared[id(_weight(layer))] > 1:  # what is tied to it is not adapted
            layer.get_base_layer().weight = nn.Parameter(_weight(layer).detach().clone())
    with torch.no_grad():  # merging puts sums into the parameters of the base, or its own copies in their place
        changed = [sum_ if isinstance(sum_, nn.Parameter) else weight for weight, sum_ in adapted_weights(model)]
    try:
        plain = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(
            f"--merged: base and adapter make no plain model ({reason}); use the adapter instead"
        ) from error
    generator = torch.Generator(plain.device).manual_seed(0)
    for weight in dict.fromkeys(changed):  # a copy that was kept tied is there twice
        weight.data = rounded(weight.data, dtype, generator)
    return plain.to(dtype)


def recast(model: Any, dtype: torch.dtype | None = None) -> list[Any]:
    """Linears without an adapter whose weights mixed precision casts with every product.

    Args:
        model: Any.
        dtype: That of mixed precision; None for that of the region that is entered.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapted = {part for layer in layers for part in layer.modules()}
    return [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module not in adapted and not isinstance(module.weight, DTensor)
        if module.weight.dtype != (dtype or product_dtype(module.weight))
    ]


def is_matrix(layer: Any) -> bool:
    """Whether what an adapted layer computes is one matrix: its own, and the product of the factors, added up."""
    return (
        isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


def is_plain(layer: Any) -> bool:
    """Whether an adapted layer is one matrix with the one adapter that is active, be it switched on or off."""
    return (
        len(layer.active_adapters) == 1
        and layer.active_adapters[0] in layer.lora_A
        and is_matrix(layer)
        and layer.lora_A[layer.active_adapters[0]].weight.dtype == torch.float32
        and not isinstance(layer.get_base_layer().weight, DTensor)
    )


def rounded(sum_: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A float32 sum in `dtype`: in bfloat16 up or down by chance, so that it is the sum on the average.

    The nearest would leave an update that is small beside its weight out altogether, in all weights at once; by chance
    some weights move by a whole step instead of all by a small one, and what many of them make together is the same.

    Args:
        sum_: float32, of any shape.
        dtype: float32, which is returned as it is, or bfloat16.
        generator: On the device of the sum.
    """
    if dtype == torch.float32:
        return sum_
    assert dtype == torch.bfloat16  # whose numbers are float32's without the lower half of their bits
    below = torch.randint(2**16, sum_.shape, generator=generator, device=sum_.device, dtype=torch.int32)
    return ((sum_.view(torch.int32) + below) & -(2**16)).view(torch.float32).to(dtype)


def _large_linears(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module) is nn.Linear and is_large(module.weight)]


def _sums(model: Any, onednn: bool) -> list[tuple[Any, Tensor | nn.Module]]:
    """Layers with the weights, or the base layers, that they may compute with instead of their own."""
    shared, tokens = _users(model), defaultdict[int, list[Any]](list)
    sums: list[tuple[Any, Tensor | nn.Module]] = []
    head = model.get_output_embeddings()  # of which others read the weight
    # The same chances every time: a run that goes on draws what it would have drawn, and all ranks the same.
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for module in model.modules():
        layer: Any = module
        on = isinstance(module, LoraLayer) and is_plain(layer) and not layer.disable_adapters
        if on and shared[id(_weight(layer))] == 1:
            weight = plain_weight(_weight(layer))
            dtype = product_dtype(weight)
            with torch.autocast(weight.device.type, enabled=False):
                update = layer.get_delta_weight(layer.active_adapters[0])
            sum_, base = rounded(weight.to(dtype) + update, dtype, generator), layer.get_base_layer()
            if is_quantized(base.weight):
                sums.append((layer, plain_linear(base, sum_)))
            elif onednn and type(base) is nn.Linear and layer is not head and is_large(sum_):
                sums.append((layer, packed(sum_)))
            else:
                sums.append((layer, sum_))
        elif isinstance(module, TrainableTokensLayer) and _stands_in(layer):
            tokens[id(layer.base_layer.weight)].append(layer)
    for rows_of, layers in tokens.items():
        if len(layers) == shared[rows_of] and len({id(layer.trainable_tokens_delta) for layer in layers}) == 1:
            rows = layers[0].get_merged_weights(layers[0].active_adapters)
            sums += [(layer, rows) for layer in layers]
    return sums


def _users(model: Any) -> Counter[int]:
    """How many modules compute with a weight, by its identity."""
    return Counter(id(weight) for module in model.modules() if (weight := module._parameters.get("weight")) is not None)


def _weight(layer: Any) -> Any:
    return getattr(layer.get_base_layer(), "weight", None)


def _stands_in(layer: Any) -> bool:
    """Whether a layer of single rows would compute as it does with these rows in its weight."""
    plain = not isinstance(layer.base_layer.weight, DTensor) and getattr(layer.base_layer, "bias", None) is None
    return plain and not layer.disable_adapters and bool(layer.active_adapters)
