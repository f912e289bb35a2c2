"""How a model takes an adapter, and what of it then is the adapter's."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from lsemrl.errors import reason_of
from lsemrl.modules.adapters.embeddings import take_embeddings
from lsemrl.modules.adapters.summing import sum_once
from lsemrl.modules.families import lora_targets
from lsemrl.modules.policy_settings import LoraSettings
from lsemrl.modules.quantization import is_quantized
from lsemrl.types import UserError

TRAINED, REFERENCE = "default", "reference"
"""Names of adapters: the one that is trained, and a frozen copy that it is held against."""

_MISFITS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)

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
    except (*_MISFITS, re.error) as error:
        reason = reason_of(error)
        remedy = "set its dropout to 0" if "lora_dropout" in reason else "name layers that it has"
        raise UserError(f"{field} does not fit policy.model: {reason}; {remedy}") from error
    trained = {id(weight): weight for weight in adapter_tensors(adapted).values()}
    if not trained:
        raise UserError(f"{field} adapts nothing of policy.model; name layers that it has")
    places = [weight.data_ptr() for weight in trained.values() if not weight.is_meta]  # none has one in an estimate
    if len(set(places)) < len(places):
        raise UserError(
            f"{field} ties factors of embeddings to those of the head, of which it is not proven that they are trained "
            "here as peft trains them; name the embeddings in modules_to_save instead"
        )
    sum_once(adapted)
    return adapted


def new_adapter(model: Any, config: LoraConfig, settings: LoraSettings) -> PeftModel:
    """Give a model the adapter of `settings`, which changes nothing yet.

    Raises:
        UserError: A name or a token is none of the model's.
    """
    names = [name for name, _ in model.named_modules()]
    for field in ("target_modules", "modules_to_save"):
        for each in getattr(settings, field) or ():
            if not any(f".{name}".endswith(f".{each}") for name in names):
                raise UserError(f"policy.lora.{field} names {each!r}, which no module of policy.model is called")
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = [token for token in settings.trainable_token_indices or () if token >= rows]
    if beyond:
        raise UserError(
            f"policy.lora.trainable_token_indices names {beyond[0]}, and policy.model has {rows} rows of embeddings; "
            "resize the model and save it, and name that as policy.model"
        )
    targets, outside = lora_targets(model)
    if settings.target_modules is None and targets is not None:
        config.target_modules = targets  # type: ignore[assignment]  # as peft keeps what it was given as a list
    config.exclude_modules = outside
    return attach(model, config, "policy.lora")


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


def _fill(model: PeftModel, tensors: dict[str, Tensor], folder: Path) -> None:
    """Read tensors into the adapter by peft's own way, and see that all its weights came of them and all were read."""
    own = adapter_tensors(model)
    for key, value in tensors.items():
        if key in own and value.shape != own[key].shape:
            raise UserError(_misfit(folder, key, tuple(value.shape), tuple(own[key].shape)))
    # What peft writes a second time where it writes embeddings along, and does not read.
    second = {key: value for key, value in adapter_tensors(model, embeddings=True).items() if key not in own}
    copies = {key: tensors.pop(key) for key in second if key in tensors}
    of_base = [key for key in model.state_dict() if key in tensors and key not in own]
    with torch.no_grad():
        for weight in own.values():
            weight.fill_(torch.nan)
    missing, more = sorted(own.keys() - tensors.keys()), of_base
    try:
        result: Any = set_peft_model_state_dict(model, {key: tensors[key] for key in tensors if key not in of_base})
        more += result.unexpected_keys
        missing = [key for key, weight in adapter_tensors(model).items() if weight.isnan().any()]
    except (KeyError, RuntimeError, ValueError) as error:
        if not missing:
            reason = reason_of(error)
            raise UserError(
                f"policy.adapter {str(folder)!r} belongs to another base model ({reason}); set policy.model to the "
                "model it was trained on"
            ) from error
    more += [key for key, value in copies.items() if not torch.equal(value.to(second[key].dtype), second[key])]
    if missing:
        raise UserError(
            f"policy.adapter {str(folder)!r} lacks {len(missing)} of the {len(own)} tensors that its "
            f"adapter_config.json says it has in policy.model, such as {missing[0]}; export it again, or set "
            "policy.model to the model it was trained on"
        )
    if more:
        raise UserError(
            f"policy.adapter {str(folder)!r} holds {len(more)} tensors that its adapter_config.json has no place for "
            f"in policy.model, such as {more[0]}: it belongs to another base model, or its files to two adapters; set "
            "policy.model to the model it was trained on"
        )


def add_reference(model: PeftModel) -> None:
    """A frozen copy of the adapter that is trained.

    Raises:
        UserError: peft puts no second one beside it.
    """
    try:
        model.add_adapter(REFERENCE, copy.deepcopy(model.peft_config[TRAINED]))
    except _MISFITS as error:
        raise UserError(
            f"policy.reference is initial, and peft puts no copy of this adapter beside it ({reason_of(error)}); set "
            "policy.reference to base, or to none"
        ) from error
    model.set_adapter(TRAINED)
    reference = adapter_tensors(model, REFERENCE)
    for key, weight in adapter_tensors(model).items():
        reference[key].requires_grad_(False)
        reference[key].data.copy_(weight.data)


@contextmanager
def reference_on(model: PeftModel) -> Iterator[None]:
    """Inside, the frozen copy computes, in place of the adapter that is trained."""
    model.set_adapter(REFERENCE, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(TRAINED)


def reference_of(model: PeftModel) -> dict[Tensor, Any]:
    """What each weight of the frozen copy is a copy of; empty where there is none."""
    if REFERENCE not in model.peft_config:
        return {}
    trained = adapter_tensors(model)
    return {weight: trained[key] for key, weight in adapter_tensors(model, REFERENCE).items()}


def check_shardable(model: Any) -> None:
    """Refuse an adapter of embeddings or head, which compute with weights that are spread over ranks, and 4 bits."""
    if any(map(is_quantized, model.parameters())):
        raise UserError(
            "policy.quantization is nf4, and weights of 4 bits are not spread over ranks; train with configs/ddp.yaml, "
            "or set it to null"
        )
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise UserError(
            "the adapter adapts embeddings or head, which is not proven with sharded weights; train with "
            "configs/ddp.yaml, or a plain LoRA on the layers between"
        )


def _misfit(folder: Path, key: str, found: tuple[int, ...], needed: tuple[int, ...]) -> str:
    rank = next((_RANKED[part] for part in key.split(".") if part in _RANKED), None)
    if rank is not None and len(found) == len(needed) == 2 and found[1 - rank] == needed[1 - rank]:
        return (
            f"policy.adapter {str(folder)!r} holds {key} of rank {found[rank]}, and its adapter_config.json says "
            f"{needed[rank]}; put the file beside it that was written with it"
        )
    return (
        f"policy.adapter {str(folder)!r} belongs to another base model: its {key} of shape {list(found)} fits no layer "
        f"of policy.model, which needs {list(needed)}; set policy.model to the model it was trained on"
    )
