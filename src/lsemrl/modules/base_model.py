"""Reading the model that is trained: what it is before its weights, and its weights whole, or a sentence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from lsemrl.errors import reason_of
from lsemrl.modules.families import cache_name
from lsemrl.modules.policy_settings import ADAPTER_CONFIG, PolicySettings
from lsemrl.modules.quantization import in_four_bits, keep_layout, written_out
from lsemrl.types import UserError

log = logging.getLogger(__name__)

_WRITERS = frozenset(
    name
    for names in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    for name in ([names] if isinstance(names, str) else names)
)
"""Classes of transformers that predict the next token of a text."""
_UNTRUSTED = (
    "policy.model is {!r}, which comes with Python code of its own that would have to run; read that code, and set "
    "policy.trust_remote_code to true if you trust it"
)

_SHOWN = 4
"""Names of weights in a sentence."""


def read_config(path: str, *, trust: bool) -> PretrainedConfig:
    """What a model says of itself.

    Args:
        path: A folder or a hub id.
        trust: Whether code that comes with it may run.

    Raises:
        UserError: It cannot be read, or is no causal language model that can be trained here.
    """
    try:
        # Never asked on the terminal, as happens where trust is left open.
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:
        raise refusal(path, error) from error
    _check(path, config, trust)
    if find_adapter_config_file(path):
        raise UserError(
            f"policy.model is {path!r}, which holds an adapter beside the model ({ADAPTER_CONFIG}), and both would be "
            "read as one; keep the adapter in a folder of its own and name that as policy.adapter, or merge it first"
        )
    return config


def read_model(path: str, settings: PolicySettings, *, plain: bool = False) -> Any:
    """The model with every weight that its configuration says it has.

    Args:
        path: As for `read_config`.
        settings: Say in what dtype, in how many bits, with what attention, and whether code that comes with it may run.
        plain: Whether one of 4 bits becomes the float32 model that it computes as.

    Raises:
        UserError: Weights are missing, damaged, of other shapes, or stored as pickle.
    """
    folder, dtype = Path(path), getattr(torch, settings.dtype)
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
        kept = f"its weights as pickle only ({pickled[0]}), which can run code" if pickled else "no *.safetensors"
        raise UserError(
            f"policy.model is {path!r}, which holds {kept}; write it again as safetensors (save_pretrained), or name "
            "another model"
        )
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="flex_attention" if settings.flex_attention else None,
            quantization_config=in_four_bits(dtype) if settings.quantization else None,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named here instead of in a table
            output_loading_info=True,
        )
    except Exception as error:
        raise refusal(path, error) from error
    model, found = read
    for name, stored, needed in sorted(found["mismatched_keys"]):
        raise UserError(
            f"policy.model is {path!r}, whose {name} is stored as {list(stored)} and needed as {list(needed)} by its "
            "config.json; put those files together that were written together"
        )
    missing = sorted(found["missing_keys"])
    if missing:  # which transformers draws at random
        raise UserError(
            f"policy.model is {path!r}, which lacks {len(missing)} weights of its {type(model).__name__}: "
            f"{_listed(missing)}; name a model that is whole"
        )
    if found["unexpected_keys"]:
        names, kind = _listed(sorted(found["unexpected_keys"])), type(model).__name__
        log.warning("policy.model %r holds weights that its %s has no place for, unused: %s", path, kind, names)
    if any(getattr(module, "source_cls", None) is Conv1D for module in model.modules()):
        raise UserError(
            f"policy.model is {path!r}, whose linears are stored transposed, as GPT-2's are, and would be exported so; "
            "set policy.quantization to null"
        )
    keep_layout(model)
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):  # for a loss beside the logits, which is nobody's here
        text.output_router_logits = False
    return written_out(model) if plain and settings.quantization else model


def refusal(path: str, error: Exception) -> UserError:
    """A sentence about a model that cannot be read."""
    said = reason_of(error, None)
    if "trust_remote_code" in said:
        return UserError(_UNTRUSTED.format(path))
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        said = "it has no config.json"
    elif not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        said = "there is no such folder, and no hub id is written so"  # what is raised tells of characters alone
    elsewhere = ""
    if not (folder.is_absolute() or folder.exists()):
        elsewhere = "; there is no such folder here: if a run names it, run this where that was trained"
    return UserError(
        f"policy.model is {path!r}, which cannot be read as a causal language model with its tokenizer "
        f"({type(error).__name__}: {said[:200]}); name a folder or hub id that holds both, whole{elsewhere}"
    )


def _check(path: str, config: PretrainedConfig, trust: bool) -> None:
    """Refuse a configuration no model of which can be trained here."""

    def refuse(what: str) -> None:
        raise UserError(f"policy.model is {path!r}, {what}")

    kind, own_code = config.model_type, getattr(config, "auto_map", None) or {}
    if config.is_encoder_decoder:
        refuse(f"an encoder-decoder ({kind}), and only decoders that go on from their prompt are trained; name one")
    for one in (config, config.get_text_config()):
        quantised = getattr(one, "quantization_config", None) or getattr(one, "compression_config", None)
        if quantised:
            how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            refuse(f"whose weights are quantised ({how}), and only whole ones are trained; name what it was made from")
        asked = one._attn_implementation
        if isinstance(asked, str) and "/" in asked:  # transformers would fetch it, and run it, without asking
            refuse(
                f"whose config.json asks for attention by code from a hub ({asked!r}); take _attn_implementation out "
                "of it"
            )
    if trust and "AutoModelForCausalLM" in own_code:
        return  # its own code says what it is, and the first rows whether that is true
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if "AutoModelForCausalLM" in own_code:
            raise UserError(_UNTRUSTED.format(path))
        refuse(f"a {kind} model, of which transformers knows no causal language model; name one that writes text")
    stored = config.architectures or []
    if stored and not _WRITERS.intersection(stored) and any(hasattr(transformers, name) for name in stored):
        refuse(f"the weights of a {stored[0]}, which does not predict the next token; name one that writes text")
    made: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    made = made[0] if isinstance(made, tuple) else made
    if cache_name(made) is None:
        refuse(f"a {kind} model, which keeps no cache of keys and values to sample from; name one with attention")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
