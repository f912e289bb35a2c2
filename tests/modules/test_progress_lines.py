from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from lsemrl.modules.progress_lines import ProgressLines
from short_runs import grpo


def test_lines_count_rollout_steps_whatever_optimizer_steps_each_takes(
    tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, lines = grpo(tiny_model), ProgressLines()  # num_iterations 2
    module.planned_steps, module.windows = 15, 1
    found = {"progress_bar_metrics": {"reward": 0.5}, "callback_metrics": {"reward": 0.5, "val/chrf": 0.25}}
    trainer: Any = SimpleNamespace(is_global_zero=True, sanity_checking=False, **found)
    lines.on_train_start(trainer, module)
    for module.rollout_step in range(1, 10):
        lines.on_train_batch_end(trainer, module)
    lines.on_validation_end(trainer, module)
    printed = [re.sub(r"\d+ s", "0 s", line) for line in capsys.readouterr().err.splitlines()]
    assert printed == [
        *(f"{step} rollout steps: reward 0.5; about 0 s left" for step in ("1 of 8", "8 of 8", "9 of 9")),
        "validated after 9 rollout steps: val/chrf 0.25",
    ]
