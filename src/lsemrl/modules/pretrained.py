"""What is read and written beside a model's weights: its tokenizer, and adapters with the model they are of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from lsemrl.data.collate import complete_tokenizer
from lsemrl.types import UserError

PASSPORT = "lsemrl.json"
"""In an adapter's folder: which base model it was trained on."""


def fingerprint(model: nn.Module) -> str:
    """A short hash that tells one base model from another, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:64].to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_config_and_tokenizer(path: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """What a model is, and its tokenizer, ready to end and pad texts.

    Raises:
        UserError: They cannot be read, or nothing says how a text ends.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"policy.model is {path!r}, which cannot be read as a causal language model with its tokenizer ({reason}); "
            "name a folder or hub id that holds both"
        ) from error
    complete_tokenizer(tokenizer, _declared_eos(path, config))
    tokenizer.padding_side = "left"
    return config, tokenizer


def _declared_eos(path: str, config: PretrainedConfig) -> list[int]:
    """The ids that end a text by what the model says of itself, its generation's settings first."""
    declared: list[int] = []
    with contextlib.suppress(OSError, ValueError):  # few models lack the file, and they may
        declared += as_ids(GenerationConfig.from_pretrained(path).eos_token_id)
    return [*declared, *as_ids(config.get_text_config().eos_token_id)]


def as_ids(declared: int | list[int] | None) -> list[int]:
    """What a configuration holds of one id, several or none."""
    return declared if isinstance(declared, list) else [] if declared is None else [declared]


def check_adapter(folder: Path, model: nn.Module, base_fingerprint: str) -> None:
    """Refuse an adapter whose factors do not fit `model`, or that says it was trained on another."""
    passport = folder / PASSPORT
    if passport.is_file():
        expected = json.loads(passport.read_text())
        if expected["base_fingerprint"] != base_fingerprint:
            raise UserError(
                f"policy.adapter {str(folder)!r} was trained on another base model ({expected['base']}); "
                "set policy.model to that one, or start from another adapter"
            )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"policy.adapter {str(folder)!r} holds no adapter_model.safetensors; train or export it again")
    linears = dict(model.named_modules())
    with safe_open(weights, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            name, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
            linear, shape = linears.get(name), file.get_slice(key).get_shape()
            fits = isinstance(linear, nn.Linear) and (
                shape[1] == linear.in_features if factor.startswith("A") else shape[0] == linear.out_features
            )
            if not fits:
                raise UserError(
                    f"policy.adapter {str(folder)!r} belongs to another base model: its {key} of shape {shape} fits no "
                    "layer of policy.model; set policy.model to the model it was trained on"
                )


def write_adapter(
    model: Any, name: str, folder: Path, base: str, base_fingerprint: str, weights: Mapping[str, Tensor] | None
) -> None:
    """Write an adapter in peft's format, always the same bytes for the same weights, and which model it is of.

    Args:
        model: Carries the adapter.
        name: Of the adapter.
        folder: Made where it is missing.
        base: The model as the user named it, rather than where its weights happened to lie on this machine.
        base_fingerprint: Of that model.
        weights: Whole tensors, where the model itself holds shards.
    """
    model.peft_config[name].base_model_name_or_path = base
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False, state_dict=weights)
    # A set, which peft writes in another order every time.
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text())
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    passport = {"base": base, "base_fingerprint": base_fingerprint}
    (folder / PASSPORT).write_text(json.dumps(passport, indent=2) + "\n")
