"""What callbacks remember goes through JSON and back to the same bits, or it is told that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, Timer, WeightAveraging

from lsemrl.modules.callback_states import restore_states, states_of
from short_runs import At, Stop, metrics, run, sft, stop


class Remembers(Callback):
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


def test_numbers_lists_and_tensors_come_back_as_they_were() -> None:
    best = torch.tensor([0.1, float("inf")], dtype=torch.float32)
    state = {"count": 3, "best": best, "nested": [{"tensor of none": torch.tensor(7)}, None, "ཀ"]}
    again = Remembers({})
    restore_states([again, Callback()], json.loads(json.dumps(states_of([Remembers(state), Callback(), Timer()]))))
    assert again.state["count"] == 3 and again.state["nested"][0]["tensor of none"].dtype == torch.int64
    assert torch.equal(again.state["best"], best) and again.state["nested"][1:] == [None, "ཀ"]


@pytest.mark.parametrize(
    ("callback", "why"),
    [
        (Remembers({"seen": {1, 2}}), "Remembers remembers is in no checkpoint (JSON cannot hold a set)"),
        (Remembers({"by_step": {1: 2}}), "(JSON cannot hold a dict)"),
        (WeightAveraging(), "(it is written into Lightning's own checkpoints)"),
    ],
)
def test_what_cannot_be_held_is_told(callback: Callback, why: str) -> None:
    with pytest.warns(UserWarning) as told:
        assert states_of([callback]) == {}
    assert why in str(told[0].message)


def test_a_resumed_run_stops_as_early_and_goes_on_with_the_steps_of_lightnings_own_rows(
    tiny_model: str, tmp_path: Path
) -> None:
    def early() -> list[Callback]:
        return [
            EarlyStopping("val/chrf", mode="max", min_delta=100.0, patience=1),
            LearningRateMonitor(logging_interval="step"),
        ]

    whole = run(sft(tiny_model), tmp_path / "whole", *early())
    assert whole.rollout_step == 7  # where validation, after steps 3 and 7, had found nothing better
    with pytest.raises(Stop):
        run(sft(tiny_model), tmp_path / "again", *early(), At(5, stop), every_n_steps=4)
    run(sft(tiny_model), tmp_path / "again", *early(), resume=str(tmp_path / "again" / "checkpoints" / "step_4"))
    assert metrics(tmp_path / "again") == metrics(tmp_path / "whole")
    rates = [
        {row["step"]: float(row[name]) for row in metrics(tmp_path / "again") if row[name]}
        for name in ("lr-AdamW", "learning_rate")
    ]
    assert rates[0] == pytest.approx(rates[1]) and len(rates[1]) == 7
