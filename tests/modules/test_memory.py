from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lsemrl.modules.memory import MemoryEstimate, estimate_memory, kept_bytes, largest_micro_batch
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings
from lsemrl.types import Sequences
from tiny import make_policy

ROWS, LENGTH = 2, 24
SHAPE = {"num_sequences": 8, "prompt_tokens": 20, "completion_tokens": 7, "group": 4, "micro_batch_tokens": 100}
ESTIMATE: dict[str, Any] = {**SHAPE, "checkpointing": False, "chunk_tokens": 64}


def sequences(prompts: int, group: int, prompt_tokens: int, completion_tokens: int) -> Sequences:
    """Prompts and completions that are all as long as they may be."""
    generator = torch.Generator().manual_seed(0)
    rows = prompts * group
    return Sequences(
        prompt_ids_BP=torch.randint(5, 100, (prompts, prompt_tokens), generator=generator),
        prompt_mask_BP=torch.ones(prompts, prompt_tokens, dtype=torch.bool),
        prompt_of_N=torch.arange(rows) // group,
        completion_ids_NT=torch.randint(5, 100, (rows, completion_tokens), generator=generator),
        completion_mask_NT=torch.ones(rows, completion_tokens, dtype=torch.bool),
    )


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of all storages that autograd keeps in `forward`, those of the model itself left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def decoder(layers: int, *, kind: str, lora: bool, dropout: float, heads: tuple[int, int], dtype: torch.dtype) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 16,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    model: Any = (
        Qwen3ForCausalLM(Qwen3Config(**settings)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**settings))
    )
    model = model.to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"))
    return model.train()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.1},
        {"lora": False},
        {"heads": (4, 4)},
        {"heads": (2, 1)},
        {"kind": "llama"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.bfloat16, "dropout": 0.1},
        {"dtype": torch.bfloat16, "lora": False},
    ],
    ids=str,
)
def test_a_layer_keeps_what_is_counted(settings: dict[str, Any]) -> None:
    settings = {
        "kind": "qwen3", "lora": True, "dropout": 0.0, "heads": (4, 2), "dtype": torch.float32, **settings
    }  # fmt: skip
    mask = torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=settings["dtype"])
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)

    def kept(layers: int) -> tuple[int, int]:
        model = decoder(layers, **settings)
        base = model.get_decoder()
        return (
            saved_bytes(model, lambda: base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state),
            kept_bytes(model) * ROWS * LENGTH,
        )

    # Between two depths, so that all that is not of a layer falls out, and so does the first, which reads no gradient.
    (measured_more, counted_more), (measured, counted) = kept(4), kept(3)
    assert counted_more - counted == measured_more - measured


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [{}, {"group": 1}, {"prompt_tokens": 60}, {"completion_tokens": 1}], ids=str)
def test_activations_of_an_update(tiny_model: str, checkpointing: bool, shape: dict[str, int]) -> None:
    shape = {**SHAPE, **shape}
    policy = make_policy(tiny_model, gradient_checkpointing=checkpointing)
    policy.train()
    whole = sequences(
        shape["num_sequences"] // shape["group"], shape["group"], shape["prompt_tokens"], shape["completion_tokens"]
    )
    with torch.no_grad():
        policy.logprobs(whole)  # where the way through the model is chosen
    batches = micro_batches(whole, torch.arange(len(whole)), shape["micro_batch_tokens"], share=True)
    largest = max(batches, key=lambda batch: batch.slots)
    measured = saved_bytes(
        policy.model, lambda: policy.loss(largest.sequences, lambda cut, logprobs_C, entropy_C: (logprobs_C.sum(), {}))
    )
    estimate = estimate_memory(policy.model, **{**ESTIMATE, **shape, "checkpointing": checkpointing})
    assert 0.8 <= estimate.activations / measured <= 1.3


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("prompt_tokens", [5, 40])
@pytest.mark.parametrize("completion_tokens", [1, 2, 30])
@pytest.mark.parametrize("micro_batch_tokens", [10, 100, 1000])
def test_the_largest_micro_batch_is_what_packing_deals(
    group: int, prompt_tokens: int, completion_tokens: int, micro_batch_tokens: int
) -> None:
    whole = sequences(3, group, prompt_tokens, completion_tokens)
    batches = micro_batches(whole, torch.arange(len(whole)), micro_batch_tokens, share=True)
    rows, siblings, length = largest_micro_batch(
        len(whole), prompt_tokens, completion_tokens, group, micro_batch_tokens
    )
    assert max(batch.slots for batch in batches) == rows * length
    assert max(len(batch.rows) for batch in batches) >= rows * siblings


def test_the_cache_is_that_of_the_sampler(policy: Policy) -> None:
    estimate = estimate_memory(policy.model, **ESTIMATE)
    cache = DynamicCache(config=policy.model.config)
    tokens = SHAPE["prompt_tokens"] + SHAPE["completion_tokens"]
    with torch.no_grad():
        policy.model(
            input_ids=torch.zeros(SHAPE["num_sequences"], tokens, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
    keys, values = (sum(getattr(layer, name).nbytes for layer in cache.layers) for name in ("keys", "values"))
    assert estimate.kv_cache == keys + values + keys // len(cache.layers)


def held(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_weights_and_what_is_trained(policy: Policy) -> None:
    estimate = estimate_memory(policy.model, **ESTIMATE)
    assert estimate.weights == held(policy.model.parameters()) + held(policy.model.buffers())
    optimizer = torch.optim.AdamW(weight for weight in policy.model.parameters() if weight.requires_grad)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
    assert estimate.trained == held(moments) + held(gradients)
    assert estimate.reference == estimate.encoder == 0


def test_a_reference_adapter_is_no_weight(policy: Policy, tiny_model: str, tmp_path: Path) -> None:
    policy.save(tmp_path)
    estimate = estimate_memory(make_policy(tiny_model, adapter=str(tmp_path)).model, **ESTIMATE)
    alone = estimate_memory(policy.model, **ESTIMATE)
    assert estimate.reference == held(weight for weight in policy.model.parameters() if weight.requires_grad)
    assert estimate == replace(alone, reference=estimate.reference)


def test_other_models_are_added(tiny_model: str) -> None:
    policy, encoder = make_policy(tiny_model, train="full"), nn.Linear(10, 10)
    estimate = estimate_memory(
        policy.model, **ESTIMATE, reference=policy.reference_model, encoders=[encoder, nn.Linear(3, 1), encoder]
    )
    assert estimate.reference == held(policy.model.parameters())
    assert estimate.encoder == 4 * (110 + 4)
    adapted = estimate_memory(make_policy(tiny_model).model, **ESTIMATE)
    head = 4 * policy.model.get_output_embeddings().weight.numel()
    assert estimate.logits_chunk == adapted.logits_chunk + head


def test_mixed_precision_halves_some_and_keeps_cast_weights(tiny_model: str) -> None:
    policy = make_policy(tiny_model, lora=LoraSettings(rank=4, dropout=0.0))
    policy.train()
    whole = sequences(2, 4, 20, 7)
    with torch.no_grad():
        policy.logprobs(whole)
    with torch.autocast("cpu", torch.bfloat16):
        measured = saved_bytes(
            policy.model, lambda: policy.loss(whole, lambda cut, logprobs_C, entropy_C: (logprobs_C.sum(), {}))
        )
    estimate = estimate_memory(policy.model, **ESTIMATE, autocast=torch.bfloat16)
    assert 0.8 <= estimate.activations / measured <= 1.3


def test_the_peak_is_in_the_worse_phase() -> None:
    estimate = MemoryEstimate(
        weights=3_000_000_000,
        trained=200_000_000,
        reference=0,
        encoder=100_000_000,
        kv_cache=500_000_000,
        merged=100_000_000,
        gathered=0,
        gathered_layers=0,
        sampled_logits=100_000_000,
        activations=400_000_000,
        logits_chunk=100_000_000,
        backward=300_000_000,
    )
    assert estimate.total == 4_000_000_000
    assert replace(estimate, kv_cache=1_000_000_000).total == 4_500_000_000
    assert replace(estimate, logits_chunk=500_000_000).total == 4_200_000_000
    assert str(estimate) == (
        "memory: about 4.0 GB (weights 3.0, trained 0.2, encoder 0.1; "
        "sampling adds kv cache 0.5, merged 0.1, sampled logits 0.1; "
        "updating adds activations 0.4, then logits chunk 0.1 or backward 0.3)"
    )
    assert str(replace(estimate, weights=5_000_000, trained=0, kv_cache=0)).startswith(
        "memory: about 805.0 MB (weights 5"
    )


def test_merging_takes_a_copy_of_what_is_adapted(tiny_model: str) -> None:
    policy = make_policy(tiny_model)
    own = {name: weight.data_ptr() for name, weight in policy.named_parameters()}
    with policy.merged():
        copied = [weight for name, weight in policy.named_parameters() if weight.data_ptr() != own[name]]
        assert estimate_memory(policy.model, **ESTIMATE).merged == sum(4 * weight.numel() for weight in copied) > 0
    assert estimate_memory(make_policy(tiny_model, dtype="bfloat16").model, **ESTIMATE).merged == 0


def test_the_peak_stays_when_memory_is_given_back() -> None:
    script = (
        "import torch; from lsemrl.modules.memory import peak_memory; device = torch.device('cpu');"
        "before = peak_memory(device); torch.ones(75_000_000); print(before, peak_memory(device))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, after = map(int, output.split())
    assert 10e6 < before < after - 250e6 < 20e9
