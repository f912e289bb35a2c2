from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lsemrl.kernels import products
from lsemrl.kernels.products import is_large, linear, multiply, packed

WIDTH, OUT = 600, 1100  # more weights than the least

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="no MKL beside oneDNN"
)


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The rows of every product that oneDNN made."""
    rows: list[int] = []

    def multiply_seen(x: Tensor, *weights: Tensor) -> Tensor:
        rows.append(x.numel() // x.shape[-1])
        return multiply(x, *weights)

    monkeypatch.setattr(products, "multiply", multiply_seen)
    return rows


BIASES = {
    "none": lambda: None,
    "whole": lambda: torch.randn(OUT),
    "every second": lambda: torch.randn(2 * OUT)[::2],
    "one for all": lambda: torch.randn(1).expand(OUT),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (8,), (3, 7), (64,), (65,), (513,)])
@torch.no_grad()
def test_the_product_is_the_same(rows, bias) -> None:
    weight, bias = nn.Linear(WIDTH, OUT).weight, BIASES[bias]()
    apart = nn.Linear(WIDTH, OUT + 4).weight[:OUT]  # as the head's, wider than the vocabulary
    for x in (torch.randn(*rows, WIDTH), torch.randn(WIDTH, *rows).movedim(0, -1)):
        truth = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        for made in (linear(x, weight, bias), multiply(x, packed(weight), bias)):
            assert made.shape == (*rows, OUT) and made.is_contiguous()
            torch.testing.assert_close(made.double(), truth, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(linear(x, apart), nn.functional.linear(x, apart), rtol=1e-4, atol=1e-4)


def test_where_it_is_taken(asked, monkeypatch) -> None:
    weight = torch.randn(OUT, WIDTH)
    with torch.no_grad():
        for x in (torch.randn(0, WIDTH), torch.randn(WIDTH), torch.randn(1, WIDTH), torch.randn(2, 1, WIDTH)):
            linear(x, weight)
    assert asked == [2]
    assert is_large(weight) and not is_large(weight[:800])
    assert not is_large(weight.bfloat16()) and not is_large(weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_large(weight)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not is_large(weight)


@torch.no_grad()
def test_numbers_of_rows_that_it_compiles_for_are_few(monkeypatch) -> None:
    compiled, op = set(), torch.ops.mkldnn._linear_pointwise

    def seen(x: Tensor, *others: object) -> Tensor:
        compiled.add(len(x))
        return op(x, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", seen)
    weight = torch.randn(OUT, WIDTH)
    for rows in range(2, 400):
        assert len(linear(torch.randn(rows, WIDTH), weight)) == rows
    assert compiled == {*range(2, 8), *range(8, 65, 8), *range(128, 449, 64)}


def test_a_gradient_that_is_asked_for_comes(asked) -> None:
    for learned in range(3):
        given = [torch.randn(4, WIDTH), torch.randn(OUT, WIDTH), torch.randn(OUT)]
        given[learned].requires_grad_()
        linear(*given).sum().backward()
        assert given[learned].grad is not None and not asked
    linear(*(each.detach() for each in given))
    assert asked == [4]
