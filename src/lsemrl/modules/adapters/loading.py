"""How a model takes an adapter, and what of it then is the adapter's."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor

from lsemrl.modules.adapters.embeddings import take_embeddings
from lsemrl.types import UserError

TRAINED, REFERENCE = "default", "reference"
"""Names of adapters: the one that is trained, and a frozen copy that it is held against."""

_RANKED = {"lora_A": 0, "lora_B": 1, "lora_embedding_A": 0, "lora_embedding_B": 1}
"""The dimension of a factor that is the rank."""


def attach(model: Any, config: LoraConfig, field: str) -> PeftModel:
    """Give a model an adapter as its configuration draws it.

    Args:
        model: Changed.
        config: Of the adapter.
        field: Where the user named it.

    Raises:
        UserError: It fits no layer of the model.
    """
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{field} does not fit policy.model: {reason}; name layers that it has") from error
    trained = list(adapter_tensors(adapted).values())
    if not trained:
        raise UserError(f"{field} adapts nothing of policy.model; name layers that it has")
    nested = [
        name
        for name, module in adapted.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper) and any(key.count("lora_") for key in module.state_dict())
    ]
    places = Counter(weight.data_ptr() for weight in {id(one): one for one in trained}.values())
    if nested or max(places.values()) > 1:
        what = f"adapts what is inside {nested[0]}" if nested else "ties factors of embeddings to those of the head"
        raise UserError(
            f"{field} {what}, of which it is not proven that it is trained here as peft trains it; name either in "
            "modules_to_save alone"
        )
    return adapted


def read_adapter(
    model: Any, config: LoraConfig, tensors: dict[str, Tensor], tokens: int, folder: Path
) -> tuple[PeftModel, bool]:
    """Give a model the adapter of a folder.

    Args:
        model: As published; changed.
        config: Of the adapter.
        tensors: Of the adapter, by the keys of its file.
        tokens: How many the tokenizer has.
        folder: As errors name it.

    Returns:
        The adapted model, and whether it now has other rows of embeddings than the published one.

    Raises:
        UserError: What the folder holds is not exactly what its configuration makes of this model.
    """
    own, resized = take_embeddings(model, config, tensors, tokens, folder)
    adapted = attach(model, config, f"policy.adapter {str(folder)!r}")
    _fill(adapted, own, folder)
    return adapted, resized


def adapter_tensors(model: Any, name: str = TRAINED, *, embeddings: bool = False) -> dict[str, Tensor]:
    """What of a model belongs to an adapter: the weights themselves, by the keys that peft gives them in a file.

    Args:
        model: Carries the adapter.
        name: Of the adapter.
        embeddings: With the base's own embeddings, as they go along where they were resized.
    """
    tensors: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=model.state_dict(keep_vars=True), adapter_name=name, save_embedding_layers=embeddings
    )
    return tensors


def _fill(model: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Read tensors into the adapter that is trained, by peft's own way, and see that each of its weights came of them.

    Args:
        model: Carries the adapter, as its configuration draws it.
        tensors: By the keys of its file, finite.
        folder: Of the adapter, as errors name it.

    Raises:
        UserError: They are not exactly the tensors that the adapter has.
    """
    own = adapter_tensors(model)
    for key, value in tensors.items():
        if key in own and value.shape != own[key].shape:
            raise UserError(_misfit(folder, key, tuple(value.shape), tuple(own[key].shape)))
    theirs = [key for key in model.state_dict() if key in tensors and key not in own]
    if theirs:
        raise UserError(
            f"policy.adapter {str(folder)!r} holds weights of the base itself, such as {theirs[0]}, which peft would "
            "put there; merge it into its model with peft, and name that as policy.model"
        )
    with torch.no_grad():
        for weight in own.values():
            weight.fill_(torch.nan)
    missing, more = sorted(own.keys() - tensors.keys()), set[str]()
    try:
        result: Any = set_peft_model_state_dict(model, dict(tensors))
        more = set(result.unexpected_keys)
        missing = [key for key, weight in adapter_tensors(model).items() if weight.isnan().any()]
    except (KeyError, RuntimeError, ValueError) as error:
        if not missing:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"policy.adapter {str(folder)!r} belongs to another base model ({reason}); set policy.model to the "
                "model it was trained on"
            ) from error
    if missing:
        raise UserError(
            f"policy.adapter {str(folder)!r} lacks {len(missing)} of the {len(own)} tensors that its "
            f"adapter_config.json says it has in policy.model, such as {missing[0]}; export it again, or set "
            "policy.model to the model it was trained on"
        )
    if more:
        raise UserError(
            f"policy.adapter {str(folder)!r} holds {len(more)} tensors that its adapter_config.json and policy.model "
            f"have no place for, such as {min(more)}: it belongs to another base model, or its files to two adapters; "
            "set policy.model to the model it was trained on"
        )


def add_reference(model: PeftModel) -> None:
    """A frozen copy of the adapter that is trained."""
    model.add_adapter(REFERENCE, copy.deepcopy(model.peft_config[TRAINED]))
    model.set_adapter(TRAINED)
    reference = adapter_tensors(model, REFERENCE)
    for key, weight in adapter_tensors(model).items():
        reference[key].requires_grad_(False)
        reference[key].data.copy_(weight.data)


def reference_of(model: PeftModel) -> dict[Tensor, Any]:
    """What each weight of the frozen copy is a copy of; empty where there is none."""
    if REFERENCE not in model.peft_config:
        return {}
    trained = adapter_tensors(model)
    return {weight: trained[key] for key, weight in adapter_tensors(model, REFERENCE).items()}


def _misfit(folder: Path, key: str, found: tuple[int, ...], needed: tuple[int, ...]) -> str:
    factor = next((part for part in key.split(".") if part in _RANKED), None)
    ranks = factor is not None and len(found) == len(needed) == 2
    if ranks and found[1 - _RANKED[factor]] == needed[1 - _RANKED[factor]]:  # type: ignore[index]
        return (
            f"policy.adapter {str(folder)!r} holds {key} of rank {found[_RANKED[factor]]}, and its "  # type: ignore[index]
            f"adapter_config.json says {needed[_RANKED[factor]]}; put the file beside it that was written with it"  # type: ignore[index]
        )
    return (
        f"policy.adapter {str(folder)!r} belongs to another base model: its {key} of shape {list(found)} fits no layer "
        f"of policy.model, which needs {list(needed)}; set policy.model to the model it was trained on"
    )
