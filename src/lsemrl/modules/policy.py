"""The policy: a causal language model, what of it is trained, and the two models it is held against.

The reference is what the KL penalty pulls towards; the base is the model as published, against which the tax is
measured. With LoRA both live in the same weights: the base is the adapter switched off, the reference a frozen copy
of the adapter that training started from. Nothing is ever merged in place.

Left out on purpose: quantised bases (the log-probs of a rounded base are not those users deploy) and adapters other
than LoRA.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lsemrl import micro
from lsemrl.types import Sequences, UserError

_TRAINED, _REFERENCE = "default", "reference"
_PASSPORT = "lsemrl.json"


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (the paper: rank 64, alpha 128, dropout 0.05, on attention and MLP linears)."""

    rank: int = 64
    """Rank of the two factors."""
    alpha: float = 128.0
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout before the first factor, in [0, 1)."""
    target_modules: list[str] | None = None
    """Names of the linears to adapt; null adapts every linear but the output head."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"policy.lora.rank is {self.rank}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"policy.lora.dropout is {self.dropout}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Which model, what of it is trained, and what it is held against."""

    model: str = micro.NAME
    """A folder, a hub id, or "micro" for the embedded policy."""
    train: Literal["lora", "full"] = "lora"
    """Train low-rank adapters on a frozen model, or every weight."""
    lora: LoraSettings = LoraSettings()
    """The adapters, where `train` is lora."""
    adapter: str | None = None
    """A LoRA folder to start from, such as a cold start wrote; "micro" is the embedded cold start of translation.
    Its rank and targets then replace `lora`'s."""
    reference: Literal["initial", "base", "none"] = "initial"
    """What the KL penalty pulls towards: the policy training started from, the model without adapter, or nothing."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights. Adapters are always float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""

    def __post_init__(self) -> None:
        if self.adapter is not None and self.train == "full":
            raise UserError(
                f"policy.adapter is {self.adapter!r} but policy.train is full, which an adapter cannot start; "
                "set policy.train to lora, or leave policy.adapter out"
            )


class Policy(nn.Module):
    """A language model with its tokenizer; weights are read by `load`, so that mistakes elsewhere surface first.

    Attributes:
        settings: What it was made from.
        tokenizer: Pads on the left; has an EOS and a padding token.
        model: The causal LM, wrapped by peft when it carries an adapter.
        fingerprint: Tells this base model from others.
    """

    model: Any
    fingerprint: str

    def __init__(self, settings: PolicySettings) -> None:
        """Read the tokenizer and check the settings against the files.

        Raises:
            UserError: No model, tokenizer or adapter is where the settings say.
        """
        super().__init__()
        self.settings = settings
        self.path = str(micro.POLICY) if settings.model == micro.NAME else settings.model
        self.tokenizer = _load_tokenizer(self.path)
        self.adapter: Path | None = None
        if settings.adapter is not None:
            self.adapter = micro.COLD_START if settings.adapter == micro.NAME else Path(settings.adapter)
        if self.adapter and not (self.adapter / "adapter_config.json").is_file():
            raise UserError(
                f"policy.adapter is {settings.adapter!r}, which is no adapter folder (it has no adapter_config.json); "
                "name the `adapter` folder that a run wrote"
            )
        self.model = None
        self.reference_model: Any = None  # only full fine-tuning needs a second copy

    def load(self) -> None:
        """Read the weights and set up adapter, reference and checkpointing. Calling it again changes nothing.

        Raises:
            UserError: The adapter was trained on another base model.
        """
        if self.model is not None:
            return
        settings = self.settings
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=getattr(torch, settings.dtype))
        self.fingerprint = fingerprint(model)
        if self.adapter:
            _check_adapter(self.adapter, model, self.fingerprint)
            self.model = PeftModel.from_pretrained(model, self.adapter, is_trainable=True)
            if settings.reference == "initial":
                self.model.load_adapter(self.adapter, _REFERENCE, is_trainable=False)
                self.model.set_adapter(_TRAINED)
        elif settings.train == "lora":
            self.model = get_peft_model(model, _lora_config(settings.lora))
        else:
            self.model = model
            if settings.reference != "none":
                self.reference_model = copy.deepcopy(model).requires_grad_(False).eval()
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            # A frozen embedding gives checkpointed layers no input that asks for gradients, and LoRA none in return.
            self.model.enable_input_require_grads()

    @property
    def adapted(self) -> bool:
        """Whether training touches an adapter rather than the weights themselves."""
        return isinstance(self.model, PeftModel)

    def eos_ids(self) -> list[int]:
        """Every id that ends a completion: the tokenizer's and all those the model declares (Qwen3 has two)."""
        generation = self.model.generation_config
        ids = {self.tokenizer.eos_token_id}
        for declared in (self.model.config.eos_token_id, generation.eos_token_id if generation else None):
            ids.update(declared if isinstance(declared, list) else [] if declared is None else [declared])
        return sorted(ids)

    def logits(self, sequences: Sequences) -> Tensor:
        """Logits of every completion token given what stands before it: float32 [N, T, V]."""
        ids = torch.cat([sequences.prompt_ids_NP, sequences.completion_ids_NT], dim=1)
        mask = torch.cat([sequences.prompt_mask_NP, sequences.completion_mask_NT], dim=1)
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            logits_to_keep=sequences.completion_ids_NT.shape[1] + 1,
            use_cache=False,
        )
        logits: Tensor = output.logits[:, :-1].float()
        return logits

    def logprobs(self, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Score completions under the current weights and mode.

        Args:
            sequences: N prompts with their completions.
            temperature: Divides the logits; the temperature that sampled, so that ratios compare like with like.

        Returns:
            logprobs_NT and entropy_NT, float32, in nats; padding holds 0. The entropy carries no gradient.
        """
        logits = self.logits(sequences) / temperature
        lse_NT = logits.logsumexp(-1)
        logprobs_NT = logits.gather(-1, sequences.completion_ids_NT.unsqueeze(-1)).squeeze(-1) - lse_NT
        with torch.no_grad():
            entropy_NT = lse_NT - (logits.sub(lse_NT.unsqueeze(-1)).exp_() * logits).sum(-1)
        padding = ~sequences.completion_mask_NT
        return logprobs_NT.masked_fill(padding, 0.0), entropy_NT.masked_fill(padding, 0.0)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the model is the one that was published, before any training.

        Raises:
            UserError: Full fine-tuning was set up to keep no copy.
        """
        with self.inference():
            if self.adapted:
                with self.model.disable_adapter():
                    yield
            elif self.reference_model is None:
                raise UserError(
                    "policy.reference is none, so full fine-tuning kept no copy of the base; set it to base"
                )
            else:
                trained, self.model = self.model, self.reference_model
                try:
                    yield
                finally:
                    self.model = trained

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the KL reference."""
        assert self.settings.reference != "none"
        if self.adapted and _REFERENCE in self.model.peft_config:
            with self.inference():
                self.model.set_adapter(_REFERENCE, inference_mode=True)
                try:
                    yield
                finally:
                    self.model.set_adapter(_TRAINED)
        else:  # a new adapter starts at zero, so the policy started as the base
            assert not self.adapter or self.settings.reference == "base"
            with self.base():
                yield

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No dropout, no gradients; the mode that was on comes back afterwards."""
        model, training = self.model, self.model.training
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.train(training)

    def save(self, folder: Path) -> None:
        """Write the adapter (after full fine-tuning, the model) and the tokenizer in their libraries' own formats."""
        if self.adapted:
            # The name as it was configured, rather than where the weights happened to lie on this machine.
            self.model.peft_config[_TRAINED].base_model_name_or_path = self.settings.model
            self.model.save_pretrained(folder, selected_adapters=[_TRAINED], save_embedding_layers=False)
            passport = {"base": self.settings.model, "base_fingerprint": self.fingerprint}
            (folder / _PASSPORT).write_text(json.dumps(passport, indent=2) + "\n")
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def checkpoint_names(self) -> set[str]:
        """Names in `state_dict()` that a checkpoint must hold: what is trained and what it is held against."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return trained | {name for name in self.state_dict() if f".{_REFERENCE}." in name or "reference_model." in name}


def positions(mask: Tensor) -> Tensor:
    """Position ids that count from the first real token of a left-padded row: int64, the shape of `mask`."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def fingerprint(model: nn.Module) -> str:
    """A short hash that tells one base model from another, the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:64].to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _lora_config(settings: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides it by r
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        AutoConfig.from_pretrained(path)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"policy.model is {path!r}, which cannot be read as a causal language model with its tokenizer ({reason}); "
            "name a folder or hub id that holds both"
        ) from error
    for name, token in (("EOS", tokenizer.eos_token_id), ("padding", tokenizer.pad_token_id)):
        if token is None:
            raise UserError(
                f"the tokenizer of policy.model {path!r} has no {name} token; add one to its tokenizer_config.json"
            )
    tokenizer.padding_side = "left"
    return tokenizer


def _check_adapter(folder: Path, model: nn.Module, base_fingerprint: str) -> None:
    """Refuse an adapter whose factors do not fit `model`, or that says it was trained on another."""
    passport = folder / _PASSPORT
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
