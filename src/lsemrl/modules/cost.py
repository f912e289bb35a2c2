"""What a step of GRPO takes, told from a model's configuration alone: no weights are read.

Operations are 2 for each token and weight of the matrices that it comes to (of experts, those that are chosen for it)
forward, and backward 4 more where all are trained, 2 where they are frozen. Attention over the context, which is little
in short texts, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lsemrl.data.splits import evenly
from lsemrl.kernels import default_chunk_tokens
from lsemrl.modules.adapters.config import new_config, read_config
from lsemrl.modules.adapters.loading import add_reference, attach, new_adapter
from lsemrl.modules.families import expert_weights
from lsemrl.modules.memory import MemoryEstimate, estimate_memory, experts_per_token
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import Sequences


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate.

    Attributes:
        weights: How many the model has.
        trained: How many of them, or beside them in adapters, are trained.
        rows: To train on.
        prompts, completions: Of a step.
        sampled: Tokens drawn in a step, on average.
        operations: Floating-point operations of a step, on average.
        memory: At the worst moment of a step in which the longest prompts and the longest references meet.
    """

    weights: int
    trained: int
    rows: int
    prompts: int
    completions: int
    sampled: int
    operations: float
    memory: MemoryEstimate


def step_cost(
    settings: PolicySettings,
    config: PretrainedConfig,
    prompts: Sequence[int],
    answers: Sequence[int],
    *,
    batch_size: int,
    generations: int,
    micro_batch_tokens: int = 4096,
) -> Cost:
    """What a step takes whose completions are as long as the references.

    Args:
        settings: Of the policy.
        config: Its model's.
        prompts: Tokens of each prompt to train on.
        answers: Tokens of each reference, EOS included; where prompts have none, those of others.
        batch_size: Prompts of a step, where there are as many.
        generations: Completions for each prompt.
        micro_batch_tokens: See `packing.micro_batches`.

    Raises:
        UserError: An adapter that the model cannot have.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, settings.dtype), trust_remote_code=settings.trust_remote_code
        )
        weights = sum(weight.numel() for weight in model.parameters())
        embeddings = model.get_input_embeddings().weight.numel()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        looked_up = 0 if tied else embeddings  # a head is multiplied by
        matrices = weights - looked_up - _passed_by(model)
        model, second = _as_trained(model, settings)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    size = min(batch_size, len(prompts))
    drawn = size * generations * fmean(answers)
    read = size * fmean(prompts) + drawn
    longest = _shapes(nlargest(size, prompts), nlargest(size, answers), generations)
    usual = _shapes(evenly(sorted(prompts), size), evenly(sorted(answers), size), generations)
    batches = [  # shorter ones may fill a micro-batch that two of the longest are too long for
        batch
        for one in (longest, usual)
        for batch in micro_batches(one, torch.arange(len(one)), micro_batch_tokens, share=True)
    ]
    backward = 2 if settings.train == "lora" else 4
    forward = 2 + 2 * (settings.reference != "none")  # learning's own, and the reference's
    vocabulary = config.get_text_config().vocab_size
    memory = estimate_memory(
        model,
        longest,
        batches,
        checkpointing=settings.gradient_checkpointing,
        chunk_tokens=default_chunk_tokens(vocabulary, torch.device("cpu")),
        reference=second,
    )
    if settings.quantization:
        linears = [
            each for each in model.get_decoder().layers.parameters() if each.dim() == 2 and not each.requires_grad
        ]
        saved = sum(weight.nbytes - weight.numel() // 2 for weight in linears)
        memory = replace(memory, weights=memory.weights - saved)
    return Cost(
        weights=weights,
        trained=trained,
        rows=len(prompts),
        prompts=size,
        completions=len(longest),
        sampled=round(drawn),
        operations=float(matrices * read * (2 + forward + backward)),
        memory=memory,
    )


def _as_trained(model: Any, settings: PolicySettings) -> tuple[Any, Any]:
    """A model with its adapters, and the second one of full fine-tuning, as `Policy.load` has them."""
    if settings.train == "full":
        return model, None if settings.reference == "none" else model
    folder = settings.adapter_folder
    if folder is None:
        model = new_adapter(model, new_config(settings.lora), settings.lora)
    else:
        model = attach(model, read_config(folder), f"policy.adapter {str(folder)!r}")
    if settings.copies_adapter:
        add_reference(model)
    return model, None


def _passed_by(model: Any) -> int:
    """How many weights are those of experts that a token does not come to."""
    taken = experts_per_token(model.config.get_text_config())
    experts = [weight for module in model.modules() for weight in expert_weights(module)]
    return sum(weight[taken:].numel() for weight in experts) if taken else 0


def _shapes(prompts: Sequence[int], answers: Sequence[int], generations: int) -> Sequences:
    """Completions of these lengths, of which nothing is asked but these; of answers as many as there are prompts."""
    lengths_N = torch.tensor([*islice(cycle(answers), len(prompts))]).repeat_interleave(generations)
    lengths_B = torch.tensor(prompts)
    places_T, places_P = torch.arange(int(lengths_N.max())), torch.arange(int(lengths_B.max()))
    return Sequences(
        # What they may begin with together is not known.
        prompt_ids_BP=torch.arange(len(prompts))[:, None].expand(-1, len(places_P)),
        prompt_mask_BP=places_P.flip(0)[None] < lengths_B[:, None],
        prompt_of_N=torch.arange(len(prompts)).repeat_interleave(generations),
        completion_ids_NT=torch.zeros(len(lengths_N), len(places_T), dtype=torch.long),
        completion_mask_NT=places_T[None] < lengths_N[:, None],
    )
