"""The rows of tokens: embeddings and head, where an adapter trains them, or was trained with other rows than the base.

Whoever teaches a model a new script adds tokens to its tokenizer, and rows for them to its embeddings. The base then
is the published model with these rows beside its own, as the adapter's folder has them or else their mean.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn.functional import linear

from lsemrl.matmul import product_dtype
from lsemrl.types import UserError

log = logging.getLogger(__name__)

_PREFIX = "base_model.model."
_BASES = ("base_layer.", "original_module.", "token_adapter.base_layer.")
"""Before the name of a base weight, where peft has wrapped its module."""


def take_embeddings(
    model: Any, config: LoraConfig, tensors: dict[str, Tensor], tokens: int, folder: Path
) -> tuple[dict[str, Tensor], bool]:
    """Give a model the rows that an adapter was trained with, before it takes the adapter.

    Args:
        model: As published; changed.
        config: Of the adapter.
        tensors: Of the adapter, by the keys of its file.
        tokens: How many the tokenizer has.
        folder: Of the adapter, as errors name it.

    Returns:
        The tensors that are the adapter's own, and whether the model now has other rows.

    Raises:
        UserError: The rows are not those of the tokenizer, cannot be known, or would change the base.
    """
    own, saved = _split(model, config, tensors)
    had = _rows(model)
    rows = _rows_of(model, tensors) or _reached(model, config, had)
    tokens = max(tokens, _highest(config) + 1)
    if rows != had:
        if tokens > rows:
            raise UserError(
                f"policy.adapter {str(folder)!r} was trained with {rows} rows of embeddings and the "
                f"tokenizer has {tokens} tokens; put the tokenizer it was trained with into its folder"
            )
        log.warning(
            "policy.adapter %s was trained with %d rows of embeddings, policy.model has %d: it is given those",
            folder,
            rows,
            had,
        )
        model.resize_token_embeddings(rows, mean_resizing=False)
    elif tokens > rows:
        raise UserError(
            f"the tokenizer of policy.adapter {str(folder)!r} has {tokens} tokens, and neither the adapter nor "
            f"policy.model has more than {rows} rows of embeddings: those of the new tokens were not saved; save the "
            "adapter with save_embedding_layers=True, or name the resized model as policy.model"
        )
    with torch.no_grad():
        for weight, names in _names(model).items():
            _fill(weight, names, had, saved, folder)
    return own, rows != had


def head_weight(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight [V, H] and bias [V] with which an output head computes just now, in the graph of what is trained.

    None where it computes otherwise than as one matrix, such as behind dropout.
    """
    if isinstance(module, ModulesToSaveWrapper):
        off = module.disable_adapters or not module.active_adapters
        return head_weight(module.original_module if off else module.modules_to_save[module.active_adapters[0]])
    if isinstance(module, TrainableTokensWrapper):
        if module.disable_adapters or not module.active_adapters:
            return head_weight(module.original_module)
        layer: Any = module.token_adapter
        return (layer.base_layer.weight if layer.merged else layer.get_merged_weights(layer.active_adapters)), None
    return (module.weight, module.bias) if type(module) is nn.Linear else None


def output_head(model: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] of a model's head, in `dtype` or as mixed precision would have them.

    Only of a model whose head is one matrix, see `head_weight`.
    """
    found = head_weight(model.get_output_embeddings())
    assert found is not None  # else the way chosen would be through the model's own logits
    weight_VH, bias_V = found
    if dtype is None:
        dtype = product_dtype(weight_VH)
    return weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)


def head_logits(states_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    """What a head makes of hidden states [M, V], in the dtype of its weight whatever mixed precision would have."""
    with torch.autocast(weight_VH.device.type, enabled=False):
        return linear(states_MH, weight_VH, bias_V)


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Input and output embeddings by name; one where they are the same module."""
    wanted = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for name, module in model.named_modules():
        if id(module) in wanted:
            yield name, module


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _rows_of(model: Any, tensors: dict[str, Tensor]) -> int | None:
    """Rows of embeddings in an adapter's file."""
    for name, _ in _modules(model):
        for key, value in tensors.items():
            rest = key.removeprefix(f"{_PREFIX}{name}.")
            if rest == key or not rest.endswith(("weight", "lora_embedding_A")) or "lora_A" in rest:
                continue
            return int(value.shape[1 if rest == "lora_embedding_A" else 0])
    return None


def _highest(config: LoraConfig) -> int:
    """The highest token whose row is trained by itself, or -1."""
    chosen = config.trainable_token_indices or []
    lists = chosen.values() if isinstance(chosen, dict) else [chosen]
    return max((index for each in lists for index in each), default=-1)


def _reached(model: Any, config: LoraConfig, had: int) -> int:
    """Rows of a model whose new ones are all trained by themselves, so that nothing else need be known of them."""
    chosen = config.trainable_token_indices or []
    rows, new = _highest(config) + 1, set(range(had, _highest(config) + 1))
    modules = list(_modules(model))
    if isinstance(chosen, dict):
        trained = [set().union(*(chosen[key] for key in chosen if name.endswith(key))) for name, _ in modules]
    else:  # of the input, and of a head that is tied to it
        tied = len({id(module.weight) for _, module in modules}) == 1
        trained = [set(chosen) if tied else set()]
    return max(had, rows) if all(new <= each for each in trained) else had


def _split(model: Any, config: LoraConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapter's own tensors, and the base's weights of embeddings that peft wrote along, by their names there."""
    own, saved = dict(tensors), dict[str, Tensor]()
    whole = {name for name, _ in _modules(model) if any(name.endswith(each) for each in config.modules_to_save or ())}
    for name, _ in _modules(model):
        trained = name in whole or (whole and config.ensure_weight_tying)
        for key in tensors:
            rest = key.removeprefix(f"{_PREFIX}{name}.")
            if rest == key:
                continue
            base = next((rest.removeprefix(each) for each in _BASES if rest.startswith(each)), None)
            if base is None and rest in ("weight", "bias") and not trained:
                base = rest
            if base is not None:
                saved[f"{name}.{base}"] = own.pop(key)
    return own, saved


def _names(model: Any) -> dict[nn.Parameter, list[str]]:
    """What each weight of input and output embeddings is called; one that ties them has two names."""
    names = defaultdict[nn.Parameter, list[str]](list)
    for name, module in _modules(model):
        for kind, weight in module.named_parameters(recurse=False):
            names[weight].append(f"{name}.{kind}")
    return names


def _fill(weight: nn.Parameter, names: list[str], had: int, saved: dict[str, Tensor], folder: Path) -> None:
    """Give new rows their values, and see that the old ones are those that were saved."""
    common, found = min(had, len(weight)), {name: saved[name] for name in names if name in saved}
    if not found:
        weight[common:] = weight[:common].float().mean(dim=0).to(weight.dtype)
    for name, value in found.items():
        same = value.shape == weight.shape and (
            torch.equal(value[:common].to(weight.dtype), weight[:common])
            or torch.equal(value[:common], weight[:common].to(value.dtype))
        )
        if not same:
            raise UserError(
                f"policy.adapter {str(folder)!r} holds {name} whole, with other values than policy.model's, which peft "
                "would put into the base itself; train such rows as modules_to_save, or merge the adapter into its "
                "model with peft and name that as policy.model"
            )
        weight[common:] = value[common:].to(weight.dtype)
