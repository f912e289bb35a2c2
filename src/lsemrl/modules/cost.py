"""What a step of GRPO takes, told from a model's configuration alone: no weights are read.

Operations are 2 for each weight of the matrices and token forward, and backward 4 more where all are trained, 2 where
they are frozen. Attention over the context, which is little in short texts, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lsemrl.kernels import default_chunk_tokens
from lsemrl.modules.adapters.config import new_config
from lsemrl.modules.adapters.loading import new_adapter
from lsemrl.modules.memory import MemoryEstimate, estimate_memory
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import Sequences


@dataclass(frozen=True, kw_only=True)
class Cost:
    """An estimate.

    Attributes:
        weights: How many the model has.
        trained: How many of them, or beside them in adapters, are trained.
        prompts, completions: Of a step.
        sampled: Tokens drawn in a step.
        operations: Floating-point operations of a step.
        memory: At the worst moment of a step.
    """

    weights: int
    trained: int
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
    generations: int,
    micro_batch_tokens: int = 4096,
) -> Cost:
    """What a step takes whose completions are as long as the references.

    Args:
        settings: Of the policy.
        config: Its model's.
        prompts: Tokens of each prompt of a step.
        answers: Tokens of each reference, EOS included.
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
        matrices = weights - (0 if tied else embeddings)  # embeddings are looked up, a head is multiplied by
        if settings.train == "lora":
            model = new_adapter(model, new_config(settings.lora), settings.lora)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    whole = _shapes(prompts, answers, generations)
    batches = micro_batches(whole, torch.arange(len(whole)), micro_batch_tokens, share=True)
    drawn = int(whole.completion_mask_NT.sum())
    read = sum(prompts) + drawn
    backward = 2 if settings.train == "lora" else 4
    forward = 2 + 2 * (settings.reference != "none")  # learning's own, and the reference's
    vocabulary = config.get_text_config().vocab_size
    memory = estimate_memory(
        model,
        whole,
        batches,
        checkpointing=settings.gradient_checkpointing,
        chunk_tokens=default_chunk_tokens(vocabulary, torch.device("cpu")),
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
        prompts=len(prompts),
        completions=len(whole),
        sampled=drawn,
        operations=float(matrices * read * (2 + forward + backward)),
        memory=memory,
    )


def _shapes(prompts: Sequence[int], answers: Sequence[int], generations: int) -> Sequences:
    """Completions of these lengths, of which nothing is asked but these."""
    lengths_N = torch.tensor(answers).repeat_interleave(generations)
    lengths_B = torch.tensor(prompts)
    places_T, places_P = torch.arange(int(lengths_N.max())), torch.arange(int(lengths_B.max()))
    return Sequences(
        prompt_ids_BP=torch.zeros(len(prompts), len(places_P), dtype=torch.long),
        prompt_mask_BP=places_P.flip(0)[None] < lengths_B[:, None],
        prompt_of_N=torch.arange(len(prompts)).repeat_interleave(generations),
        completion_ids_NT=torch.zeros(len(lengths_N), len(places_T), dtype=torch.long),
        completion_mask_NT=places_T[None] < lengths_N[:, None],
    )
