"""Examples to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsemrl.data.tokens import complete_tokenizer, prompt_ids, target_ids
from lsemrl.types import Example, PromptBatch, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> PromptBatch:
    """Tokenize B examples; the first reference of each is its target.

    Raises:
        UserError: The tokenizer has no EOS.
    """
    complete_tokenizer(tokenizer)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    prompts_BP, prompt_mask_BP = padded(prompt_ids(tokenizer, [row.prompt for row in examples]), pad, left=True)
    targets_BT, target_mask_BT = padded(target_ids(tokenizer, [row.reference for row in examples]), pad, left=False)
    return PromptBatch(
        examples=tuple(examples),
        prompt_ids_BP=prompts_BP,
        prompt_mask_BP=prompt_mask_BP,
        target_ids_BT=targets_BT,
        target_mask_BT=target_mask_BT,
    )


def padded(rows: Sequence[Sequence[int]], pad: int = 0, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest]; the mask is kept apart from the ids, as the pad token may also be a real one."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[at, where] = torch.tensor(row)
        mask[at, where] = True
    return ids, mask


def sequences_of(parts: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Sequences:
    """Token ids of prompts and of what is behind them, a prompt of its own for each."""
    (prompts_BP, prompt_mask_BP), (ids_NT, mask_NT) = (
        padded([part[side] for part in parts], left=side == 0) for side in (0, 1)
    )
    return Sequences(
        prompt_ids_BP=prompts_BP.to(device),
        prompt_mask_BP=prompt_mask_BP.to(device),
        prompt_of_N=torch.arange(len(parts), device=device),
        completion_ids_NT=ids_NT.to(device),
        completion_mask_NT=mask_NT.to(device),
    )
