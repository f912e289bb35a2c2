"""How much memory a GRPO run will need at its worst moment, from shapes alone, and how much it did need.

Counted is what one process holds: the whole model, or its shards and what it gathers. Left out: what libraries need for
themselves (on a CPU, all that is resident before the model is read), what an allocator wastes, temporaries of the
optimizer and of the encoder, and anything that is offloaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

_DRAW_BYTES = 16
"""A logit that is drawn from is there in float32 as made, scaled and as a probability, and once more between these."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a run.

    Attributes:
        weights: Parameters and buffers of the model, adapters included.
        trained: Gradients and AdamW's two moments.
        reference: What the KL penalty needs beside the model.
        encoder: Encoders of rewards and metrics.
        kv_cache: While sampling: keys and values, and a copy of one layer's keys, which grow.
        merged: While sampling in float32: the weights with their adapters added, beside the weights.
        sampled_logits: While sampling: what one token of each completion is drawn from.
        gathered: While sampling with sharded weights: those that are whole for the time.
        gathered_layers: While updating with sharded weights: the same, and their gradients.
        activations: While updating: what a micro-batch keeps for its backward pass.
        logits_chunk: While updating, between the two passes: the part of the logits that exists at a time.
        backward: While updating, in the backward pass: what one layer needs on its way.
    """

    weights: int
    trained: int
    reference: int
    encoder: int
    kv_cache: int
    merged: int
    sampled_logits: int
    gathered: int
    gathered_layers: int
    activations: int
    logits_chunk: int
    backward: int

    @property
    def total(self) -> int:
        """Everything that stays, and the larger of what sampling and updating add."""
        stays = self.weights + self.trained + self.reference + self.encoder
        updating = self.gathered_layers + self.activations + max(self.logits_chunk, self.backward)
        return stays + max(self.gathered + self.kv_cache + self.merged + self.sampled_logits, updating)

    def __str__(self) -> str:
        """One line for a person; parts that round to nothing are left out."""
        unit, size = ("GB", 1e9) if self.total >= 1e9 else ("MB", 1e6)

        def parts(*names: str, joint: str = ", ") -> str:
            values = {name.replace("_", " "): f"{getattr(self, name) / size:.1f}" for name in names}
            return joint.join(f"{name} {value}" for name, value in values.items() if value != "0.0") or "nothing"

        return (
            f"memory: about {self.total / size:.1f} {unit} ({parts('weights', 'trained', 'reference', 'encoder')}; "
            f"sampling adds {parts('gathered', 'kv_cache', 'merged', 'sampled_logits')}; "
            f"updating adds {parts('gathered_layers', 'activations')}, "
            f"then {parts('logits_chunk', 'backward', joint=' or ')})"
        )


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Sizes of a decoder; queries and keys are the widths of all heads together."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    key_heads: int
    queries: int
    keys: int


def estimate_memory(
    model: nn.Module,
    *,
    num_sequences: int,
    prompt_tokens: int,
    completion_tokens: int,
    group: int,
    micro_batch_tokens: int,
    checkpointing: bool,
    chunk_tokens: int,
    autocast: torch.dtype | None = None,
    reference: nn.Module | None = None,
    encoders: Iterable[nn.Module] = (),
    shards: int = 1,
    gather_for_sampling: bool = True,
) -> MemoryEstimate:
    """Estimate the peak of a run whose prompts and completions are all as long as they may be.

    With H hidden, I intermediate, Q and K the widths of all query and key heads, V vocabulary, layers, and e bytes a
    number:

    - `weights`: e for every parameter and buffer that is no frozen adapter.
    - `trained`: 3 e for every trained parameter: gradient and two moments, all of its own dtype. There is no master
      copy, since adapters are float32 themselves.
    - `reference`: e for every number of a frozen adapter and of `reference`.
    - `kv_cache`: 2 K e * layers for each token of each completion and its prompt, and K e more.
    - `merged`: 4 for every number of a float32 weight that is adapted.
    - `sampled_logits`: (e + 16) V for each completion.
    - With weights spread over `shards` ranks, `weights`, `trained` and `reference` are a rank's share. `gathered` is
      the whole model, or, where it is not gathered for sampling, two layers (the next travels while one computes) and
      what belongs to no layer; `gathered_layers` the latter, with what of it is trained twice, for its gradient.
    - `activations`: `kept_bytes` for each token, or H e * layers with checkpointing. A mask, e L^2 for a row of L
      tokens. In mixed precision, the linears' weights as they were cast. Behind the layers, 4 H for each token (the
      last norm), and for each predicted one 2 H e: its hidden state and the gradient of that.
    - `backward`: (3 I + 2 H) e for each token, and with checkpointing what a layer keeps.
    - `logits_chunk`: V e for each token of a chunk; on a CPU one or, where e < 4, two float32 copies; 4 V H where
      the head is trained.

    Args:
        model: A causal language model of transformers, with adapters or without, trained parameters asking for
            gradients. The count of activations is that of pre-norm decoders with gated MLPs (Qwen, Llama, Mistral);
            of others it is the right order only.
        num_sequences: N = B * G completions sampled at once.
        prompt_tokens: P, the longest prompt.
        completion_tokens: T, the longest completion.
        group: Completions that share their prompt's computation: G, or 1 where the model cannot share.
        micro_batch_tokens: Budget of a micro-batch, padding included.
        checkpointing: Whether activations are recomputed.
        chunk_tokens: Tokens whose logits exist at a time.
        autocast: The dtype of mixed precision; None without.
        reference: A second model that the KL penalty needs; frozen adapters of `model` are found by themselves.
        encoders: Of rewards and metrics; one given twice counts once.
        shards: Ranks that the weights are spread over.
        gather_for_sampling: Whether they are whole on every rank while it samples.
    """
    shape = _shape(model)
    hidden, layers = shape.hidden, shape.layers
    head: nn.Parameter = model.get_output_embeddings().weight  # type: ignore[operator]
    stream = _stream(model).itemsize
    compute = autocast.itemsize if autocast else stream

    frozen_adapters = [
        weight for name, weight in model.named_parameters() if "lora_" in name and not weight.requires_grad
    ]
    trained = [weight for weight in model.parameters() if weight.requires_grad]

    cached = 2 * shape.keys * stream * (prompt_tokens + completion_tokens) * num_sequences
    drawn = (compute + _DRAW_BYTES) * shape.vocabulary * num_sequences

    rows, siblings, length = largest_micro_batch(
        num_sequences, prompt_tokens, completion_tokens, group, micro_batch_tokens
    )
    tokens, predicted = rows * length, rows * siblings * completion_tokens
    mask = rows * length * length
    kept = tokens * kept_bytes(model, autocast=autocast) + mask * compute + _cast_weights(model, autocast)
    behind = 4 * hidden * tokens + 2 * hidden * stream * predicted + mask

    logits = min(chunk_tokens, predicted) * shape.vocabulary
    logit = autocast.itemsize if autocast else head.itemsize
    copies = 0 if head.is_cuda else 1 if logit == 4 else 2
    whole = _bytes([*model.parameters(), *model.buffers()])
    layer = _layer_bytes(model)
    pieces = whole - layer * layers + 2 * layer
    learning = _bytes(trained) / whole  # the share of any piece that has gradients
    return MemoryEstimate(
        weights=(whole - _bytes(frozen_adapters)) // shards,
        trained=3 * _bytes(trained) // shards,
        reference=(_bytes(frozen_adapters) + (_bytes(reference.parameters()) if reference else 0)) // shards,
        gathered=0 if shards == 1 else whole if gather_for_sampling else pieces,
        gathered_layers=0 if shards == 1 else int(pieces * (1 + learning)),
        encoder=_bytes(
            weight for encoder in {id(one): one for one in encoders}.values() for weight in encoder.parameters()
        ),
        kv_cache=cached * layers + cached // 2,
        merged=_bytes(
            base.weight
            for layer in model.modules()
            if isinstance(layer, LoraLayer) and stream == 4 and (shards == 1 or gather_for_sampling)
            if isinstance(base := layer.get_base_layer(), nn.Linear | Conv1D)
        ),
        sampled_logits=drawn,
        activations=behind + (tokens * hidden * stream * layers if checkpointing else kept),
        logits_chunk=logits * (logit + 4 * copies) + (4 * head.numel() if head.requires_grad else 0),
        backward=tokens * (3 * shape.intermediate + 2 * hidden) * compute + (kept // layers if checkpointing else 0),
    )


def _layer_bytes(model: Any) -> int:
    """Of a decoder layer; 0 where the model has no list of them."""
    layers = getattr(model.get_decoder(), "layers", None)
    return _bytes([*layers[0].parameters()]) if layers else 0


def largest_micro_batch(
    num_sequences: int, prompt_tokens: int, completion_tokens: int, group: int, micro_batch_tokens: int
) -> tuple[int, int, int]:
    """How `packing` deals completions that are all alike, as in `estimate_memory`.

    Returns:
        Rows of the largest micro-batch, completions behind each prompt, and tokens of a row: the last token of a
        completion is fed to nobody.
    """
    fed = completion_tokens - 1
    siblings = min(max((micro_batch_tokens - prompt_tokens) // max(fed, 1), 1), group)
    length = prompt_tokens + siblings * fed
    strips = num_sequences // group * (group // siblings)
    return min(max(micro_batch_tokens // length, 1), strips), siblings, length


def kept_bytes(model: nn.Module, *, autocast: torch.dtype | None = None) -> int:
    """What all decoder layers together keep of one token for the backward pass, attention's mask aside.

    In each layer, in bytes, with e those of a number that matmuls compute with:

    - Norms upcast to float32 and keep what they read: 4 (2 H), and 4 (Q + K) where queries and keys are normed; again
      as much where norms are trained. 4 for each norm's scale.
    - Attention keeps queries, repeated keys, repeated values and its output, 4 Q e, and one float32 for each head. One
      single key head is not copied to be repeated.
    - The MLP keeps the gate, its activation and the other branch: 3 I e.
    - A trained linear keeps its input; an adapter's two factors are linears too, and a frozen linear keeps nothing.
      Linears that read the same share it, and the output projection shares attention's, unless each makes a copy of
      its own: by dropout (which also keeps what it dropped: a byte a number on a GPU, as much as the input on a CPU),
      in mixed precision, or where its dtype is not that of the hidden states.

    Args:
        model: As in `estimate_memory`.
        autocast: As there.
    """
    shape, stream = _shape(model), _stream(model)
    compute = (autocast or stream).itemsize
    modules = dict(model.named_modules())

    normed, scales = 2 * shape.hidden, 2
    if any(path.endswith("q_norm") for path in modules):
        normed, scales = normed + shape.queries + shape.keys, scales + shape.heads + shape.key_heads
    norms_trained = any("norm" in name and weight.requires_grad for name, weight in model.named_parameters())
    norms = 4 * (normed + scales) + normed * stream.itemsize * norms_trained
    repeated = shape.keys if shape.key_heads == 1 else shape.queries
    attention = 2 * (shape.queries + repeated) * compute + 4 * shape.heads
    kept = shape.layers * (norms + attention + 3 * shape.intermediate * compute)

    head = model.get_output_embeddings()  # type: ignore[operator]
    shared = set[tuple[str, int]]()
    for path, linear in modules.items():
        if not isinstance(linear, nn.Linear) or not linear.weight.requires_grad or linear is head:
            continue
        number = (autocast or linear.weight.dtype).itemsize
        owner, _, factor = path.partition(".lora_")
        if factor.startswith("B"):
            kept += linear.in_features * number
            continue
        dropout = modules.get(path.replace(".lora_A.", ".lora_dropout."))
        if dropout is not None and dropout.training and getattr(dropout, "p", 0.0):
            kept += linear.in_features * (number + (1 if linear.weight.is_cuda else number))
        elif autocast or linear.weight.dtype != stream:
            kept += linear.in_features * number
        elif not owner.endswith("o_proj"):
            shared.add((owner.rpartition(".")[0], linear.in_features))
    return kept + sum(width for _, width in shared) * stream.itemsize


def peak_memory(device: torch.device) -> int:
    """The most bytes ever held: by tensors on a CUDA device, elsewhere by the whole process, libraries included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")  # for getrusage gives what the parent process had, if that was more
    held = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if held:
        return 1024 * int(held[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _shape(model: nn.Module) -> _Shape:
    config: Any = model.config
    config = config.get_text_config()
    hidden, heads = config.hidden_size, _most(config, "num_attention_heads", 1)
    key_heads = _most(config, "num_key_value_heads", heads)
    width = _most(config, "head_dim", hidden // heads)
    chosen = _most(config, "num_experts_per_tok", 1)  # of the experts, each of a size of its own
    return _Shape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        intermediate=chosen * _most(config, "moe_intermediate_size", _most(config, "intermediate_size", 4 * hidden)),
        vocabulary=config.vocab_size,
        heads=heads,
        key_heads=key_heads,
        queries=heads * width,
        keys=key_heads * width,
    )


def _most(config: Any, name: str, other: int) -> int:
    """A number of a configuration, the largest where layers differ; `other` where there is none."""
    found = getattr(config, name, None)
    return max(found) if isinstance(found, list | tuple) else found or other


def _stream(model: nn.Module) -> torch.dtype:
    """The dtype of the hidden states between layers."""
    embedding: nn.Parameter = model.get_input_embeddings().weight  # type: ignore[operator]
    return embedding.dtype


def _cast_weights(model: nn.Module, autocast: torch.dtype | None) -> int:
    """Bytes of the copies of linears that mixed precision keeps for the backward pass."""
    if autocast is None:
        return 0
    head = model.get_output_embeddings()  # type: ignore[operator]
    linears = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return sum(linear.weight.numel() * autocast.itemsize for linear in linears if linear.weight.dtype != autocast)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
