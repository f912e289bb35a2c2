"""How the rate rises and falls, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from lsemrl.modules.optimization import clipped_step, make_optimizer, set_schedule
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.types import UserError


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("linear", [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [1.0, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
        ("constant", [1.0] * 6),
    ],
)
def test_the_rate_of_every_step(schedule: str, after: list[float]) -> None:
    """Four steps of warm-up in ten, the first of which moves the weights already; then down to nothing."""
    weight = Parameter(torch.zeros(1))
    settings = OptimizerSettings(lr=2.0, warmup_ratio=0.4, schedule=schedule)  # type: ignore[arg-type]
    optimizer, rates = make_optimizer([weight], settings, 10)
    seen = []
    for _ in range(10):
        weight.grad = torch.ones(1)
        seen.append(optimizer.param_groups[0]["lr"])
        clipped_step(optimizer, rates, 1.0)
    assert seen == pytest.approx([2 * share for share in (0.25, 0.5, 0.75, 1.0)] + [2 * share for share in after])


def test_a_step_is_clipped_and_skipped_where_it_is_not_finite() -> None:
    weight = Parameter(torch.zeros(2))
    optimizer, rates = make_optimizer([weight], OptimizerSettings(lr=1.0, warmup_ratio=0.0, schedule="constant"), 4)
    weight.grad = torch.tensor([3.0, 4.0])
    assert clipped_step(optimizer, rates, 1.0) == 5
    # Of what is left the first moment holds a tenth.
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], torch.tensor([0.06, 0.08]))
    before = weight.detach().clone()
    weight.grad = torch.tensor([torch.nan, 1.0])
    clipped_step(optimizer, rates, 1.0)
    assert torch.equal(weight, before) and weight.grad is None and rates.last_epoch == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", 1e31),
        ("warmup_ratio", 1.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("max_grad_norm", 0.0),
    ],
)
def test_settings_are_checked(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{field} is "):
        OptimizerSettings(**{field: value})  # type: ignore[arg-type]


def test_a_schedule_that_is_taken_up_goes_on_from_its_step() -> None:
    settings = OptimizerSettings(lr=2.0, warmup_ratio=0.0, schedule="linear")
    optimizer, rates = make_optimizer([Parameter(torch.zeros(1))], settings, 10)
    assert isinstance(rates, LambdaLR)
    set_schedule(rates, settings, taken=6, steps=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8)
    optimizer.step()
    rates.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.6)
    set_schedule(rates, settings, taken=6, steps=8)
    assert optimizer.param_groups[0]["lr"] == rates.get_last_lr()[0] == pytest.approx(0.5)
