"""Shared prefixes give the log-probs and gradients of the plain way, and give way where a model does not allow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lsemrl import micro
from lsemrl.modules.forward import predictors, prove
from lsemrl.modules.losses import likelihood_loss
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.types import PromptBatch, Sequences
from tiny import make_policy, plain_logits

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
UNEVEN = ([7, 1, 4], [(0, 5), (0, 1), (0, 3), (1, 2), (1, 6), (2, 4)])


def sequences(prompts: list[int], completions: list[tuple[int, int]], vocabulary: int = 50, seed: int = 0) -> Sequences:
    """Random tokens: prompts of the given lengths, completions as (prompt, length)."""
    generator = torch.Generator().manual_seed(seed)
    prompt_mask = torch.arange(max(prompts)) >= max(prompts) - torch.tensor(prompts)[:, None]
    lengths = torch.tensor([length for _, length in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Sequences(
        prompt_ids_BP=torch.randint(vocabulary, prompt_mask.shape, generator=generator),
        prompt_mask_BP=prompt_mask,
        prompt_of_N=torch.tensor([prompt for prompt, _ in completions]),
        completion_ids_NT=torch.randint(vocabulary, mask.shape, generator=generator),
        completion_mask_NT=mask,
    )


def plain_logprobs(policy: Policy, whole: Sequences) -> Tensor:
    """By the model's own logits, [M]."""
    logits_MV = plain_logits(policy.model, whole)[whole.completion_mask_NT]
    targets_M = whole.completion_ids_NT[whole.completion_mask_NT]
    return logits_MV.log_softmax(-1).gather(1, targets_M[:, None])[:, 0]


def gradients(policy: Policy, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True)
    ]


def relative_error(found: list[Tensor], truth: list[Tensor]) -> float:
    def norm(tensors: list[Tensor]) -> float:
        return float(sum(tensor.double().square().sum() for tensor in tensors) ** 0.5)

    return norm([one - other for one, other in zip(found, truth, strict=True)]) / norm(truth)


@pytest.mark.parametrize(
    "rows",
    [UNEVEN, ([5, 3], [(0, 4), (1, 2)]), ([1], [(0, 1), (0, 1)]), ([40], [(0, 20)] * 8)],
    ids=["uneven", "group of one", "one token behind one", "group of eight"],
)
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"train": "full"}], ids=str)
def test_shared_prefix_equals_the_plain_way(tiny_model: str, rows: Any, settings: dict[str, Any]) -> None:
    policy, whole = make_policy(tiny_model, **settings), sequences(*rows, vocabulary=1000)
    policy.train()
    weights_M = torch.linspace(-1, 1, int(whole.completion_mask_NT.sum()))
    loss, _ = policy.loss(whole, likelihood_loss(weights_M))
    assert policy.shares_prompts and policy._way == "shared"
    plain_M = plain_logprobs(policy, whole)
    found_NT, _ = policy.logprobs(whole)
    torch.testing.assert_close(found_NT[whole.completion_mask_NT], plain_M, rtol=1e-5, atol=2e-5)
    assert not found_NT[~whole.completion_mask_NT].any()
    plain_loss = -(plain_M * weights_M).sum()
    torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=2e-5)
    assert relative_error(gradients(policy, loss), gradients(policy, plain_loss)) < 1e-5


def test_eager_attention_shares_too(tiny_model: str) -> None:
    policy, whole = make_policy(tiny_model), sequences(*UNEVEN, vocabulary=1000)
    with policy.inference():
        sdpa_NT, _ = policy.logprobs(whole)
        policy.model.set_attn_implementation("eager")
        eager_NT, _ = policy.logprobs(whole)
        assert policy._way == "shared"
    torch.testing.assert_close(eager_NT, sdpa_NT, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_flex_attention_shares_too(tiny_model: str, prompts: PromptBatch, device: torch.device) -> None:
    """Values everywhere; gradients on a GPU, where alone it has a backward pass."""
    policy = make_policy(tiny_model, gradient_checkpointing=True, flex_attention=True).to(device)
    plain = make_policy(tiny_model, gradient_checkpointing=True).to(device)
    whole = sequences(*UNEVEN, vocabulary=1000)
    whole = replace(whole, **{name: value.to(device) for name, value in vars(whole).items()})
    with policy.inference(), plain.inference():
        found_NT, _ = policy.logprobs(whole)
        torch.testing.assert_close(found_NT, plain.logprobs(whole)[0], rtol=1e-5, atol=2e-5)
    assert policy._way == "shared"
    drawn = [sample(one, prompts.to(device), Sampling(num_generations=2), seed=1) for one in (policy, plain)]
    assert drawn[0].completions == drawn[1].completions
    assert policy.model.config._attn_implementation == "flex_attention"
    if device.type == "cuda":
        weights_M = torch.linspace(-1, 1, int(whole.completion_mask_NT.sum()), device=device)
        found = [gradients(one, one.loss(whole, likelihood_loss(weights_M))[0]) for one in (policy, plain)]
        assert relative_error(*found) < 1e-5


def test_the_reference_shares_too(tiny_model: str, tmp_path: Path) -> None:
    make_policy(tiny_model).save(tmp_path)
    policy, whole = make_policy(tiny_model, adapter=str(tmp_path)), sequences(*UNEVEN, vocabulary=1000)
    with policy.reference():
        reference_NT, _ = policy.logprobs(whole)
        torch.testing.assert_close(
            reference_NT[whole.completion_mask_NT], plain_logprobs(policy, whole), rtol=1e-5, atol=2e-5
        )


def test_rounding_of_mixed_precision_is_no_difference(caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(micro.POLICY, dtype=torch.float32).eval()
    whole = sequences([33], [(0, 9), (0, 12), (0, 11), (0, 14)], vocabulary=1000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert prove(model, whole, "it") == "shared"
        assert not caplog.text
        shared_MH, packed = predictors(model, whole, "shared")
        found_MV = model.lm_head(shared_MH).float().log_softmax(-1)
        truth_MV = plain_logits(model, whole)[whole.completion_mask_NT].log_softmax(-1)
    off_M = (found_MV - truth_MV).gather(1, packed.targets_M[:, None])
    assert off_M.abs().mean() > 1e-3  # more than may differ in float32, and less than bfloat16 rounds
