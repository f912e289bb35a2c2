"""What a step would take is told without weights, as the model itself would tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig, Qwen3MoeConfig

from lsemrl.modules.cost import Cost, step_cost
from lsemrl.modules.memory import experts_per_token
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.pretrained import read_config_and_tokenizer
from modules.adapters.kinds import save_adapter


def test_it_counts_what_the_policy_itself_has(tiny_model: str) -> None:
    settings = PolicySettings(model=tiny_model, lora=LoraSettings(rank=4))
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)
    cost = step_cost(settings, config, [5, 7], [3, 4], batch_size=2, generations=2)
    policy = Policy(settings)
    policy.load()
    assert cost.trained == sum(weight.numel() for weight in policy.trained().values())
    assert cost.weights == sum(weight.numel() for weight in policy.model.parameters()) - cost.trained
    assert (cost.prompts, cost.completions, cost.sampled) == (2, 4, 14)
    assert cost.memory.trained == 3 * 4 * cost.trained


def test_operations_follow_the_tokens_and_what_is_trained(tiny_model: str) -> None:
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)

    def operations(prompts: list[int], answers: list[int], **settings: object) -> float:
        policy = PolicySettings(model=tiny_model, **settings)  # type: ignore[arg-type]
        return step_cost(policy, config, prompts, answers, batch_size=2, generations=2).operations

    once = operations([5], [3])  # 5 tokens of a prompt, 2 times 3 of completions
    assert operations([5, 5], [3, 3]) == 2 * once
    assert operations([5], [3], reference="none") == once * 6 / 8
    assert operations([5], [3], train="full") == once * 10 / 8
    assert operations([5], [14]) == once * (5 + 28) / 11


def test_a_step_is_the_mean_of_all_rows_and_its_memory_that_of_the_longest(tiny_model: str) -> None:
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)

    def cost(prompts: list[int], answers: list[int], **most: int) -> Cost:
        sizes = {"batch_size": 2, "generations": 2, **most}
        return step_cost(PolicySettings(model=tiny_model), config, prompts, answers, **sizes)

    uneven, whole = cost([5, 5, 9, 9], [3, 3, 11, 11]), cost([9, 9], [11, 11])
    mean = cost([7, 7], [7, 7])
    assert (uneven.rows, uneven.prompts, uneven.completions, uneven.sampled) == (4, 2, 4, 28)
    assert uneven.operations == mean.operations
    assert uneven.memory == whole.memory != mean.memory
    # Of the longest, 28 tokens with siblings, one fits into a micro-batch; of shorter ones, 20 tokens, two do.
    long, shorter = (cost(prompts, [10] * 5, micro_batch_tokens=50) for prompts in ([2] * 3 + [10] * 2, [2] * 5))
    assert long.memory.updating == shorter.memory.updating
    # Of sentences without a translation, which may be more or fewer than the answers that are known.
    few, many = cost([5], [3, 3, 6]), cost([5, 5, 5], [4])
    assert (few.sampled, many.sampled) == (8, 16)


def test_experts_are_counted_whatever_a_family_calls_them() -> None:
    said: tuple[dict[str, Any], ...] = ({"top_k_experts": 2}, {"top_k_experts": None}, {"num_experts_per_tok": 3}, {})
    assert [experts_per_token(PretrainedConfig(**fields)) for fields in said] == [2, 0, 3, 0]


def test_of_experts_those_count_that_a_token_comes_to() -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    few, many = (
        step_cost(PolicySettings(), Qwen3MoeConfig(**sizes, **heads, num_experts=experts, num_experts_per_tok=2),
                  [5], [3], batch_size=2, generations=2)
        for experts in (2, 32)
    )  # fmt: skip
    router = 2 * 30 * 64  # of two layers, for 30 more experts
    assert many.weights - few.weights == router + 2 * 30 * 3 * 64 * 16
    assert many.memory.weights - few.memory.weights == 4 * (many.weights - few.weights)
    assert many.operations - few.operations == 8 * router * 11  # tokens


@pytest.mark.parametrize("settings", [{}, {"reference": "base"}, {"ref_model_sync_steps": 2}], ids=str)
@pytest.mark.parametrize("start", ["new", "adapter", "full"])
def test_memory_is_of_the_adapter_and_the_reference_that_the_policy_has(
    start: str, settings: dict[str, Any], tiny_model: str, tmp_path: Path
) -> None:
    lora = LoraSettings(rank=4)
    if start == "adapter":
        settings = settings | {"adapter": str(save_adapter(tiny_model, tmp_path, r=2, target_modules=["q_proj"]))}
    settings = settings | {"train": "full"} if start == "full" else settings
    policy = Policy(PolicySettings(model=tiny_model, lora=lora, **settings))
    cost = step_cost(policy.settings, policy.config, [5, 7], [3, 4], batch_size=2, generations=2)
    policy.load()
    whole = [*policy.model.parameters(), *policy.model.buffers()]
    second = policy.reference_model.parameters() if policy.reference_model is not None else ()
    assert cost.trained == sum(weight.numel() for weight in policy.trained().values())
    assert cost.memory.weights + cost.memory.reference == sum(weight.nbytes for weight in (*whole, *second))


def test_a_base_in_4_bits_is_counted_as_it_is_held(tiny_model: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    settings = PolicySettings(model=tiny_model, lora=LoraSettings(rank=4), quantization="nf4")
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)
    policy = Policy(settings)
    policy.load()
    held = sum(weight.nbytes for weight in (*policy.model.parameters(), *policy.model.buffers()))
    assert step_cost(settings, config, [5, 7], [3, 4], batch_size=2, generations=2).memory.weights == held
