"""Three ways through a causal language model to the predictions of completion tokens, and how one is chosen.

shared: a prompt is computed once for all its completions, and the head only where completions are predicted.
packed: as shared, but every completion brings its prompt; for models that do not look where they are told to.
whole: the model's own logits, for models that do something to them behind the head, such as a soft cap.

The first rows that a policy scores are scored in the quickest way and in the plainest; where these differ the next
way is tried. Left out: attention other than SDPA, eager and flex, which cannot be given a mask of their own.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lsemrl.modules.adapters.embeddings import head_weight
from lsemrl.modules.packing import PROMPT, Packed, pack
from lsemrl.types import Sequences

log = logging.getLogger(__name__)

Route = Literal["shared", "packed", "whole"]

_PROBED = 4  # completions
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the mean difference between two log-probs, in nats: rounding is far below, another computation far above."""


def predictors(model: Any, sequences: Sequences, route: Route) -> tuple[Tensor, Packed]:
    """What each completion token is predicted from.

    Args:
        model: A causal language model of transformers.
        sequences: N completions of M tokens together.
        route: The way through it.

    Returns:
        The hidden states [M, H] that go into the head, or, by way of whole, the logits [M, V]; and the layout.
    """
    if route == "whole":
        return logits(model, sequences)[sequences.completion_mask_NT], pack(sequences)
    packed = pack(sequences if route == "shared" else sequences.repeated)
    mask: Any = packed.mask
    if mask.dim() == 4 and model.config._attn_implementation == "flex_attention":
        mask = _blocks(packed.segments_BL)
    elif mask.dim() == 4:
        # Numbers, since attention would make them of a boolean mask in every layer and keep each for the backward pass.
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    states_BLH = model.get_decoder()(
        input_ids=packed.ids_BL, attention_mask=mask, position_ids=packed.positions_BL, use_cache=False
    ).last_hidden_state
    return states_BLH.flatten(0, 1)[packed.sources_M], packed


def _blocks(segments_BL: Tensor) -> BlockMask:
    """`Packed.mask` for flex attention, which leaves out blocks that nobody looks into."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segments_BL[row, key] == segments_BL[row, query]
        return (query >= key) & (own | (segments_BL[row, key] == PROMPT))

    rows, length = segments_BL.shape
    return create_block_mask(sees, rows, None, length, length, device=segments_BL.device)


def logits(model: Any, sequences: Sequences) -> Tensor:
    """The model's own logits of every completion token, nothing shared or packed: float32 [N, T, V]."""
    sequences = sequences.repeated
    ids = torch.cat([sequences.prompt_ids_BP, sequences.completion_ids_NT], dim=1)
    mask = torch.cat([sequences.prompt_mask_BP, sequences.completion_mask_NT], dim=1)
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions(mask),
        logits_to_keep=sequences.completion_ids_NT.shape[1] + 1,
        use_cache=False,
    )
    logits_NTV: Tensor = output.logits[:, :-1].float()
    return logits_NTV


def score_logits(logits_MV: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs [M] of the targets and entropies [M], without gradient, of logits that exist whole."""
    logprobs_MV = (logits_MV / temperature).log_softmax(dim=-1)
    entropy_M = torch.special.entr(logprobs_MV.detach().exp()).sum(dim=-1)
    return logprobs_MV.gather(1, targets_M[:, None])[:, 0], entropy_M


def positions(mask: Tensor) -> Tensor:
    """Position ids that count from the first real token of a left-padded row: int64, the shape of `mask`."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def head(model: Any) -> nn.Module:
    """The output head."""
    module: nn.Module = model.get_output_embeddings()
    return module


def choose_route(model: Any, sequences: Sequences) -> Route:
    """The quickest way through `model` that gives the log-probs of the plainest on the first few of `sequences`.

    To be called in eval mode and without gradients. Every way that has to be given up is logged with the reason.
    """
    device = sequences.completion_ids_NT.device.type
    with torch.autocast(device, enabled=False):  # whose rounding would pass for a difference
        return _quickest(model, sequences)


def _quickest(model: Any, sequences: Sequences) -> Route:
    probe = sequences.select([[row] for row in range(min(_PROBED, len(sequences)))])
    # Any completion can stand behind any prompt, so siblings are made of whatever rows there are.
    probe = replace(
        probe,
        prompt_ids_BP=probe.prompt_ids_BP[:1],
        prompt_mask_BP=probe.prompt_mask_BP[:1],
        prompt_of_N=torch.zeros_like(probe.prompt_of_N),
    )
    truth_MV = predictors(model, probe, "whole")[0].log_softmax(dim=-1)
    ways: tuple[tuple[Route, str], ...] = (
        ("shared", "every completion computes its prompt anew"),
        ("packed", "logits are held whole instead of in chunks"),
    )
    if head_weight(head(model)) is None:
        log.warning("%s: the head carries factors of an adapter", ways[1][1])
        return "whole"
    for route, price in ways:
        reason = (blindness(model) if route == "shared" else None) or _difference(model, probe, truth_MV, route)
        if reason is None:
            return route
        log.warning("%s: %s", price, reason)
    return "whole"


def blindness(model: Any) -> str | None:
    """Why a model would not look where a mask tells it to, although short rows may not show it."""
    config = model.config
    layers = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if layers:
        return f"the model has layers of {', '.join(layers)}"
    if getattr(config, "sliding_window", None) is not None:
        return f"the model attends in a sliding window of {config.sliding_window}"
    if config._attn_implementation not in ("sdpa", "eager", "flex_attention"):
        return f"the model's attention, {config._attn_implementation}, takes no mask of ours"
    return None


def _difference(model: Any, probe: Sequences, truth_MV: Tensor, route: Route) -> str | None:
    """How `route` disagrees with the truth; None if it does not."""
    try:
        states_MH, packed = predictors(model, probe, route)
        found_MV = head(model)(states_MH).float().log_softmax(dim=-1)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    off = (found_MV - truth_MV).gather(1, packed.targets_M[:, None]).abs().mean().item()
    return None if off <= _TOLERANCE[next(model.parameters()).dtype] else f"log-probs were off by {off:.2g} nats"
