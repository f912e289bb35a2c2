from __future__ import annotations

import pytest
import torch
from torch import nn

from lsemrl.kernels import few_rows
from lsemrl.kernels.few_rows import are_few, linears_to_turn, multiply, turned

WIDTH, OUT = 300, 1100  # more weights than the least, and no whole number of blocks


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The rows of every product that was turned round, by two threads."""
    rows: list[int] = []

    def multiply_seen(x_MK, weight_NK, out_MN):
        rows.append(len(x_MK))
        return multiply(x_MK, weight_NK, out_MN)

    monkeypatch.setattr(few_rows, "multiply", multiply_seen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return rows


@pytest.mark.parametrize("rows", [2, 7, 128])
def test_the_product_is_the_same(rows) -> None:
    x_MK, weight_NK = torch.randn(rows, WIDTH), torch.randn(OUT, WIDTH)
    out_MN = torch.full((rows, OUT + 4), torch.nan)[:, :OUT]  # as the head's buffer, wider than its vocabulary
    assert multiply(x_MK, weight_NK, out_MN) is out_MN
    torch.testing.assert_close(out_MN.double(), x_MK.double() @ weight_NK.double().t(), rtol=1e-4, atol=1e-4)


def test_where_it_is_taken(monkeypatch) -> None:
    weight = torch.randn(OUT, WIDTH)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert [rows for rows in (1, 2, 128, 129) if are_few(rows, torch.randn(1 << 12, 1 << 10))] == [2, 128]
    assert not are_few(8, weight)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [rows for rows in (0, 1, 2, 128, 129) if are_few(rows, weight)] == [2, 128]
    assert not are_few(8, weight[:800]) and not are_few(8, weight.bfloat16()) and not are_few(8, weight.to("meta"))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linears_compute_the_same_by_it(bias, asked) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, OUT, bias=bias), nn.Tanh(), nn.Linear(OUT, 4))
    x = torch.randn(3, 2, WIDTH)
    plain = model(x)
    with turned(linears_to_turn(model)):
        few, alone, many = model(x), model(x[:1, :1]), model(torch.randn(129, WIDTH))
    assert asked == [6]  # the small one is multiplied as it was, and so are one row and many
    assert few.shape == plain.shape == (3, 2, 4) and few.is_contiguous()
    assert alone.shape == (1, 1, 4) and many.shape == (129, 4)
    torch.testing.assert_close(few, plain, rtol=1e-4, atol=1e-5)
    model(x)
    assert asked == [6] and "forward" not in model[0].__dict__


@torch.no_grad()
def test_mixed_precision_keeps_its_own(asked) -> None:
    model = nn.Linear(WIDTH, OUT)
    with turned(linears_to_turn(model)), torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, WIDTH)).dtype == torch.bfloat16
    assert not asked


def test_what_fails_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(WIDTH, OUT)
    with pytest.raises(RuntimeError, match="shape"), torch.no_grad(), turned(linears_to_turn(model)):
        model(torch.randn(2, WIDTH + 1))
    assert "forward" not in model.__dict__
