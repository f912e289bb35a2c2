"""Adapters of every kind, made by peft alone on a tiny model, and what plain peft computes with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lsemrl import micro
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import Sequences
from tiny import save_tiny_model

NEW = [5, 9, 300]
"""Tokens whose rows are trained by themselves."""
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("tied", {}),
    "rslora": ("tied", {"use_rslora": True}),
    "patterns": ("tied", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "one layer": ("tied", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "gaussian": ("tied", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("tied", {"init_lora_weights": "orthogonal"}),
    "biased": ("tied", {"lora_bias": True}),
    "dora": ("tied", {"use_dora": True}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True}),
    "Conv1D dora": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "embedding": ("tied", {"target_modules": [*EVERY, "embed_tokens"]}),
    "embedding, untied": ("untied", {"target_modules": [*EVERY, "embed_tokens"]}),
    "head": ("untied", {"target_modules": [*EVERY, "lm_head"]}),
    "embedding and head": ("tied", {"target_modules": [*EVERY, "embed_tokens", "lm_head"]}),
    "head with dora": ("untied", {"target_modules": ["q_proj", "lm_head"], "use_dora": True}),
    "saved": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved, untied": ("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved and kept tied": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "saved head": ("untied", {"modules_to_save": ["lm_head"]}),
    "saved norms": ("tied", {"modules_to_save": ["input_layernorm", "norm"]}),
    "rows": ("tied", {"trainable_token_indices": NEW}),
    "rows, untied": ("untied", {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}}),
    "rows of the embedding": ("untied", {"trainable_token_indices": NEW}),
}
"""Name -> model, fields of its configuration."""


def save_model(folder: Path, kind: str) -> Path:
    """A tiny model by the name that `KINDS` has for it."""
    if kind == "gpt2":
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    save_tiny_model(folder)
    if kind == "untied":
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 0.9 + 0.01)
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
    return folder


def save_adapter(
    model: str,
    folder: Path,
    *,
    rows: int | None = None,
    changed: Callable[[Any], object] = lambda model: None,
    **fields: Any,
) -> Path:
    """An adapter as a user of peft would leave it, all of whose weights are far from where they began."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(3)
    if rows:
        base.resize_token_embeddings(rows)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": EVERY, "task_type": "CAUSAL_LM", **fields})
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    changed(adapted)
    adapted.save_pretrained(folder)
    return folder


def plain_peft(model: str, adapter: Path, *, rows: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter as its documentation says to read it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if rows:
        base.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(base, adapter).eval()


def read(model: str, adapter: Path, **settings: Any) -> Policy:
    policy = Policy(PolicySettings(model=model, adapter=str(adapter), **settings))
    policy.load()
    return policy


def logprobs(model: Any, sequences: Sequences) -> Tensor:
    """Log-probs [N, T] of completions by a model's own logits, one row at a time."""
    found = torch.zeros(sequences.completion_mask_NT.shape)
    for row in range(len(found)):
        at = int(sequences.prompt_of_N[row])
        prompt = sequences.prompt_ids_BP[at][sequences.prompt_mask_BP[at]]
        target = sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1]
        found[row, : len(target)] = logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
    return found


def edit(folder: Path, **fields: Any) -> Path:
    """Change fields of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder
