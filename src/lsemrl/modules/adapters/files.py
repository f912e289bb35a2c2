"""An adapter's folder: its tensors, the passport that says which model they are of, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lsemrl.errors import reason_of
from lsemrl.files import write_text
from lsemrl.modules.adapters.config import check_same, read_config
from lsemrl.modules.adapters.loading import TRAINED, adapter_tensors
from lsemrl.modules.policy_settings import ADAPTER_CONFIG
from lsemrl.modules.sharding import checked, whole_state
from lsemrl.types import UserError

PASSPORT = "lsemrl.json"
"""In an adapter's folder: which base model it was trained on."""
_FORMAT = 2  # the first knew a base by the beginnings of its weights only


def check_passport(folder: Path, base_fingerprint: str) -> None:
    """Refuse an adapter that says it was trained on another base model; one from elsewhere says nothing."""
    path = folder / PASSPORT
    if not path.is_file():
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        base, expected, written = said["base"], said["base_fingerprint"], said.get("format", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"policy.adapter {str(folder)!r} cannot be read: {PASSPORT}, which says what model it is of, is damaged; "
            "export it again, or delete that file if you know that policy.model is its base"
        ) from error
    if written != _FORMAT:
        raise UserError(
            f"policy.adapter {str(folder)!r} has a {PASSPORT} of format {written}, and this lsemrl tells a base by "
            f"format {_FORMAT}; if policy.model is {base}, which it was trained on, delete that file"
        )
    if expected != base_fingerprint:
        raise UserError(
            f"policy.adapter {str(folder)!r} was trained on another base model ({base}); "
            "set policy.model to that one, with the policy.quantization it had, or start from another adapter"
        )


def adapter_fingerprint(folder: Path, scale: float = 1.0) -> str:
    """Tells an adapter from others by its weights, as they were written, and by the scale they are taken at.

    Raises:
        UserError: It cannot be read.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    config = read_config(folder)
    # Of what an adapter is, this alone does not show in the names and shapes of its weights.
    alphas = {"": config.lora_alpha, **(config.alpha_pattern or {})}
    strength = {**{name: float(alpha) for name, alpha in alphas.items()}, "rslora": config.use_rslora}
    try:
        with path.open("rb") as file:
            known = hashlib.file_digest(file, "sha256")
        known.update(json.dumps(strength, sort_keys=True).encode())
        return known.hexdigest()[:16] + (f" * {scale}" if scale != 1 else "")
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error.strerror}); train or export the adapter again"
        ) from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by the keys of its file.

    Raises:
        UserError: They cannot be read, or one of them is not finite.
    """
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"policy.adapter {str(folder)!r} holds no {path.name}; train or export it again")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = reason_of(error, 150)
        raise UserError(
            f"policy.adapter {str(folder)!r} cannot be read: {path.name} is damaged ({reason}); export it again"
        ) from error
    bad = [key for key, value in tensors.items() if not value.is_floating_point() or not value.float().isfinite().all()]
    if bad:
        raise UserError(
            f"policy.adapter {str(folder)!r} holds numbers that are not finite, in {bad[0]} and {len(bad) - 1} other "
            "tensors; take an earlier checkpoint"
        )
    return tensors


def write_adapter(
    model: Any,
    folder: Path,
    base: Mapping[str, str],
    base_fingerprint: str,
    weights: Mapping[str, Tensor],
    *,
    resized: bool,
) -> None:
    """Write the trained adapter in peft's format, always the same bytes for the same weights, and its passport.

    Args:
        model: Carries the adapter.
        folder: Made where it is missing.
        base: As `base` the model as the user named it, rather than where its weights happened to lie on this machine;
            and whatever else of `PolicySettings` tells how it was read, by which others read it so.
        base_fingerprint: Of that model.
        weights: By their names in `model`, whole tensors to write where the model itself holds shards.
        resized: Whether the embeddings have other rows than the base has, which then go along.
    """
    state = whole_state(model, weights)
    model.peft_config[TRAINED].base_model_name_or_path = base["base"]
    model.create_or_update_model_card = _no_card
    model.save_pretrained(folder, selected_adapters=[TRAINED], save_embedding_layers=resized, state_dict=state)
    # Sets, which peft writes in another order every time.
    config = folder / ADAPTER_CONFIG
    settings = json.loads(config.read_text(encoding="utf-8"))
    for field in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(settings.get(field), list):
            settings[field].sort()
    write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    passport = {"format": _FORMAT, **base, "base_fingerprint": base_fingerprint}
    write_text(folder / PASSPORT, json.dumps(passport, indent=2) + "\n")


def read_written(model: Any, folder: Path, *, resized: bool) -> dict[Tensor, Tensor]:
    """What `write_adapter` wrote, by the weight of the adapter that it is of.

    Args:
        model: Carries the adapter; it is left as it is.
        folder: That which was written.
        resized: As when it was.

    Raises:
        UserError: It was written of another adapter.
    """
    own = adapter_tensors(model)
    besides = adapter_tensors(model, embeddings=resized).keys() - own.keys()
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    checked(folder, {key: value for key, value in found.items() if key not in besides}, own)
    check_same(folder, model.peft_config[TRAINED])
    return {weight: found[key] for key, weight in own.items()}


def _no_card(folder: Path) -> None:
    """Instead of peft's, an empty form that takes it a third of a save to fill in; whoever exports gets ours."""
