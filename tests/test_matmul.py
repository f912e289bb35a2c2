"""As what matrices of float32 are multiplied, and what hangs on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config

from lsemrl.matmul import float32_products
from lsemrl.modules import forward
from lsemrl.modules.policy import Policy


class Rounded(TorchDispatchMode):
    """A processor that keeps so many bits of what it multiplies."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default and args[0].dtype == torch.float32:
            args = [self.round(each) for each in args]
        return func(*args, **(kwargs or {}))

    def round(self, tensor: torch.Tensor) -> torch.Tensor:
        fraction, exponent = torch.frexp(tensor)
        return torch.ldexp((fraction * 2**self.bits).round() / 2**self.bits, exponent)


@pytest.mark.parametrize(("bits", "name"), [(24, "float32"), (11, "tf32"), (8, "bfloat16")])
def test_what_is_multiplied_is_told_by_its_error(bits: int, name: str) -> None:
    assert float32_products(torch.device("cpu")) == "float32"
    with Rounded(bits):
        assert float32_products(torch.device("cpu")) == name


ROWS = forward.probe(GPT2Config(), torch.arange(5, 25)[None], torch.ones(1, 20, dtype=torch.bool))


def test_ways_through_a_model_may_differ_by_what_is_rounded(policy: Policy) -> None:
    """A processor that computes float32 as bfloat16 made SmolLM2's log-probs differ by .0091 nats."""
    with policy.inference():
        assert forward.too_far(0.0091, policy.model, ROWS) == "log-probs were off by 0.0091 nats"
        with Rounded(8):
            assert forward.too_far(0.0091, policy.model, ROWS) is None
            assert forward.too_far(0.2, policy.model, ROWS) is not None


def test_what_is_rounded_is_more_in_some_models_than_in_others(policy: Policy) -> None:
    """SmolLM2-135M in bfloat16 is .07 nats off between two orders of summing, and was .118 for some first prompts."""
    with policy.inference():
        policy.model.get_output_embeddings().weight.data *= 40
        assert forward.too_far(0.2, policy.model, ROWS) is not None  # in float32, whose last bit moves nothing
        with Rounded(8):
            assert forward.too_far(0.2, policy.model, ROWS) is None
            assert forward.too_far(5.0, policy.model, ROWS) is not None
