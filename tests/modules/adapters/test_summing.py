"""In bfloat16 a small adapter arrives whole, wherever it computes; in float32 it computes as peft's, in one sum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lsemrl.modules.adapters.loading import attach
from lsemrl.modules.adapters.merging import merged_adapters
from lsemrl.modules.adapters.summing import SummedLinear, sum_once
from lsemrl.types import PromptBatch
from tiny import make_policy

HALF = torch.bfloat16


def half() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", HALF, cache_enabled=False)


def filled(model: Any, scale: float) -> Any:
    """With factors whose product is of about `scale`."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = scale**0.5 * torch.randn(weight.shape, generator=generator)
    return model


def pair(base: nn.Module, dtype: torch.dtype = HALF, scale: float = 1e-3, **fields: Any) -> tuple[Any, Any]:
    """A layer adapted by peft, and the same as it is here."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(torch.randn(weight.shape).to(HALF))
    adapted = get_peft_model(
        nn.Sequential(base.to(dtype)), LoraConfig(r=4, lora_alpha=8, target_modules=["0"], **fields)
    )
    theirs = filled(adapted, scale)
    ours = copy.deepcopy(theirs)
    sum_once(ours)
    return theirs.base_model.model[0], ours.base_model.model[0]


@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "mixed"])
def test_a_small_update_arrives_where_it_is_scored_and_where_it_is_drawn(mixed: bool) -> None:
    """Rounded to the nearest, .44 of it was scored in bfloat16; in mixed precision .47, and .46 of it drawn."""
    ids = torch.randint(300, (16, 48), generator=torch.Generator().manual_seed(2))

    def adapted(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=300, initializer_range=0.1,
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(HALF).to(dtype)
        lora = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear")
        return filled(attach(model, lora, "policy.lora").eval(), 3e-5)

    def logprobs(model: Any, off: bool = False) -> Tensor:
        with torch.no_grad(), model.disable_adapter() if off else nullcontext():
            return model(input_ids=ids).logits.float().log_softmax(-1)

    exact, rounded = adapted(torch.float32), adapted(torch.float32 if mixed else HALF)
    change = logprobs(exact) - logprobs(exact, off=True)
    with half() if mixed else nullcontext():
        base, scored = logprobs(rounded, off=True), logprobs(rounded)
        with torch.no_grad(), merged_adapters(rounded):
            drawn = logprobs(rounded)
    for found in (scored, drawn):
        assert float(((found - base) * change).sum() / change.square().sum()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("within", [nullcontext, half], ids=["bfloat16", "mixed"])
def test_gradients_are_as_near_to_the_formula_as_those_of_peft(
    bias: bool, within: Callable[[], AbstractContextManager[Any]]
) -> None:
    dtype = HALF if within is nullcontext else torch.float32
    theirs, ours = pair(nn.Linear(48, 64, bias=bias), dtype, use_rslora=True)
    truth = copy.deepcopy(theirs).double()
    x, towards = torch.randn(3, 7, 48).to(HALF), torch.randn(3, 7, 64).to(HALF)

    def computed(layer: Any, dtype: torch.dtype) -> list[Tensor]:
        given = x.to(dtype).requires_grad_()
        with within() if layer is not truth else nullcontext():
            made = layer(given)
        (made * towards.to(made.dtype)).sum().backward()
        factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        return [made.detach(), *(one.grad.double() for one in (given, *factors))]

    expected, found, before = computed(truth, torch.float64), computed(ours, dtype), computed(theirs, dtype)
    assert found[0].dtype == HALF
    for right, new, old in zip(expected, found, before, strict=True):
        off, allowed = ((each.double() - right).norm() / right.norm() for each in (new, old))
        assert off <= 1.05 * allowed + 1e-7


@pytest.mark.parametrize("bias", [False, True])
def test_switched_off_and_of_no_effect_it_is_the_base_to_the_bit(bias: bool) -> None:
    _, layer = pair(nn.Linear(48, 64, bias=bias))
    x = torch.randn(3, 7, 48).to(HALF)
    base = layer.get_base_layer()(x)
    assert not torch.equal(layer(10 * x), layer.get_base_layer()(10 * x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base)
    layer.enable_adapters(True)
    layer.lora_B["default"].weight.data.zero_()
    assert torch.equal(layer(x), base) and torch.equal(layer(x[0, 0]), base[0, 0])
    assert layer(x[:0]).shape == (0, 7, 64)


def test_dropout_is_that_of_the_factors() -> None:
    theirs, ours = pair(nn.Linear(48, 64), scale=1.0, lora_dropout=0.5)
    x, made = torch.randn(9, 48).to(HALF), []
    for layer in (theirs, ours):
        torch.manual_seed(7)
        made.append(layer(x).float())
    torch.testing.assert_close(made[0], made[1], rtol=2**-6, atol=0.1)
    torch.manual_seed(8)
    assert (ours(x).float() - made[1]).abs().mean() > 1
    assert torch.equal(ours.eval()(x), ours(x))


OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "DoRA": (lambda: nn.Linear(48, 64), {"use_dora": True}),
    "a bias beside": (lambda: nn.Linear(48, 64), {"lora_bias": True}),
    "Conv1D": (lambda: Conv1D(64, 48), {"fan_in_fan_out": True}),
    "two": (lambda: nn.Linear(48, 64), {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_all_else_is_what_peft_computes(kind: str) -> None:
    base, fields = OTHERS[kind]
    layers = pair(base(), scale=1.0, **fields)
    if kind == "two":
        for layer in layers:
            layer.update_layer("other", 2, 2, config=LoraConfig(init_lora_weights=True))
            layer.set_adapter(["default", "other"])
    x = torch.randn(3, 7, 48).to(fields.get("dtype", HALF))
    assert [type(layer) for layer in layers] == [Linear, SummedLinear]
    assert torch.equal(layers[0](x), layers[1](x))


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_dropout": 0.5}], ids=["plain", "dropout"])
@pytest.mark.parametrize("bias", [False, True])
def test_in_float32_values_and_gradients_are_those_of_peft(fields: dict[str, Any], bias: bool) -> None:
    layers = pair(nn.Linear(48, 64, bias=bias), torch.float32, scale=1.0, **fields)
    x, towards = torch.randn(3, 7, 48), torch.randn(64, 3, 7).movedim(0, -1)
    found: list[list[Tensor]] = []
    for layer in layers:
        given = x.clone().requires_grad_()
        torch.manual_seed(7)
        made = layer(given)
        made.backward(towards)
        factors = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        found.append([made.detach(), given.grad, *(factor.grad for factor in factors)])
        assert layer.get_base_layer().weight.grad is None
    for theirs, ours in zip(*found, strict=True):
        assert theirs.abs().mean() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("learned", ["x", "lora_A", "lora_B"])
def test_in_float32_each_gradient_comes_by_itself(learned: str, dropout: float) -> None:
    layers = pair(nn.Linear(48, 64), torch.float32, scale=1.0, lora_dropout=dropout)
    x, grads = torch.randn(9, 48), []
    for layer in layers:
        layer.requires_grad_(False)
        given = x if learned == "x" else getattr(layer, learned)["default"].weight
        given.requires_grad_()
        torch.manual_seed(7)
        grads.append(torch.autograd.grad((layer(x) ** 2).sum(), given)[0])
        given.requires_grad_(False)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5 * float(grads[0].abs().max()))


def test_in_float32_a_base_that_learns_too_gets_its_gradients() -> None:
    layers = pair(nn.Linear(48, 64), torch.float32, scale=1.0)
    for layer in layers:
        layer.get_base_layer().bias.requires_grad_()
        layer(torch.ones(9, 48)).square().sum().backward()
    assert torch.equal(*(layer.get_base_layer().bias.grad for layer in layers))


@torch.no_grad()
def test_in_float32_one_of_no_effect_is_the_base_to_the_bit() -> None:
    _, layer = pair(nn.Linear(48, 64), torch.float32)
    x = torch.randn(3, 7, 48)
    scored = layer(x)
    layer.enable_adapters(False)
    base = layer(x)
    assert not torch.equal(scored, base)
    layer.enable_adapters(True)
    layer.lora_B["default"].weight.zero_()
    assert torch.equal(layer(x), base)


def test_an_untouched_policy_in_bfloat16_is_its_reference_and_its_base(
    tiny_model: str, prompts: PromptBatch, tmp_path: Any
) -> None:
    policy = make_policy(tiny_model, dtype="bfloat16")
    policy.save(tmp_path)
    again = make_policy(tiny_model, dtype="bfloat16", adapter=str(tmp_path), gradient_checkpointing=True)
    scored = again.logprobs(prompts.sequences)[0]
    with again.reference():
        assert torch.equal(again.logprobs(prompts.sequences)[0], scored)
    with policy.base():
        base = policy.logprobs(prompts.sequences)[0]
    for name, weight in policy.trained().items():
        if "lora_B" in name:
            weight.data.zero_()
    assert (scored - base).abs().max() > 0.1
    assert torch.equal(policy.logprobs(prompts.sequences)[0], base)
