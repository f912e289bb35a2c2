"""Two ways through a causal language model to the predictions of completion tokens, and how each is proven.

shared: a prompt is computed once for all its completions, and the head only where completions are predicted. For
known families, whose layers follow a mask of ours and whose logits are a linear of the hidden states.
plain: every completion behind its own prompt, and the model's own logits. For all others.

The first rows are scored by the way that is to be taken and one by one, each alone. A way that gives other log-probs
is given up; without any, the model is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask
from torch.nn.functional import linear
from transformers import PretrainedConfig

from lsemrl.errors import reason_of
from lsemrl.matmul import float32_products
from lsemrl.modules.adapters.embeddings import head_weight
from lsemrl.modules.apart import additive, pieces
from lsemrl.modules.families import has_layer_masks, native_positions, reach, unshared, window
from lsemrl.modules.packing import PROMPT, Packed, pack
from lsemrl.types import Sequences, UserError

log = logging.getLogger(__name__)

Way = Literal["shared", "plain"]

_LONGEST = 24  # tokens of a prompt that is probed
_WRITTEN = (13, 7, 5, 9)  # and of completions behind it, the longest first
_TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 0.1}
"""Of the mean difference between two log-probs, in nats: what rounding makes of most models stays below."""
_LAST_BIT = {"tf32": 2**-11, "bfloat16": 2**-8}
_NOISY = 2.5
"""How many times what rounding makes of this model may lie between two ways. Of SmolLM2-135M in bfloat16 over 14 first
prompts, .6 to 1.4 times did, and 4 to 16 times where completions saw each other."""
OTHERWISE = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What models raise that are built otherwise than is asked of them here."""
TOLD_ELSEWHERE = (UserError, torch.OutOfMemoryError)
"""What they raise besides, which has reasons of its own."""


def predictors(model: Any, sequences: Sequences, way: Way) -> tuple[Tensor, Packed]:
    """What each completion token is predicted from.

    Args:
        model: A causal language model of transformers.
        sequences: N completions of M tokens together.
        way: Through it.

    Returns:
        The hidden states [M, H] that go into the head, or, by the plain way, float32 logits [M, V]; and the layout.

    Raises:
        UserError: A row is longer than a model can tell from its companions.
    """
    packed = pack(sequences if way == "shared" else sequences.repeated)
    native = native_positions(model.config)
    if native is not None:
        check_length(int(packed.positions_BL.max()) + 1, native)
    if way == "shared":
        states_BLH = model.get_decoder()(
            input_ids=packed.ids_BL,
            attention_mask=_mask(model, packed),
            position_ids=packed.positions_BL,
            use_cache=False,
        ).last_hidden_state
        return states_BLH.flatten(0, 1)[packed.sources_M], packed
    length = packed.ids_BL.shape[1]
    columns, column_M = torch.unique(packed.sources_M % length, return_inverse=True)
    logits_BCV = model(
        input_ids=packed.ids_BL,
        attention_mask=packed.mask().long(),
        position_ids=packed.positions_BL,
        logits_to_keep=columns,
        use_cache=False,
    ).logits
    return logits_BCV[packed.sources_M // length, column_M].float(), packed


def check_length(tokens: int, native: int) -> None:
    """Refuse a row whose numbers would depend on what else is in its batch, see `families.native_positions`."""
    if tokens > native:
        raise UserError(
            f"a row of {tokens:,} tokens is longer than the {native:,} from which policy.model scales its positions "
            "by the longest row of a batch (dynamic or longrope), so that rows would change with their companions; "
            "shorten prompts (data.limits) or outputs (max_new_tokens)"
        )


@contextmanager
def looking_back(model: Any) -> Iterator[None]:
    """Inside, attention is SDPA where it was flex: for single rows and single tokens, which have nothing to skip."""
    if model.config._attn_implementation != "flex_attention":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation("flex_attention")


def _mask(model: Any, packed: Packed) -> Any:
    """Who sees whom, as the decoder of a known family takes it."""
    if not packed.shared:  # plain causality, which it knows by itself
        return packed.mask()
    back = window(model)
    everything = _form(model, packed, None) if back is None or has_layer_masks(model) else None
    if back is None:
        return everything
    near = _form(model, packed, back)
    return near if everything is None else {"full_attention": everything, "sliding_attention": near}


def _form(model: Any, packed: Packed, back: int | None) -> Any:
    if model.config._attn_implementation == "flex_attention":
        return _blocks(packed.segments_BL, packed.positions_BL, back)
    dtype = next(model.parameters()).dtype
    mask = additive(packed.mask(back), dtype)
    mask.pieces = pieces(packed, dtype, back)  # type: ignore[attr-defined]
    return mask


def _blocks(segments_BL: Tensor, positions_BL: Tensor, back: int | None) -> BlockMask:
    """`Packed.mask` for flex attention, which leaves out blocks that nobody looks into."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segments_BL[row, key] == segments_BL[row, query]
        return (query >= key) & (own | (segments_BL[row, key] == PROMPT))

    def near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return positions_BL[row, query] - positions_BL[row, key] < (back or length)

    rows, length = segments_BL.shape
    seen = sees if back is None else and_masks(sees, near)
    return create_block_mask(seen, rows, None, length, length, device=segments_BL.device)


def score_logits(logits_MV: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs [M] of the targets and entropies [M], without gradient, of logits that exist whole."""
    logprobs_MV = (logits_MV / temperature).log_softmax(dim=-1)
    entropy_M = torch.special.entr(logprobs_MV.detach().exp()).sum(dim=-1)
    return logprobs_MV.gather(1, targets_M[:, None])[:, 0], entropy_M


def positions(mask: Tensor) -> Tensor:
    """Position ids that count from the first real token of a left-padded row: int64, the shape of `mask`."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def prove(model: Any, sequences: Sequences, name: str) -> Way:
    """The way through `model`, proven on prompts of `sequences`.

    To be called in eval mode and without gradients. That it is the plain one is logged with the reason.

    Args:
        model: A causal language model of transformers.
        sequences: Rows to come.
        name: As the user named the model.

    Raises:
        UserError: The model gives a row other numbers in company than alone, or sees what comes after a token.
    """
    rows = probe(model.config, sequences.prompt_ids_BP, sequences.prompt_mask_BP)
    with torch.autocast(
        rows.completion_ids_NT.device.type, enabled=False
    ):  # whose rounding would pass for a difference
        reason = unshared(model) or _other_head(model, rows)
        if reason is None:
            reason = _difference(model, rows, "shared")
        if reason is None:
            return "shared"
        log.warning("every completion computes its prompt anew, and its logits are held whole: %s", reason)
        reason = _difference(model, rows, "plain")
    if reason is None:
        return "plain"
    raise UserError(
        f"policy.model is {name!r}, which cannot be trained: a token is not predicted from what stands before it alone "
        f"({reason}); name a causal language model that gives a row the same numbers in any company"
    )


def probe(config: PretrainedConfig, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor) -> Sequences:
    """The end of the first prompt and a shorter one of it, with two completions each, none as long as another.

    Prompts are so short that a model of `config` has positions for all of it.
    """
    bound = reach(config)
    longest = min(_LONGEST, max(bound.most - _WRITTEN[0], 1)) if bound else _LONGEST
    ids_P = prompt_ids_BP[0][prompt_mask_BP[0]][-longest:]
    starts = torch.tensor([0, len(ids_P) // 2], device=ids_P.device)
    own_L = ids_P.repeat(_WRITTEN[0])  # as long on all ranks, which go through a sharded model together
    lengths_N = torch.tensor(_WRITTEN, device=ids_P.device)
    return Sequences(
        prompt_ids_BP=ids_P.repeat(2, 1),
        prompt_mask_BP=torch.arange(len(ids_P), device=ids_P.device) >= starts[:, None],
        prompt_of_N=torch.tensor([0, 0, 1, 1], device=ids_P.device),
        completion_ids_NT=torch.stack([own_L[: _WRITTEN[0]], own_L[-_WRITTEN[0] :]]).repeat(2, 1),
        completion_mask_NT=torch.arange(_WRITTEN[0], device=ids_P.device) < lengths_N[:, None],
    )


def _alone(model: Any, sequences: Sequences) -> Iterator[Tensor]:
    """The model's own logits of each completion in turn [T, V], from single rows without any padding.

    The first token's are those of the prompt by itself: a model that sees what comes after would give others.
    """
    for row, prompt in enumerate(sequences.prompt_of_N.tolist()):
        prompt_P = sequences.prompt_ids_BP[prompt][sequences.prompt_mask_BP[prompt]]
        fed_T = sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]][:-1]
        first_1V = model(input_ids=prompt_P[None], use_cache=False).logits[0, -1:]
        whole_LV = model(input_ids=torch.cat([prompt_P, fed_T])[None], use_cache=False).logits[0]
        logits_TV = torch.cat([first_1V, whole_LV[len(prompt_P) :]]).float()
        check_finite(bool(logits_TV.amax(dim=-1).isfinite().all()))
        yield logits_TV


def check_finite(finite: bool) -> None:
    """Refuse logits from which nothing can be drawn or learned.

    Args:
        finite: Whether the highest of every row, or every weight, is a finite number.

    Raises:
        UserError: It is not.
    """
    if not finite:
        raise UserError(
            "the policy's logits are not finite: its weights have run away, or were read so; lower optimizer.lr, or "
            "start from another policy.model or policy.adapter"
        )


def _other_head(model: Any, sequences: Sequences) -> str | None:
    """What the model does to make logits of hidden states besides a linear, told from the same states to the bit."""
    weight = head_weight(model.get_output_embeddings())
    if weight is None:
        return "the head carries factors of an adapter, or is no linear"
    states: list[Tensor] = []
    hook = model.get_decoder().register_forward_hook(
        lambda module, args, output: states.append(output.last_hidden_state)
    )
    try:
        logits_1PV = model(input_ids=sequences.prompt_ids_BP[:1], use_cache=False).logits
    finally:
        hook.remove()
    plain_1PV = linear(states[0].to(weight[0].dtype), *weight).to(logits_1PV.dtype)
    return None if torch.equal(plain_1PV, logits_1PV) else "the model's logits are more than a linear of hidden states"


def _difference(model: Any, sequences: Sequences, way: Way) -> str | None:
    """How `way` disagrees with each row alone; None if it does not."""
    try:
        found_MV, packed = predictors(model, sequences, way)
        if way == "shared":
            weight = head_weight(model.get_output_embeddings())
            assert weight is not None
            found_MV = linear(found_MV.to(weight[0].dtype), *weight).float()
        with looking_back(model):
            truth_MV = torch.cat(list(_alone(model, sequences)))
    except TOLD_ELSEWHERE:
        raise
    except OTHERWISE as error:
        return f"{type(error).__name__}: {reason_of(error, 150)}"
    off_MV = found_MV.log_softmax(dim=-1) - truth_MV.log_softmax(dim=-1)
    return too_far(off_MV.gather(1, packed.targets_M[:, None]).abs().mean().item(), model, sequences)


def too_far(off: float, model: Any, sequences: Sequences) -> str | None:
    """That two ways through a model differ by more than its rounding; None if they do not.

    To be called in eval mode and without gradients, by all ranks of a sharded model.

    Args:
        off: Mean difference of log-probs, nats.
        model: Whose.
        sequences: Of which rows.

    Raises:
        UserError: Weights are not finite, which one kernel of attention passes over in silence and another does not.
    """
    one = next(model.parameters())
    products = "bfloat16" if one.dtype == torch.bfloat16 else float32_products(one.device)
    noise = 0.0 if products == "float32" else _rounding(model, sequences, _LAST_BIT[products])
    if off <= max(_TOLERANCE[products], _NOISY * noise):
        return None
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    check_finite(all(bool(weight.isfinite().all()) for weight in own if weight.is_floating_point()))
    return f"log-probs were off by {off:.2g} nats"


def _rounding(model: Any, sequences: Sequences, last_bit: float) -> float:
    """Nats by which log-probs of single rows move, on average, with the last bit of what is read.

    Every sum after it is rounded otherwise, as it is in another company: log-probs of SmolLM2-135M in bfloat16 move by
    .07 nats, where a model of billions does by .01.
    """

    def nudge(module: Any, args: Any, embedded_1LH: Tensor) -> Tensor:
        signs_L1 = torch.ones(embedded_1LH.shape[1], 1, device=embedded_1LH.device)
        signs_L1[::2] = -1
        return (embedded_1LH * (1 + last_bit * signs_L1)).to(embedded_1LH.dtype)

    targets_MV = sequences.completion_ids_NT[sequences.completion_mask_NT][:, None]
    with looking_back(model):
        plain_MV = torch.cat(list(_alone(model, sequences))).log_softmax(dim=-1)
        hook = model.get_input_embeddings().register_forward_hook(nudge)
        try:
            nudged_MV = torch.cat(list(_alone(model, sequences))).log_softmax(dim=-1)
        finally:
            hook.remove()
    return float((nudged_MV - plain_MV).gather(1, targets_MV).abs().mean())
