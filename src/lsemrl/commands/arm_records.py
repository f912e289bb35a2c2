"""What the demo's report is made of: records of an arm, from what was measured of it and what its run logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsemrl.evaluation.tax import Measurement
from lsemrl.modules.run_summary import logged_rows
from lsemrl.report.records import Arm, Sample
from lsemrl.rewards import Reward
from lsemrl.types import Completion

_SAMPLES = 8
_CURVE = {
    "rollout_step": "rollout_step",
    "reward": "reward",
    "rewards/similarity/mean": "similarity",
    "rewards/language/mean": "language",
    "rewards/meaning/mean": "meaning_f1",
    "kl": "kl",
    "completions/mean_length": "length",
}


def arm_of(
    name: str, label: str, trained_by: str, measured: Measurement, rewards: Mapping[str, Reward], **training: Any
) -> Arm:
    """An arm as it was measured; `rewards` score its samples, `training` is what else is known of it."""
    return Arm(
        name=name,
        label=label,
        trained_by=trained_by,
        target=measured.target,
        general=measured.general,
        kl=measured.kl,
        samples=samples_of(measured.outputs[:_SAMPLES], rewards),
        **{"seconds": 0.0, "steps": 0, **training},
    )


def drifts_of(measured: Measurement, base: Measurement) -> tuple[float, ...]:
    """What the gold answer of each question has become less likely by, in nats per token."""
    pairs = zip(measured.general_rows["nll"], base.general_rows["nll"], strict=True)
    return tuple(now - then for now, then in pairs)


def samples_of(outputs: Sequence[Completion], rewards: Mapping[str, Reward]) -> tuple[Sample, ...]:
    """Outputs with what `rewards` make of them."""
    parts = {name: reward(outputs) for name, reward in rewards.items()}
    return tuple(
        Sample(
            source=output.example.source,
            reference=output.example.reference,
            output=output.text,
            rewards={name: float(part_N[row]) for name, part_N in parts.items()},
        )
        for row, output in enumerate(outputs)
    )


def curve_of(folder: Path) -> tuple[dict[str, float], ...]:
    """The rows of RL in a run's metrics.csv; none for SFT, which has no reward."""
    rows = [row for row in logged_rows(folder) if row.get("reward")]
    return tuple({name: float(row[column]) for column, name in _CURVE.items() if row.get(column)} for row in rows)
