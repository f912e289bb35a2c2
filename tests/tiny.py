"""A tiny Qwen3 with random weights, in the real format, for whatever needs a causal language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from lsemrl import micro
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.types import PromptBatch, Sequences


def save_tiny_model(folder: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """Write a two-layer Qwen3 with the embedded tokenizer to `folder`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=hidden // 2,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            initializer_range=0.2,  # far from uniform, so that mistakes show
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_policy(model: str, *, lora: LoraSettings | None = None, **settings: object) -> Policy:
    """A loaded policy with rank-4 adapters, stirred unless they come from a folder."""
    lora = lora or LoraSettings(rank=4, alpha=8.0, dropout=0.0)
    policy = Policy(PolicySettings(model=model, lora=lora, **settings))  # type: ignore[arg-type]
    torch.manual_seed(1)
    policy.load()
    if policy.settings.adapter is None:
        stir(policy)
    return policy


def stir(policy: Policy, scale: float = 0.3) -> None:
    """Move every trained parameter a little."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def begun_alike(prompts: PromptBatch) -> PromptBatch:
    """The same prompts behind nine tokens that they have in common."""
    begin_BP = torch.arange(40, 49).expand(len(prompts.examples), -1)
    ids_BP = torch.cat([begin_BP, prompts.prompt_ids_BP], dim=1)
    mask_BP = torch.cat([torch.ones_like(begin_BP, dtype=torch.bool), prompts.prompt_mask_BP], dim=1)
    order_BP = mask_BP.long().argsort(dim=1, stable=True)
    return replace(prompts, prompt_ids_BP=ids_BP.gather(1, order_BP), prompt_mask_BP=mask_BP.gather(1, order_BP))


def plain_logits(model: Any, sequences: Sequences) -> Tensor:
    """A model's own logits of every completion token, each row by itself: [N, T, V], zero where there is none."""
    rows = []
    for row, prompt in enumerate(sequences.prompt_of_N.tolist()):
        prompt_P = sequences.prompt_ids_BP[prompt][sequences.prompt_mask_BP[prompt]]
        own_T = sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]]
        logits_LV = model(input_ids=torch.cat([prompt_P, own_T])[None], use_cache=False).logits[0]
        rows.append(logits_LV[len(prompt_P) - 1 : -1])
    width = sequences.completion_mask_NT.shape[1]
    return torch.stack([torch.nn.functional.pad(one, (0, 0, 0, width - len(one))) for one in rows])
