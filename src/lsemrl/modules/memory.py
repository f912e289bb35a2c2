"""How much memory a GRPO run needs at its worst moment, told from shapes, and how much it took.

Counted and measured is what one process holds beyond what it held before the policy's weights were read: on a GPU in
tensors, on a CPU in all. Left out: libraries, data and encoders of rewards, which were there before; code loaded at its
first use (16 MB with the embedded policy, more on several ranks); temporaries of the optimizer; and what an allocator
wastes. glibc's keeps freed blocks, up to 32 MB each, so that a model on a CPU may take two to four times what is
counted. With MALLOC_MMAP_THRESHOLD_=65536 in its environment it gives them back, at some cost in speed; the estimate is
held against runs that were started so.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PretrainedConfig

from lsemrl.modules.adapters.merging import is_matrix, recast
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.quantization import is_quantized, plain_size
from lsemrl.types import Sequences

_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_topk")
"""What configurations call the number of experts that a token comes to: most of them, Gemma 4's, and Aria's."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a run.

    Attributes:
        weights: Parameters and buffers of the model, adapters included.
        trained: Gradients and AdamW's two moments.
        reference: What the KL penalty needs beside the model.
        sampling, updating: What drawing completions adds, and what learning from them adds.
    """

    weights: int
    trained: int
    reference: int
    sampling: int
    updating: int

    @property
    def total(self) -> int:
        """Everything that stays, and the larger of what sampling and updating add."""
        return self.weights + self.trained + self.reference + max(self.sampling, self.updating)

    def __str__(self) -> str:
        """One line for a person."""
        unit, size = ("GB", 1e9) if self.total >= 1e9 else ("MB", 1e6)
        parts = ", ".join(f"{name} {value / size:.1f}" for name, value in vars(self).items())
        return f"about {self.total / size:.1f} {unit} ({parts}; of the last two the larger)"


def estimate_memory(
    model: Any,
    whole: Sequences,
    batches: Sequence[MicroBatch],
    *,
    checkpointing: bool,
    chunk_tokens: int,
    autocast: torch.dtype | None = None,
    reference: nn.Module | None = None,
    shards: int = 1,
    gather_for_sampling: bool = True,
) -> MemoryEstimate:
    """Estimate the peak of a run whose completions are as long as those given.

    With H hidden, I intermediate, Q and K the widths of all query and key heads, V vocabulary, and e bytes a number:

    - `trained`: 3 e for every trained parameter. `reference`: frozen adapters of `model`, and all of `reference`.
    - `sampling`: 2 K e for each token of each completion and its prompt in every layer, and half a layer more, which
      grows; (e + 16) V for each completion, whose next token is drawn; the weights with their adapters added, and in
      mixed precision the other linears as they were cast, beside the weights.
    - `updating`: for each token of the largest micro-batch, in each layer, 16 H + 8 Q (what norms keep, in float32) and
      4 e (Q + I) (attention, MLP and adapters), or 4 H with checkpointing; the mask; in mixed precision, the layers'
      matrices as they were cast; then one layer on its way back, or the logits of a chunk of tokens. That is rounded,
      and of pre-norm decoders with gated MLPs (Llama, Qwen, Mistral); trained norms keep up to a third more, dropout
      is not counted, and of other families it is the right order only.
    - With weights spread over `shards` ranks, what stays is a rank's share. Sampling gathers the whole model, or two
      layers (the next travels while one computes) and what belongs to no layer; updating the latter, with gradients.

    Args:
        model: A causal language model of transformers, with adapters or without.
        whole: The N completions of a step.
        batches: As they are dealt into micro-batches for an optimizer step, and what an anchor holds beside them.
        checkpointing: Whether activations are recomputed.
        chunk_tokens: Tokens whose logits exist at a time.
        autocast: The dtype of mixed precision; None without.
        reference: A second model that the KL penalty needs.
        shards: Ranks that the weights are spread over.
        gather_for_sampling: Whether they are whole on every rank while it samples.
    """
    config = model.config.get_text_config()
    layers, vocabulary, hidden = config.num_hidden_layers, config.vocab_size, config.hidden_size
    heads = _largest(config, "num_attention_heads", 1)
    width = _largest(config, "head_dim", hidden // heads)
    queries, keys = heads * width, _largest(config, "num_key_value_heads", heads) * width
    experts = experts_per_token(config) or 1
    inner = experts * _largest(config, "moe_intermediate_size", _largest(config, "intermediate_size", 4 * hidden))
    embeddings: Tensor = model.get_input_embeddings().weight
    stream = embeddings.itemsize
    compute = autocast.itemsize if autocast else stream
    named = dict(model.named_parameters())
    frozen_adapters = _bytes(weight for name, weight in named.items() if "lora_" in name and not weight.requires_grad)
    all_weights = _bytes([*named.values(), *model.buffers()])
    trained = _bytes(weight for weight in named.values() if weight.requires_grad)
    layer_weights = [*found[0].parameters()] if (found := getattr(model.get_decoder(), "layers", None)) else []
    cast = [
        weight
        for weight in layer_weights
        if weight.dim() > 1 and autocast not in (None, weight.dtype) and not is_quantized(weight)
    ]
    adapted = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and is_matrix(layer)]
    merged = sum(_merged_size(layer.get_base_layer().weight, autocast) for layer in adapted)
    if autocast:
        merged += sum(autocast.itemsize * linear.weight.numel() for linear in recast(model, autocast))
    pieces = all_weights - (layers - 2) * _bytes(layer_weights)

    gathered = 0 if shards == 1 else all_weights if gather_for_sampling else pieces
    gathered_layers = 0 if shards == 1 else int(pieces * (1 + trained / all_weights))

    count, length = whole.completion_ids_NT.shape
    cached = int(2 * keys * stream * (layers + 0.5)) * count * (whole.prompt_ids_BP.shape[1] + length)
    drawn = (compute + 16) * vocabulary * count
    largest = max(batches, key=lambda batch: batch.slots)
    layer_kept = largest.slots * (16 * hidden + 8 * queries + 4 * compute * (queries + inner))
    kept = layers * largest.slots * 4 * hidden + layer_kept if checkpointing else layers * layer_kept
    kept += 4 * largest.slots**2 // largest.packed_rows  # the mask
    kept += compute * layers * sum(weight.numel() for weight in cast)
    logits = min(chunk_tokens, sum(largest.lengths)) * vocabulary * (compute if embeddings.is_cuda else 8)
    return MemoryEstimate(
        weights=(all_weights - frozen_adapters) // shards,
        trained=3 * trained // shards,
        reference=(frozen_adapters + (_bytes(reference.parameters()) if reference else 0)) // shards,
        sampling=gathered + cached + drawn + merged * (shards == 1 or gather_for_sampling),
        updating=gathered_layers + kept + max(layer_kept, logits),
    )


def _merged_size(weight: Any, autocast: torch.dtype | None) -> int:
    """Bytes of a weight with its adapter added, which is in what it is multiplied in."""
    return plain_size(weight) if is_quantized(weight) or not autocast else autocast.itemsize * int(weight.numel())


def experts_per_token(config: PretrainedConfig) -> int:
    """How many experts a token comes to; 0 where a model has none, or says so in another word."""
    return max(_largest(config, name, 0) for name in _PER_TOKEN)


def filled_up(sequences: Sequences, longest: int) -> Sequences:
    """`sequences` as if no prompt had padding, and every completion took `longest` tokens."""
    shape, device = (len(sequences), longest), sequences.prompt_ids_BP.device
    return replace(
        sequences,
        prompt_mask_BP=torch.ones_like(sequences.prompt_mask_BP),
        completion_ids_NT=torch.zeros(shape, dtype=torch.long, device=device),
        completion_mask_NT=torch.ones(shape, dtype=torch.bool, device=device),
    )


def beyond_estimate(device: torch.device) -> str:
    """What is said of what an allocator keeps; nothing where it keeps little."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return ""
    return (
        "; on a CPU glibc may keep two to four times that, unless MALLOC_MMAP_THRESHOLD_=65536 is in the environment, "
        "which costs some speed"
    )


class HeldMemory:
    """What is held at most beyond what was held when this was made, at the end of a run.

    Attributes:
        peak: Bytes, from `ended` on.
    """

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: Tensors are counted on a CUDA device, elsewhere the whole process, libraries included.
        """
        self._device, self.peak = device, 0
        self._before = int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _of_process("VmRSS")
        _begin_peak(device)
        self._peak_before = peak_memory(device)

    def ended(self) -> str:
        """Measure, and say what it came to; at most that where an older peak could not be forgotten."""
        ever = peak_memory(self._device)
        self.peak = ever - self._before
        most = "at most " if ever == self._peak_before else ""
        wasted = "" if self._device.type == "cuda" else ", what the allocator wastes included"
        return f"{most}{self.peak / 1e6:,.0f} MB{wasted}"


def peak_memory(device: torch.device) -> int:
    """The most bytes ever held, or since a `HeldMemory` was made: of tensors on a CUDA device, elsewhere of all."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _of_process("VmHWM")


def _begin_peak(device: torch.device) -> None:
    """Begin `peak_memory` anew, where that can be."""
    if device.type == "cuda":
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux alone has it
        mark = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(mark, b"5")
        finally:
            os.close(mark)


def _of_process(field: str) -> int:
    status = Path("/proc/self/status")  # getrusage gives what the parent process had, if that was more
    if status.exists() and (held := re.search(rf"{field}:\s*(\d+) kB", status.read_text())):
        return 1024 * int(held[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _largest(config: Any, name: str, other: int) -> int:
    """A number of a configuration, the largest where layers differ; `other` where there is none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    found = [getattr(layer, name, None) or other for layer in layers]
    return max(max(number) if isinstance(number, list | tuple) else number for number in found)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
