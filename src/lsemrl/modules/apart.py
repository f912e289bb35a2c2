"""Attention in rows that hold a prompt and all its completions, piece by piece.

By one mask over the row every completion is multiplied with all of its siblings, of which nothing is kept: with G
completions of T tokens behind P that costs (P + G T)^2. Apart it costs P^2 + G T (P + T): the prompt is a causal text,
and every completion one that sees the prompt's keys and its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lsemrl.modules.packing import PROMPT, Packed


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Where the pieces of B rows of L tokens lie: prompts of at most P tokens, N completions of at most T, M in all.

    Attributes:
        prompt_mask: What is added to the scores of prompts, [1, 1, P, P].
        mask: What is added to those of completions, [N, 1, T, P + T].
        row_N: int64, the row that a completion is in.
        places_M: int64 in [0, B * L), where the completions' tokens are in the rows.
        slots_M: int64 in [0, N * T), where they are among the completions.
    """

    prompt_mask: Tensor
    mask: Tensor
    row_N: Tensor
    places_M: Tensor
    slots_M: Tensor


def pieces(packed: Packed, dtype: torch.dtype, window: int | None = None) -> Pieces:
    """The pieces of rows that are packed.

    Args:
        packed: B rows, some of which hold several completions (`Packed.shared`).
        dtype: That of the model, for the masks.
        window: Tokens that a token sees, itself among them; None for all before it.
    """
    segments_BL, device = packed.segments_BL, packed.segments_BL.device
    prompts_B = (segments_BL == PROMPT).sum(dim=1)
    row_M, column_M = (segments_BL > PROMPT).nonzero(as_tuple=True)
    own_M = packed.positions_BL[row_M, column_M] - prompts_B[row_M]
    first_M = own_M == 0  # a completion lies in one piece, from its first token on
    completion_M, row_N = first_M.cumsum(dim=0) - 1, row_M[first_M]
    count, width, longest = len(row_N), int(own_M.max()) + 1, int(prompts_B.max())

    at_P, at_T = torch.arange(longest, device=device), torch.arange(width, device=device)
    causal_PP, causal_NTT = at_P[:, None] >= at_P, (at_T[:, None] >= at_T).expand(count, -1, -1)
    behind_N1 = prompts_B[row_N, None]
    prompt_NTP = (at_P < behind_N1)[:, None].expand(-1, width, -1)
    if window is not None:
        causal_PP &= at_P[:, None] - at_P < window
        causal_NTT = causal_NTT & (at_T[:, None] - at_T < window)
        prompt_NTP = prompt_NTP & ((behind_N1 + at_T)[:, :, None] - at_P < window)
    return Pieces(
        prompt_mask=additive(causal_PP[None, None], dtype),
        mask=additive(torch.cat([prompt_NTP, causal_NTT], dim=2)[:, None], dtype),
        row_N=row_N,
        places_M=row_M * segments_BL.shape[1] + column_M,
        slots_M=completion_M * width + own_M,
    )


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers for a boolean mask, of which attention would make them in every layer and keep each for the backward."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' attention by SDPA, apart where the mask says of which pieces it is the whole."""
    found: Pieces | None = getattr(attention_mask, "pieces", None)
    if found is None or settings.get("position_bias") is not None or settings.get("dropout"):
        output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)[0]
    else:
        output = _Apart.apply(query, key, value, module, found, settings)
    return output, None


AttentionInterface.register("sdpa", attend)


class _Apart(torch.autograd.Function):
    """Attention of pieces; what they repeat of a prompt is made once more on the way back, for it is the most of it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, module: Any, found: Pieces, settings: dict[str, Any]
    ) -> Tensor:
        """From [B, heads, L, D] each to [B, L, heads, D], as `sdpa_attention_forward`."""
        states = query, key, value
        ctx.save_for_backward(*states)
        kind = query.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        ctx.called = module, found, settings
        prompt_BPHD, own_NTHD = _attend(module, _cut(states, found), found, settings)
        output_BLHD = prompt_BPHD.new_zeros(len(query), query.shape[2], *prompt_BPHD.shape[2:])
        return _laid_out(output_BLHD, prompt_BPHD, own_NTHD, found)

    @staticmethod
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        states, (module, found, settings) = ctx.saved_tensors, ctx.called
        longest = found.prompt_mask.shape[-1]
        leaves = [piece.detach().requires_grad_() for piece in _cut(states, found)]
        with torch.enable_grad(), torch.autocast(grad_BLHD.device.type, **ctx.autocast):
            outputs = _attend(module, leaves, found, settings)
        toward_NTHD = _own(grad_BLHD, found)
        # What was computed for places that are none of a prompt was never given out.
        rest_BLHD = grad_BLHD.flatten(0, 1).index_fill(0, found.places_M, 0).view_as(grad_BLHD)
        grads = torch.autograd.grad(outputs, leaves, [rest_BLHD[:, :longest], toward_NTHD])
        laid_out = []
        for at, (whole, prompt, own) in enumerate(zip(states, grads[:3], grads[3:], strict=True)):
            if at:  # keys and values of a prompt were seen by all of its completions, too
                prompt = prompt.index_add(0, found.row_N, own[:, :, :longest])
                own = own[:, :, longest:]
            grad = torch.zeros_like(whole.transpose(1, 2), memory_format=torch.contiguous_format)
            laid_out.append(_laid_out(grad, prompt.transpose(1, 2), own.transpose(1, 2), found).transpose(1, 2))
        return *laid_out, None, None, None


def _own(states_BLHD: Tensor, found: Pieces) -> Tensor:
    """What belongs to completions, [N, T, heads, D]; 0 where one is shorter."""
    own = states_BLHD.new_zeros(found.mask.shape[0] * found.mask.shape[2], *states_BLHD.shape[2:])
    own[found.slots_M] = states_BLHD.flatten(0, 1)[found.places_M]
    return own.view(found.mask.shape[0], found.mask.shape[2], *states_BLHD.shape[2:])


def _cut(states: Sequence[Tensor], found: Pieces) -> list[Tensor]:
    """Queries, keys and values of prompts, and of completions, whose keys and values begin with their prompt's."""
    prompts = [each[:, :, : found.prompt_mask.shape[-1]] for each in states]
    owns = [_own(each.transpose(1, 2), found).transpose(1, 2) for each in states]
    seen = [torch.cat([prompt[found.row_N], own], dim=2) for prompt, own in zip(prompts[1:], owns[1:], strict=True)]
    return [*prompts, owns[0], *seen]


def _attend(module: Any, cut: Sequence[Tensor], found: Pieces, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Outputs of prompts [B, P, heads, D], and of completions [N, T, heads, D]."""
    prompt_BPHD, _ = sdpa_attention_forward(module, *cut[:3], found.prompt_mask, **settings)
    own_NTHD, _ = sdpa_attention_forward(module, *cut[3:], found.mask, **settings)
    return prompt_BPHD, own_NTHD


def _laid_out(whole_BLHD: Tensor, prompt_BPHD: Tensor, own_NTHD: Tensor, found: Pieces) -> Tensor:
    """Write prompts and completions to their places in `whole_BLHD`, which is contiguous."""
    whole_BLHD[:, : prompt_BPHD.shape[1]] = prompt_BPHD
    whole_BLHD.view(-1, *whole_BLHD.shape[2:])[found.places_M] = own_NTHD.flatten(0, 1)[found.slots_M]
    return whole_BLHD
