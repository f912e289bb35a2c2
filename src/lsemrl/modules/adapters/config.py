"""Which adapters are read: a list of what is known to be read as peft reads it, and reasons for the rest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NoReturn

from peft import LoraConfig

from lsemrl.errors import reason_of
from lsemrl.modules.policy_settings import ADAPTER_CONFIG, LoraSettings, check_adapter
from lsemrl.types import UserError

_MEANING = (
    # what a LoRA is
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "use_dora", "fan_in_fan_out"),
    # where it is
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"),
    # what is trained besides
    *("modules_to_save", "trainable_token_indices", "ensure_weight_tying"),
)
"""Fields by which the same weights are another adapter, though their names and shapes may be the same."""

_ANY = {
    *_MEANING,
    *("peft_type", "task_type", "init_lora_weights", "lora_dropout"),
    # where it comes from, and how it was drawn before its first step
    *("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version", "eva_config"),
    "runtime_config",
}
"""Fields that are read at any value, but for what `_check_kind` says of some by themselves."""

_CHANGES_BASE = (
    "begins by taking a part out of the base model's weights, so that the base would no longer be as published"
)
_CONVERT = (
    "convert it to plain LoRA where it was trained (save_pretrained(..., path_initial_model_for_weight_conversion=...))"
)
_MERGE = "merge it into its model with peft (merge_and_unload), and name that as policy.model"

_REFUSED: dict[str, tuple[str, str]] = {
    "bias": ("trains the base model's own biases, which would change the base itself", _MERGE),
    "layer_replication": ("stacks the base model's layers anew, so that the base would be another model", _MERGE),
    "alora_invocation_tokens": (
        "works only behind the tokens that call it, which packed rows do not keep apart",
        "train a plain LoRA",
    ),
    "megatron_config": ("is for the layers of Megatron", "convert it to plain LoRA"),
    "use_qalora": ("is for quantised models", "convert it to plain LoRA"),
    "loftq_config": ("is for quantised models", "convert it to plain LoRA"),
}
"""Why a field is read at its default only, and what to do; of the others nothing is proven."""

_FIELDS = {
    **{"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"},
    **{name: name for name in ("target_modules", "modules_to_save", "trainable_token_indices")},
}
"""Of `policy.lora`, and what peft calls them."""

_DRAWN = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that say only how the factors were drawn before the first step."""


def read_config(folder: Path) -> LoraConfig:
    """What an adapter is, from its adapter_config.json.

    Raises:
        UserError: There is none, it is torn, or of a kind that is not known to be read as peft reads it.
    """
    check_adapter(folder)
    path = folder / ADAPTER_CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(said, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        reason = "it is no JSON object" if isinstance(error, AssertionError) else reason_of(error, 150)
        raise UserError(
            f"policy.adapter {str(folder)!r} cannot be read: {ADAPTER_CONFIG} is damaged ({reason}); export it again"
        ) from error
    _check_kind(folder, said)
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        reason = reason_of(error)
        raise UserError(
            f"policy.adapter {str(folder)!r} cannot be read: its {ADAPTER_CONFIG} is refused by peft ({reason}); write "
            "it again"
        ) from error
    config.inference_mode = False  # which peft writes, and which would leave it frozen
    config.base_model_name_or_path = None  # what peft puts there is where this machine has it
    config.revision = None
    return config


def new_config(settings: LoraSettings) -> LoraConfig:
    """An adapter that is trained from the beginning."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides it by r
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules or "all-linear",
        modules_to_save=settings.modules_to_save,
        trainable_token_indices=settings.trainable_token_indices,
        task_type="CAUSAL_LM",
    )


def check_same(folder: Path, config: LoraConfig) -> None:
    """Refuse weights that were written of another adapter than they are to be read into.

    Args:
        folder: They lie there with the adapter_config.json of their own adapter.
        config: Of the one that is to take them.

    Raises:
        UserError: The first field by which they would mean something else.
    """
    written = LoraConfig.from_pretrained(str(folder))
    ours = {name: field for field, name in _FIELDS.items()}
    for name in _MEANING:
        now, then = (_comparable(name, getattr(one, name)) for one in (config, written))
        if now != then:
            raise UserError(
                f"policy.lora.{ours.get(name, name)}, or that of policy.adapter, is {now}, and {str(folder)!r} was "
                f"written with {then}, without which its weights mean something else; resume with the configuration "
                "that wrote it"
            )


def without_effect(settings: LoraSettings, config: LoraConfig) -> str:
    """What was set of `policy.lora` that an adapter to start from has otherwise; "" if nothing was.

    Args:
        settings: As the user gave them.
        config: Of the adapter.

    Raises:
        UserError: They name what is to be trained, and the adapter has no place for it.
    """
    asked, default, found = new_config(settings), new_config(LoraSettings()), []
    for field, name in _FIELDS.items():
        wanted, usual, has = (_unordered(getattr(one, name)) for one in (asked, default, config))
        if wanted in (usual, has):
            continue
        value = getattr(settings, field)
        if field not in ("rank", "alpha", "dropout"):
            raise UserError(
                f"policy.lora.{field} is {value}, and policy.adapter was made with others, which it keeps; set it to "
                "null, or policy.adapter to null for a new adapter"
            )
        found.append(f"{field} {value:g}, as policy.adapter has {has:g}")
    return f"without effect of policy.lora: {'; '.join(found)}" if found else ""


def check_placement(config: LoraConfig, *, sharded: bool, halved: bool) -> None:
    """Refuse what an adapter has besides factors where it is not proven, or would learn too little.

    Args:
        config: Of the adapter that is to be trained.
        sharded: Whether weights are spread over ranks.
        halved: Whether the model is read in bfloat16, and modules that are trained whole with it.

    Raises:
        UserError: It has such parts.
    """
    besides = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters")
    has = next((f"{name} {getattr(config, name)!r}" for name in besides if getattr(config, name)), None)
    if sharded and has:
        raise UserError(
            f"the adapter has {has}, which is not proven with sharded weights; train with configs/ddp.yaml, or a plain "
            "LoRA on linears"
        )
    if halved and config.modules_to_save:
        raise UserError(
            f"the adapter has modules_to_save {sorted(config.modules_to_save)}, which policy.dtype bfloat16 would "
            "train in bfloat16, where small steps are rounded away; set policy.dtype to float32, and "
            "trainer.precision to bf16-mixed for its speed"
        )


def _check_kind(folder: Path, said: dict[str, Any]) -> None:
    def refuse(what: str, remedy: str) -> NoReturn:
        raise UserError(f"policy.adapter {str(folder)!r} {what}; {remedy}")

    if said.get("peft_type") != "LORA":
        refuse(f"is of peft_type {said.get('peft_type')!r}, and only LORA is read", f"train a LoRA, or {_MERGE}")
    if said.get("task_type") not in (None, "CAUSAL_LM"):
        refuse(f"is of task_type {said['task_type']!r}, not of a causal language model", "name another")
    if (said.get("revision") or "main") != "main":
        refuse(
            f"is of revision {said['revision']!r} of its base, and a base is read from its main branch",
            f"put that revision into a folder, name that as policy.model, and in {ADAPTER_CONFIG} as "
            "base_model_name_or_path, with null as revision",
        )
    begun = said.get("init_lora_weights", True)
    if begun not in _DRAWN:
        what = f"has init_lora_weights {begun!r}"
        if str(begun).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            refuse(f"{what}, which {_CHANGES_BASE}", _CONVERT)
        refuse(f"{what}, of which it is not proven that it is trained here as peft trains it", "train a plain LoRA")
    rows: Any = said.get("trainable_token_indices") or []
    for each in rows.values() if isinstance(rows, dict) else [rows]:
        for row in each if isinstance(each, list) else [each]:
            if not isinstance(row, int) or row < 0 or not isinstance(each, list):
                refuse(f"has trainable_token_indices with {row!r}, which is no list of tokens", "write it again")
    defaults = dataclasses.asdict(LoraConfig())
    for name, value in said.items():
        if name in _ANY or value == defaults.get(name) or not value:
            continue
        if name not in defaults:
            written = said.get("peft_version") or "another version"
            what = f"has {name} {value!r}, which this peft does not know (it was written by {written})"
            refuse(what, "install the peft that wrote it, or convert it to plain LoRA")
        why, remedy = _REFUSED.get(name, ("is not known to be read as peft reads it", "convert it to plain LoRA"))
        refuse(f"has {name} {value!r}, which {why}", remedy)


def _comparable(name: str, value: Any) -> Any:
    """A field of two adapters that are the same; rows of tokens lie in the order of their list."""
    return value if name == "trainable_token_indices" else _unordered(value) or None


def _unordered(value: Any) -> Any:
    return set(value) if isinstance(value, list) else value
