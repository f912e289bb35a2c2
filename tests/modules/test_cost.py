"""What a step would take is told without weights, as the model itself would tell it."""

from __future__ import annotations

import pytest

from lsemrl.modules.cost import step_cost
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.pretrained import read_config_and_tokenizer


def test_it_counts_what_the_policy_itself_has(tiny_model: str) -> None:
    settings = PolicySettings(model=tiny_model, lora=LoraSettings(rank=4))
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)
    cost = step_cost(settings, config, [5, 7], [3, 4], generations=2)
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
        return step_cost(policy, config, prompts, answers, generations=2).operations

    once = operations([5], [3])  # 5 tokens of a prompt, 2 times 3 of completions
    assert operations([5, 5], [3, 3]) == 2 * once
    assert operations([5], [3], reference="none") == once * 6 / 8
    assert operations([5], [3], train="full") == once * 10 / 8
    assert operations([5], [14]) == once * (5 + 28) / 11


def test_a_base_in_4_bits_is_counted_as_it_is_held(tiny_model: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    settings = PolicySettings(model=tiny_model, lora=LoraSettings(rank=4), quantization="nf4")
    config, _ = read_config_and_tokenizer(tiny_model, trust=False)
    policy = Policy(settings)
    policy.load()
    held = sum(weight.nbytes for weight in (*policy.model.parameters(), *policy.model.buffers()))
    assert step_cost(settings, config, [5, 7], [3, 4], generations=2).memory.weights == held
