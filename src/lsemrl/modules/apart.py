"""Attention in rows that hold a prompt and all its completions, piece by piece.

By one mask over the row every completion is multiplied with all of its siblings, of which nothing is kept: with G
completions of T tokens behind P that costs (P + G T)^2. Apart it costs P^2 + G T (P + T): the prompt is a causal text,
and every completion one that sees the prompt's keys and its own. A batch of completions is as long as its longest, so
that those of like length go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lsemrl.modules.packing import PROMPT, Packed

_SPREAD = 4 / 3
"""How many times the tokens of completions their padding and they may be together: those of like length go together."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """Where N completions of at most T tokens, M in all, lie in rows.

    Attributes:
        mask: What is added to their scores, [N, 1, T, P + T].
        row_N: int64, the row that a completion is in.
        places_M: int64 in [0, B * L), where their tokens are in the rows.
        slots_M: int64 in [0, N * T), where they are among the completions.
    """

    mask: Tensor
    row_N: Tensor
    places_M: Tensor
    slots_M: Tensor


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of B rows of L tokens: prompts of at most P tokens, and completions, those of like length together.

    Attributes:
        prompt_mask: What is added to the scores of prompts, [1, 1, P, P].
        owns: The completions.
    """

    prompt_mask: Tensor
    owns: tuple[Own, ...]


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
    places_M = row_M * segments_BL.shape[1] + column_M
    longest = int(prompts_B.max())
    at_P = torch.arange(longest, device=device)
    causal_PP = at_P[:, None] >= at_P
    if window is not None:
        causal_PP &= at_P[:, None] - at_P < window
    owns = []
    lengths = completion_M.bincount().tolist()
    # On a GPU every group costs launches, and none was measured there.
    for rows in _alike(lengths) if device.type == "cpu" else [list(range(len(lengths)))]:
        at_N = torch.tensor(rows, device=device)
        number_N = torch.full_like(row_N, -1).index_copy(0, at_N, torch.arange(len(rows), device=device))
        own, number_M = number_N[completion_M] >= 0, number_N[completion_M]
        width = int(own_M[own].max()) + 1
        at_T = torch.arange(width, device=device)
        causal_NTT = (at_T[:, None] >= at_T).expand(len(rows), -1, -1)
        behind_N1 = prompts_B[row_N[at_N], None]
        prompt_NTP = (at_P < behind_N1)[:, None].expand(-1, width, -1)
        if window is not None:
            causal_NTT = causal_NTT & (at_T[:, None] - at_T < window)
            prompt_NTP = prompt_NTP & ((behind_N1 + at_T)[:, :, None] - at_P < window)
        owns.append(
            Own(
                mask=additive(torch.cat([prompt_NTP, causal_NTT], dim=2)[:, None], dtype),
                row_N=row_N[at_N],
                places_M=places_M[own],
                slots_M=(number_M * width + own_M)[own],
            )
        )
    return Pieces(prompt_mask=additive(causal_PP[None, None], dtype), owns=tuple(owns))


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of completions of these lengths, in groups of which little is padding."""
    groups: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        tokens += length
        if not groups or length * (len(groups[-1]) + 1) > _SPREAD * tokens:
            groups.append([])
            tokens = length
        groups[-1].append(row)
    return groups


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
        prompt_BPHD, owns = _attend(module, _cut(states, found), found, settings)
        output_BLHD = prompt_BPHD.new_zeros(len(query), query.shape[2], *prompt_BPHD.shape[2:])
        output_BLHD[:, : prompt_BPHD.shape[1]] = prompt_BPHD
        for own_NTHD, own in zip(owns, found.owns, strict=True):
            _write(output_BLHD, own_NTHD, own)
        return output_BLHD

    @staticmethod
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        states, (module, found, settings) = ctx.saved_tensors, ctx.called
        longest = found.prompt_mask.shape[-1]
        leaves = [[piece.detach().requires_grad_() for piece in cut] for cut in _cut(states, found)]
        with torch.enable_grad(), torch.autocast(grad_BLHD.device.type, **ctx.autocast):
            prompt_BPHD, owns = _attend(module, leaves, found, settings)
        # What was computed for places that are none of a prompt was never given out.
        rest_BLHD = grad_BLHD.flatten(0, 1)
        for own in found.owns:
            rest_BLHD = rest_BLHD.index_fill(0, own.places_M, 0)
        toward = [rest_BLHD.view_as(grad_BLHD)[:, :longest], *(_own(grad_BLHD, own) for own in found.owns)]
        grads = torch.autograd.grad([prompt_BPHD, *owns], list(chain(*leaves)), toward)
        laid_out = []
        for at, whole in enumerate(states):
            prompt_BHPD, *of_owns = grads[at::3]
            if at:  # keys and values of a prompt were seen by all of its completions, too
                for grad_NHKD, own in zip(of_owns, found.owns, strict=True):
                    prompt_BHPD = prompt_BHPD.index_add(0, own.row_N, grad_NHKD[:, :, :longest])
                of_owns = [grad_NHKD[:, :, longest:] for grad_NHKD in of_owns]
            grad = torch.zeros_like(whole.transpose(1, 2), memory_format=torch.contiguous_format)
            grad[:, :longest] = prompt_BHPD.transpose(1, 2)
            for grad_NHTD, own in zip(of_owns, found.owns, strict=True):
                _write(grad, grad_NHTD.transpose(1, 2), own)
            laid_out.append(grad.transpose(1, 2))
        return *laid_out, None, None, None


def _own(states_BLHD: Tensor, own: Own) -> Tensor:
    """What belongs to completions, [N, T, heads, D]; 0 where one is shorter."""
    count, _, width, _ = own.mask.shape
    found = states_BLHD.new_zeros(count * width, *states_BLHD.shape[2:])
    found[own.slots_M] = states_BLHD.flatten(0, 1)[own.places_M]
    return found.view(count, width, *states_BLHD.shape[2:])


def _write(whole_BLHD: Tensor, own_NTHD: Tensor, own: Own) -> None:
    """Write completions to their places in `whole_BLHD`, which is contiguous."""
    whole_BLHD.view(-1, *whole_BLHD.shape[2:])[own.places_M] = own_NTHD.flatten(0, 1)[own.slots_M]


def _cut(states: Sequence[Tensor], found: Pieces) -> list[list[Tensor]]:
    """Queries, keys and values of prompts, and of completions, whose keys and values begin with their prompt's."""
    prompts = [each[:, :, : found.prompt_mask.shape[-1]] for each in states]
    cut = [prompts]
    for own in found.owns:
        query, *seen = (_own(each.transpose(1, 2), own).transpose(1, 2) for each in states)
        behind = [torch.cat([of[own.row_N], one], dim=2) for of, one in zip(prompts[1:], seen, strict=True)]
        cut.append([query, *behind])
    return cut


def _attend(
    module: Any, cut: Sequence[Sequence[Tensor]], found: Pieces, settings: dict[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """Outputs of prompts [B, P, heads, D], and of completions [N, T, heads, D]."""
    masks = found.prompt_mask, *(own.mask for own in found.owns)
    prompt_BPHD, *owns = (
        sdpa_attention_forward(module, *states, mask, **settings)[0] for states, mask in zip(cut, masks, strict=True)
    )
    return prompt_BPHD, owns
