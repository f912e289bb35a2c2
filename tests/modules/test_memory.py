from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from forks import Fork, script
from lsemrl.config_files import CONFIGS
from lsemrl.modules import memory
from lsemrl.modules.families import cache_name
from lsemrl.modules.memory import HeldMemory, MemoryEstimate, beyond_estimate, estimate_memory
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.types import Sequences
from modules.adapters.kinds import save_model
from tiny import make_policy

PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS = 2, 4, 20, 7


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


def estimate(model: nn.Module, whole: Sequences | None = None, max_tokens: int = 100, **others: Any) -> MemoryEstimate:
    whole = whole or sequences(PROMPTS, GROUP, PROMPT_TOKENS, COMPLETION_TOKENS)
    batches = micro_batches(whole, torch.arange(len(whole)), max_tokens, share=True)
    return estimate_memory(model, whole, batches, **{"checkpointing": False, "chunk_tokens": 1, **others})


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
        {"lora": False},
        {"heads": (4, 4)},
        {"heads": (2, 1)},
        {"kind": "llama"},
        {"autocast": torch.bfloat16},
        {"autocast": torch.bfloat16, "dtype": torch.bfloat16},
        {"autocast": torch.bfloat16, "lora": False},
    ],
    ids=str,
)
def test_a_layer_keeps_about_what_is_counted(settings: dict[str, Any]) -> None:
    settings = {
        "kind": "qwen3", "lora": True, "dropout": 0.0, "heads": (4, 2), "dtype": torch.float32, **settings
    }  # fmt: skip
    autocast = settings.pop("autocast", None)
    whole = sequences(2, 4, 20, 12)
    rows, length = 2, 20 + 4 * 11
    mask = torch.zeros(rows, 1, length, length, dtype=settings["dtype"])
    ids = torch.arange(rows * length).view(rows, length) % 100

    def kept(layers: int) -> tuple[int, int]:
        model = decoder(layers, **settings)
        base = model.get_decoder()
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            measured = saved_bytes(
                model, lambda: base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            )
        return measured, estimate(model, whole, rows * length, autocast=autocast).updating

    # Between two depths, so that all that is not of a layer falls out, and so does the first, which reads no gradient.
    (measured_more, counted_more), (measured, counted) = kept(4), kept(3)
    assert 0.75 <= (counted_more - counted) / (measured_more - measured) <= 1.25


def test_what_is_computed_again_is_not_kept() -> None:
    def updating(layers: int, **settings: Any) -> int:
        return estimate(
            decoder(layers, kind="llama", lora=True, dropout=0.0, heads=(4, 2), dtype=torch.float32), **settings
        ).updating

    tokens = PROMPT_TOKENS + GROUP * (COMPLETION_TOKENS - 1)
    more = updating(4, checkpointing=True) - updating(3, checkpointing=True)
    assert more == 2 * tokens * 4 * 32
    assert updating(4, checkpointing=True) < updating(4)


def test_the_cache_is_that_of_the_sampler(policy: Policy) -> None:
    def cached(completion_tokens: int) -> int:
        cache, tokens = DynamicCache(config=policy.model.config), PROMPT_TOKENS + completion_tokens
        ids = torch.zeros(PROMPTS * GROUP, tokens, dtype=torch.long)
        with torch.no_grad():
            policy.model(input_ids=ids, use_cache=True, **{str(cache_name(policy.model.get_base_model())): cache})
        keys, values = (sum(getattr(layer, name).nbytes for layer in cache.layers) for name in ("keys", "values"))
        return keys + values + keys // len(cache.layers)

    more = [estimate(policy.model, sequences(PROMPTS, GROUP, PROMPT_TOKENS, tokens)).sampling for tokens in (9, 5)]
    assert more[0] - more[1] == cached(9) - cached(5)


def held(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_weights_and_what_is_trained(policy: Policy) -> None:
    found = estimate(policy.model)
    assert found.weights == held(policy.model.parameters()) + held(policy.model.buffers())
    optimizer = torch.optim.AdamW(weight for weight in policy.model.parameters() if weight.requires_grad)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
    assert found.trained == held(moments) + held(gradients)
    assert found.reference == 0


def test_a_reference_adapter_is_no_weight(policy: Policy, tiny_model: str, tmp_path: Path) -> None:
    policy.save(tmp_path)
    found = estimate(make_policy(tiny_model, adapter=str(tmp_path)).model)
    assert found.reference == held(weight for weight in policy.model.parameters() if weight.requires_grad)
    assert found == replace(estimate(policy.model), reference=found.reference)


def test_a_second_model_is_added(tiny_model: str) -> None:
    policy = make_policy(tiny_model, train="full")
    assert estimate(policy.model, reference=policy.reference_model).reference == held(policy.model.parameters())


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_merging_takes_a_copy_of_what_is_adapted(kind: str, tmp_path: Path) -> None:
    model = str(save_model(tmp_path, kind))
    policy = make_policy(model)
    own = {name: weight.data_ptr() for name, weight in policy.named_parameters()}
    with policy.merged():
        copied = [weight for name, weight in policy.named_parameters() if weight.data_ptr() != own[name]]
        plain = estimate(make_policy(model, train="full").model)
        assert estimate(policy.model).sampling - plain.sampling == held(copied) > 0


@pytest.mark.parametrize("train", ["lora", "full"])
def test_mixed_precision_takes_a_copy_of_every_linear(train: str, tmp_path: Path) -> None:
    policy = make_policy(str(save_model(tmp_path, "tied")), train=train)
    expected = estimate(policy.model, autocast=torch.bfloat16).sampling
    own = {name: weight.data_ptr() for name, weight in policy.named_parameters(remove_duplicate=False)}
    with torch.autocast("cpu", torch.bfloat16), policy.merged():
        every = policy.named_parameters(remove_duplicate=False)
        copied = held(weight for name, weight in every if weight.data_ptr() != own[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "recast", lambda model, dtype: [])
        patch.setattr(memory, "is_matrix", lambda layer: False)
        assert expected - estimate(policy.model, autocast=torch.bfloat16).sampling == copied > 0


def test_shards_are_gathered_whole_or_by_the_piece(policy: Policy) -> None:
    one, whole, pieces = (
        estimate(policy.model, **settings)
        for settings in ({}, {"shards": 2}, {"shards": 2, "gather_for_sampling": False})
    )
    assert whole.weights == pieces.weights == one.weights // 2 and whole.trained == one.trained // 2
    assert whole.sampling == one.sampling + one.weights
    assert one.updating < whole.updating == pieces.updating
    # The tiny model has two layers, so that two of them and the rest are all there is; nothing is merged in pieces.
    assert pieces.sampling < whole.sampling


def test_the_peak_is_in_the_worse_phase() -> None:
    found = MemoryEstimate(
        weights=3_000_000_000, trained=200_000_000, reference=0, sampling=700_000_000, updating=800_000_000
    )
    assert found.total == 4_000_000_000
    assert replace(found, sampling=1_300_000_000).total == 4_500_000_000
    assert str(found) == (
        "about 4.0 GB (weights 3.0, trained 0.2, reference 0.0, sampling 0.7, updating 0.8; of the last two the larger)"
    )
    assert str(replace(found, weights=5_000_000, trained=0)).startswith("about 805.0 MB (weights 5.0")


def test_what_glibc_keeps_is_said_where_it_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    for libc, device, said in (("glibc", "cpu", True), ("", "cpu", False), ("glibc", "cuda", False)):
        monkeypatch.setattr("platform.libc_ver", lambda libc=libc: (libc, "2.36"))
        assert ("MALLOC_MMAP_THRESHOLD_=65536" in beyond_estimate(torch.device(device))) == said
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not beyond_estimate(torch.device("cpu"))


def test_the_peak_stays_when_memory_is_given_back_and_one_of_before_is_forgotten_or_not_passed_off_as_ours() -> None:
    code = (
        "import torch; from lsemrl.modules.memory import HeldMemory; torch.ones(75_000_000);"
        "held = HeldMemory(torch.device('cpu')); print(held.ended());"
        "torch.ones(150_000_000); print(held.ended(), end=';'); print(held.peak)"
    )
    nothing, most = Fork([code], script).end().stdout.splitlines()
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert int(re.findall(r"\d+", nothing)[0]) < 100
    else:
        assert nothing.startswith("at most 3")
    said, _, peak = most.partition(";")
    assert said.endswith("MB, what the allocator wastes included") and not said.startswith("at most")
    assert 550e6 < int(peak) < 700e6


def test_a_peak_that_may_be_an_older_one_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"VmRSS": 10_000_000, "VmHWM": 90_000_000}  # as where the mark cannot begin anew
    monkeypatch.setattr("lsemrl.modules.memory._of_process", held.__getitem__)
    before = HeldMemory(torch.device("cpu"))
    assert before.ended() == "at most 80 MB, what the allocator wastes included"
    held["VmHWM"] = 95_000_000
    assert before.ended() == "85 MB, what the allocator wastes included"


@pytest.mark.slow  # half a minute in a process of its own
def test_the_embedded_run_takes_what_it_said(tmp_path: Path) -> None:
    """As shipped, but for few rows, two steps, no validation, and glibc, which is told to give back what is freed."""
    words = ["fit", "--config", CONFIGS / "grpo.yaml", "--trainer.default_root_dir", tmp_path]
    words += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
    words += ["--data.micro", "{train: 60, validation: 4, test: 4}", "--data.splits.cold_start_count", "8"]
    run = subprocess.run(
        [sys.executable, "-m", "lsemrl", *map(str, words)],
        capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    told = re.search(r"the peak was (?:at most )?([\d,]+) MB.*?; ([\d,]+) MB were estimated", run.stdout + run.stderr)
    assert told
    measured, estimated = (int(number.replace(",", "")) for number in told.groups())
    assert 0.75 <= estimated / measured <= 1.25
