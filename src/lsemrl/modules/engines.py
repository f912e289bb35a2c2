"""Which way of decoding draws completions: chosen from model and device, and proven on the first prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import Cache

from lsemrl.errors import reason_of
from lsemrl.modules.decoding import Decode, Fixed, Growing, compiled_step, plain_step, read_prompts
from lsemrl.modules.families import RECORDED, expert_blocks, native_positions, reach, unshared, window
from lsemrl.modules.forward import OTHERWISE, TOLD_ELSEWHERE, looking_back, probe, too_far
from lsemrl.modules.policy import Policy
from lsemrl.modules.replay import Replay
from lsemrl.modules.sampling import Engine, Sampling
from lsemrl.modules.served import served
from lsemrl.types import PromptBatch, Sequences, UserError

_CUDAS = "graphs are CUDA's"


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A way of decoding that is proven.

    Attributes:
        decode: See `decoding.Decode`.
        about: Which it is, and why, for a person.
    """

    decode: Decode
    about: str


def check_engine(policy: Policy, sampling: Sampling, device: torch.device) -> None:
    """Refuse, before weights are read, an engine that is not there.

    Raises:
        UserError: Graphs are asked for without CUDA, or a server that is none.
    """
    if sampling.engine == "graphs" and device.type != "cuda":
        raise UserError(f"sampling.engine is graphs, but the device is {device.type}, and {_CUDAS}; set it to auto")
    if sampling.engine == "vllm":
        served(policy, sampling)


def decoder(policy: Policy, prompts: PromptBatch, engine: Engine) -> Decoder:
    """The way of decoding that `engine` names, or that auto chooses.

    The first time, the way is compared with what is scored, on the first of `prompts`.

    Args:
        policy: Not merged.
        prompts: B prompts, padded on the left.
        engine: As in `Sampling`.

    Raises:
        UserError: The model or the device cannot be sampled from in that way; or in no way, because completions would
            be drawn from another model than the one that learns from them.
    """
    if engine not in policy.decoders:
        policy.decoders[engine] = _choose(policy, prompts, engine)
    found: Decoder = policy.decoders[engine]
    return found


def _choose(policy: Policy, prompts: PromptBatch, engine: Engine) -> Decoder:
    device = prompts.prompt_ids_BP.device
    reason = None if engine == "loop" else _unfit(policy, engine, device)
    if reason and engine != "auto":
        raise UserError(f"sampling.engine is {engine}, but {reason}; set it to auto")
    rows = probe(policy.model.config, prompts.prompt_ids_BP, prompts.prompt_mask_BP)
    if engine != "loop" and not reason:

        def in_place(policy: Policy, kept: Cache, prompt_mask_NP: Tensor, longest: int) -> Fixed:
            replay = None if engine == "compiled" else Replay(device)
            return Fixed(policy, kept, prompt_mask_NP, longest, step=plain_step, replay=replay)

        reason = _difference(policy, rows, in_place)
        if reason is None and engine == "compiled":  # not before, which would compile for the shapes of the proof
            return Decoder(decode=partial(Fixed, step=compiled_step(), replay=None), about="by a compiled step")
        if reason is None:
            return Decoder(decode=in_place, about="by graphs")
        if engine != "auto":
            raise UserError(f"sampling.engine is {engine}, which draws from another model ({reason}); set it to loop")
    if wrong := _difference(policy, rows, Growing):
        raise UserError(
            f"policy.model is {policy.settings.model!r}, whose cache of what it has read cannot be sampled from "
            f"({wrong}); name a model of another family"
        )
    return Decoder(decode=Growing, about=f"by the loop: {reason}" if reason else "by the loop")


def _unfit(policy: Policy, engine: Engine, device: torch.device) -> str | None:
    """Why keys and values cannot be written in place by a step that is compiled or recorded; None if they can."""
    if policy.sharded:
        return "its weights are spread over ranks"
    if reason := unshared(policy.model):
        return reason
    back, bound = window(policy.model), reach(policy.model.config)
    if back is not None and (bound is None or back < bound.most):
        return f"the model attends in a sliding window of {back}"
    if engine == "compiled":
        return None
    if device.type != "cuda":
        return f"the device is {device.type}, and {_CUDAS}"
    kind = policy.model.get_decoder().config.model_type
    if kind not in RECORDED:
        return f"a step of this model's family ({kind}) was never recorded"
    if native_positions(policy.model.config) is not None:
        return "the model scales its positions by the longest row"
    return "the model chooses experts for each token" if expert_blocks(policy.model.get_decoder()) else None


def _difference(policy: Policy, rows: Sequences, decode: Decode) -> str | None:
    """How what is read token by token differs from what is scored; None if it does not."""
    with torch.autocast(rows.completion_ids_NT.device.type, enabled=False):
        with policy.merged():  # by the products that score, of which the way through the model may be proven here
            scored_NT, _ = policy.logprobs(rows)
        with policy.merged(onednn=decode is Growing):
            try:
                with looking_back(policy.model):
                    read_NT = _read(policy, rows, decode)
            except TOLD_ELSEWHERE:
                raise
            except OTHERWISE as error:
                return f"{type(error).__name__}: {reason_of(error, 150)}"
            return too_far((read_NT - scored_NT)[rows.completion_mask_NT].abs().mean().item(), policy.model, rows)


def _read(policy: Policy, rows: Sequences, decode: Decode) -> Tensor:
    """Log-probs [N, T] of completions, two behind each prompt, as if they were just drawn, of ever fewer rows."""
    ids_NT, mask_NT = rows.completion_ids_NT, rows.completion_mask_NT
    longest, alive = ids_NT.shape[1], torch.arange(len(ids_NT), device=ids_NT.device)
    logits_NV, go_on = read_prompts(policy, rows.prompt_ids_BP, rows.prompt_mask_BP, 2, longest, decode)
    found_NT = torch.zeros(ids_NT.shape, device=ids_NT.device)
    for step in range(longest):
        if step:
            going = mask_NT[alive, step].nonzero().squeeze(1)
            go_on.keep(going)
            alive = alive[going]
            logits_NV = go_on(ids_NT[alive, step - 1])
        found_NT[alive, step] = logits_NV.float().log_softmax(-1).gather(1, ids_NT[alive, step, None])[:, 0]
    return found_NT
