"""What a model family can do: asked of a configuration and of the model's own structure, never of its name on a hub.

Known families follow a mask of ours, so that a prompt is computed once for all its completions. All others go the
plain way. Every way is proven anew on the first rows, see `forward`; the list says where that is worth trying.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from lsemrl.errors import UserError

RECORDED = frozenset(
    {"gemma", "gemma3_text", "gpt2", "llama", "mistral", "mixtral", "phi3"}
    | {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}
)
"""Decoders of transformers (model_type) of which a step was recorded on a GPU, or that are built as those are."""
KNOWN = (
    RECORDED
    | {"apertus", "apertus1p5_text", "arcee", "cwm", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5"}
    | {"ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "flex_olmo", "glm", "glm4", "glm4_moe", "glm4_moe_lite"}
    | {"gpt_neox", "gpt_oss", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "minimax_m2", "ministral"}
    | {"ministral3", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phimoe", "sarvam_mla"}
    | {"sarvam_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "xglm", "youtu"}
)
"""Decoders whose layers look where a mask tells them to, and nowhere else; of those with a window it was tried too."""
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_ORIGINAL = "original_max_position_embeddings"
_READ_PAST = {
    "jamba": "dt_proj",
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), "out_proj"),
}
"""Decoders whose scan multiplies by the weight of a linear without calling it, and which: Jamba's does so always, the
others' where the kernels of mamba-ssm are and it trains."""


def cache_name(model: Any) -> str | None:
    """What a model, or a class of them, calls the keys and values that it goes on from; None if it takes none.

    That is `cache` since transformers 5.24, and still the old name in models that come with code of their own.
    """
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def unshared(model: Any) -> str | None:
    """Why a model cannot be told by a mask who sees whom; None if it can."""
    decoder = model.get_decoder()
    config = getattr(decoder, "config", model.config)
    kind, attention = config.model_type, config._attn_implementation
    if kind not in KNOWN or not type(decoder).__module__.startswith("transformers.models."):
        return f"the model ({kind}) is of no family that is known to follow a mask of ours"
    if attention not in ("sdpa", "eager", "flex_attention"):
        return f"the model's attention, {attention}, takes no mask of ours"
    return None


def window(model: Any) -> int | None:
    """How many tokens back the layers of a known family see, if not all see everything."""
    config = model.get_decoder().config
    layers = getattr(config, "layer_types", None)
    if layers and "sliding_attention" not in layers:
        return None
    found: int | None = getattr(config, "sliding_window", None)
    return found


def has_layer_masks(model: Any) -> bool:
    """Whether a known family with a window takes a mask for each kind of layer, rather than one for all."""
    return bool(getattr(model.get_decoder().config, "layer_types", None))


def native_positions(config: PretrainedConfig) -> int | None:
    """Tokens of a row up to which its rotary embeddings do not depend on the longest row beside it.

    None where they never do. Beyond, a row would get other numbers with other companions, and a completion other
    numbers once it is longer.
    """
    text = config.get_text_config()
    found = []
    for way in _scalings(text):
        kind = str(way.get("rope_type") or way.get("type"))
        if "dynamic" in kind:
            found.append(text.max_position_embeddings)
        elif kind in ("longrope", "su"):
            own = getattr(text, _ORIGINAL, None)
            found.append(way.get(_ORIGINAL) or own or text.max_position_embeddings)
    return min(found, default=None)


def _scalings(text: Any) -> list[Mapping[str, Any]]:
    """How rotary embeddings are scaled, once or for each kind of layer."""
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return [scaling, *(way for way in scaling.values() if isinstance(way, Mapping))]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many tokens a model reads as it reads them alone.

    Attributes:
        sure: So many at least.
        most: So many at most. Where positions are scaled by a factor and no original length is named, as by linear
            scaling, max_position_embeddings may be the length before or, as in Gemma 3, the one after.
    """

    sure: int
    most: int

    def __str__(self) -> str:
        doubt = f" ({self.most:,} if max_position_embeddings is what they were before scaling)"
        return f"{self.sure:,} positions{doubt if self.most > self.sure else ''}"


def reach(config: PretrainedConfig) -> Reach | None:
    """How far a model of `config` reads; None where nothing bounds it."""
    if (native := native_positions(config)) is not None:
        return Reach(sure=native, most=native)
    text = config.get_text_config()
    attention = getattr(text, "attn_config", None) or {}
    if getattr(text, "alibi", False) or (attention if isinstance(attention, dict) else vars(attention)).get("alibi"):
        return None
    own = next((value for name in _POSITIONS if isinstance(value := getattr(text, name, None), int)), None)
    if own is None:
        return None
    ways = [way for way in _scalings(text) if way.get("factor")]
    sure = max([own, *(int(way["factor"] * way[_ORIGINAL]) for way in ways if way.get(_ORIGINAL))])
    return Reach(sure=sure, most=max([sure, *(int(way["factor"] * own) for way in ways if not way.get(_ORIGINAL))]))


def lora_targets(model: Any) -> tuple[set[str] | None, str | None]:
    """Which linears a new adapter is for, where the user names none, and which modules are none of its business.

    With experts that are one parameter (a matrix for each expert), the linears outside the blocks that hold them: peft
    would make whole new weights of all experts in every layer, and has no dropout there. A fused scan reads past an
    adapter. A tower for pictures has nothing to learn from text.

    Returns:
        The ends of names, whole names where others end alike, or None for every linear but the head; and a pattern of
        names that are left alone, or None.

    Raises:
        UserError: No linear is left.
    """
    decoder, outside = model.get_decoder(), None
    text = model.config.get_text_config()
    if text is not model.config:
        path, head = (
            next((name for name, module in model.named_modules() if module is wanted), "")
            for wanted in (decoder, model.get_output_embeddings())
        )
        outside = rf"(?!{re.escape(path)}\.|{re.escape(head)}$).*" if path else None
    blocks, past = expert_blocks(decoder), _READ_PAST.get(text.model_type)
    if not blocks and not past:
        return None, outside
    modules = dict(decoder.named_modules())
    linears = {name for name, each in modules.items() if isinstance(each, nn.Linear) and _end(name) != past}
    # By kind first, since peft takes the linears of a layer without experts for the experts of the others; layer by
    # layer where all their parts are called alike.
    kinds = {_end(block) for block in blocks}
    wanted = {name for name in linears if _end(_block(name)) not in kinds}
    wanted = wanted or {name for name in linears if _block(name) not in blocks}
    if not wanted:
        raise UserError(
            "policy.lora.target_modules is null, and all linears of policy.model are beside its experts, which are "
            "left alone; set it to the linears to adapt"
        )
    others = {_end(name) for name in modules.keys() - wanted}
    return {name if _end(name) in others else _end(name) for name in wanted}, outside


def expert_blocks(decoder: nn.Module) -> set[str]:
    """The parts of layers, by name, that hold experts that are one parameter."""
    return {_block(name) for name, module in decoder.named_modules() if expert_weights(module)}


def expert_weights(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters that hold a matrix for each expert."""
    if isinstance(module, nn.Conv1d):
        return []
    return [weight for weight in module.parameters(recurse=False) if weight.dim() == 3]


def _block(name: str) -> str:
    """Of layers.3.mlp.experts: layers.3.mlp."""
    return re.sub(r"^((.*?\.\d+\.)?[^.]*).*$", r"\1", name)


def _end(name: str) -> str:
    return name.rpartition(".")[2]
