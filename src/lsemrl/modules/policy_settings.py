"""Which model is trained, what of it, and what it is held against."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lsemrl import micro
from lsemrl.finite import check_finite
from lsemrl.model_names import check_model
from lsemrl.types import UserError

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder an adapter."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (the paper: rank 64, alpha 128, dropout 0.05, on attention and MLP linears)."""

    rank: int = 64
    """Rank of the two factors."""
    alpha: float = 128.0
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout before the first factor, in [0, 1); in RL only with model.dropout_in_updates."""
    target_modules: list[str] | None = None
    """Names of the linears to adapt; null adapts every linear but the output head, and where experts are one
    parameter, as in Mixtral, those outside of the experts."""

    modules_to_save: list[str] | None = None
    """Names of modules to train whole beside them, such as [embed_tokens, lm_head] for a script that is new."""
    trainable_token_indices: list[int] | None = None
    """Tokens whose rows of embeddings, and of a head tied to them, are trained by themselves."""

    def __post_init__(self) -> None:
        check_finite(self, "policy.lora")
        if self.rank < 1:
            raise UserError(f"policy.lora.rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"policy.lora.dropout is {self.dropout}; it must be in [0, 1)")
        if self.target_modules == []:  # of which peft makes no LoRA, whatever else is trained
            raise UserError("policy.lora.target_modules is []; name at least one linear, or give null for every one")
        if any(token < 0 for token in self.trainable_token_indices or ()):
            raise UserError("policy.lora.trainable_token_indices holds a negative number; give the ids of tokens")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Which model, what of it is trained, and what it is held against."""

    model: str = micro.NAME
    """A folder, a hub id, or "micro" for the embedded policy."""
    trust_remote_code: bool = False
    """Run the Python code that comes with `model`, where transformers has none of its own for it."""
    train: Literal["lora", "full"] = "lora"
    """Train low-rank adapters on a frozen model, or every weight."""
    lora: LoraSettings = LoraSettings()
    """The adapters, where `train` is lora."""
    adapter: str | None = None
    """A LoRA folder to start from, such as a cold start wrote; "micro" is the embedded cold start of translation.
    It stays what it is, and nothing of `lora` has an effect on it."""
    adapter_scale: float = 1.0
    """How much of what `adapter` changed to take, in [0, 1]: less gives back what was forgotten, for some of what was
    learned."""
    reference: Literal["initial", "base", "none"] = "initial"
    """What the KL penalty pulls towards: the policy training started from, the model without adapter, or nothing."""
    ref_model_sync_steps: int | None = None
    """Move the reference towards the policy every so many optimizer steps; null leaves it where it is."""
    ref_model_mixup_alpha: float = 1.0
    """How far, in (0, 1]: reference = alpha * policy + (1 - alpha) * reference, factor by factor of an adapter; 1 takes
    the policy as it is."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights: what is trained, adapters or with `train: full` the model, is float32."""
    quantization: Literal["nf4"] | None = None
    """Read the frozen linears of the layers in 4 bits, by bitsandbytes (pip install 'lsemrl[nf4]'): a quarter of what
    bfloat16 takes. The rounded model then is the base of all that is trained, measured and exported. Completions are
    drawn from weights of `dtype`, which are written out for the time of a rollout."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""
    flex_attention: bool = False
    """Train with PyTorch's flex attention, which skips what completions behind one prompt must not see of each other:
    for long rows on a GPU. Sampling keeps SDPA."""
    gather_for_sampling: bool = True
    """Where weights are sharded over ranks, hold them whole while sampling; otherwise every token gathers them anew,
    a layer at a time, and ranks wait for the longest completion of all."""

    def __post_init__(self) -> None:
        check_finite(self, "policy")
        steps = self.ref_model_sync_steps
        if steps is not None and (steps < 1 or self.reference != "initial"):
            raise UserError(
                f"policy.ref_model_sync_steps is {steps} and policy.reference is {self.reference}; give 1 or more, and "
                "the reference initial, which alone can move"
            )
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise UserError(f"policy.ref_model_mixup_alpha is {self.ref_model_mixup_alpha}; it must be in (0, 1]")
        if not 0 <= self.adapter_scale <= 1:
            raise UserError(f"policy.adapter_scale is {self.adapter_scale}; it must be in [0, 1]")
        if self.adapter_scale != 1 and self.adapter is None:
            raise UserError(
                f"policy.adapter_scale is {self.adapter_scale}, but policy.adapter is null; name the adapter to scale"
            )
        if self.adapter is not None and self.train == "full":
            raise UserError(
                f"policy.adapter is {self.adapter!r} but policy.train is full, which an adapter cannot start; "
                "set policy.train to lora, or leave policy.adapter out"
            )

        if self.quantization and self.train == "full":
            raise UserError(
                f"policy.quantization is {self.quantization}, but policy.train is full, and weights of 4 bits cannot "
                "be trained; set policy.train to lora, or policy.quantization to null"
            )

    @property
    def path(self) -> str:
        """Where the model is read from: a folder, or a hub id."""
        return str(micro.POLICY) if self.model == micro.NAME else self.model

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter to start from lies, if there is one."""
        if self.adapter is None:
            return None
        return micro.COLD_START if self.adapter == micro.NAME else Path(self.adapter)

    @property
    def copies_adapter(self) -> bool:
        """Whether the reference is a copy of the adapter: that of a new one is the base, unless it is to move."""
        return self.reference == "initial" and (self.adapter is not None or self.ref_model_sync_steps is not None)

    def keeping(self, *, reference: bool, base: bool) -> PolicySettings:
        """The same without a reference that nobody asks for, of which full fine-tuning keeps a second model.

        Args:
            reference: Whether the loss pulls towards it.
            base: Whether an anchor computes the base, which full fine-tuning has nowhere else.
        """
        if reference:
            return self
        second = base and self.train == "full" and self.reference != "none"
        kept: Literal["base", "none"] = "base" if second else "none"
        return replace(self, reference=kept, ref_model_sync_steps=None, ref_model_mixup_alpha=1.0)

    def without_weights(self) -> PolicySettings:
        """All but the weights, which whoever knows them by fingerprints finds again wherever they lie by now."""
        return replace(self, model="", adapter=None, adapter_scale=1.0)

    def base_named(self) -> dict[str, str]:
        """The base as an adapter of it names it: whether it is a folder, and in 4 bits what its rounding depends on."""
        rounded = {"quantization": self.quantization, "dtype": self.dtype} if self.quantization else {}
        place = {"base_is": "folder"} if self.model != micro.NAME and os.path.isdir(self.model) else {}
        return {"base": self.model, **place, **rounded}

    def check_files(self) -> None:
        """Refuse a model and an adapter that are not there, without reading those that are.

        Raises:
            UserError: `model` can be no model, `adapter` names no adapter's folder, or nothing is installed that
                computes with 4 bits.
        """
        if self.quantization and find_spec("bitsandbytes") is None:
            raise UserError(
                f"policy.quantization is {self.quantization}, and bitsandbytes, which computes with it, is not "
                "installed; pip install 'lsemrl[nf4]', or set it to null"
            )
        if self.model != micro.NAME:
            check_model(self.model)
        if self.adapter is not None and self.adapter != micro.NAME:
            check_adapter(Path(self.adapter))


def check_adapter(folder: Path) -> None:
    """Refuse what is no adapter's folder.

    Raises:
        UserError: It has no adapter_config.json; of a model, that it is one.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        if (folder / "config.json").is_file():
            raise UserError(
                f"policy.adapter is {str(folder)!r}, which is a whole model, as full fine-tuning leaves it; name it as "
                "policy.model, and set policy.adapter to null"
            )
        found = f"no adapter folder (it has no {ADAPTER_CONFIG})" if folder.exists() else "not there"
        raise UserError(
            f"policy.adapter is {str(folder)!r}, which is {found}; name the "
            "`adapter` folder that a run wrote, or set policy.adapter to null for a policy without one"
        )
