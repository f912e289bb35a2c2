"""How a whole model ends its texts, and how it is written so that whoever reads it ends them there too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lsemrl.modules.pretrained import declared_eos


def ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's and all those the model declares (Qwen3 has two)."""
    return sorted({tokenizer.eos_token_id, *declared_eos(model.config, model.generation_config)})


def write_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model that ends its texts, and draws them, as it does here; its tokenizer is not written.

    Args:
        model: Keeps what it is written with, which says no more than `ends` did.
        tokenizer: By which it reads.
        folder: Made where it is missing.
        state: Its tensors, where it itself holds shards.
    """
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder, state_dict=state)
