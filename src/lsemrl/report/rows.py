"""What one measurement holds, row by row and in the mean, under the names of `records.Contrast.metric`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsemrl.evaluation.measurement import Measured
from lsemrl.metrics.corpus import POOLED
from lsemrl.modules.alarm_log import Told
from lsemrl.report.records import KEPT, Alarm, Sample

Array = NDArray[np.float64]


def rows_of(measured: Measured) -> dict[str, Array]:
    """Every score that has a value for each row, by its metric."""
    rows = {
        f"target.{f'{name}_sentence' if name in POOLED else name}": np.array(values)
        for name, values in measured.target_rows.items()
    }
    rows |= {f"general.{name}": np.array(values) for name, values in measured.general_rows.items()}
    for part in ("target", "general"):
        if {f"{part}.em", f"{part}.f1"} <= rows.keys():
            rows[f"{part}.average"] = (rows[f"{part}.em"] + rows[f"{part}.f1"]) / 2
    if {"target.similarity_reward", "target.meaning_f1"} <= rows.keys():
        rows["target.hacking_gap"] = rows["target.similarity_reward"] - rows["target.meaning_f1"]
    # Against the base, a difference.
    rows |= {f"tax.{name}": -rows[f"general.{name}"] for name in KEPT if f"general.{name}" in rows}
    return rows | ({"tax.nll": rows["general.nll"]} if "general.nll" in rows else {})


def mean_rows_of(seeds: Sequence[Measured]) -> dict[str, Array]:
    """The mean over seeds of every score that all of them have."""
    return means_of([rows_of(measured) for measured in seeds])


def means_of(each: Collection[Mapping[str, Array]]) -> dict[str, Array]:
    """The mean of every metric that all have."""
    return {metric: np.mean([of[metric] for of in each], axis=0) for metric in shared(each)}


def shared(each: Collection[Mapping[str, Any]]) -> list[str]:
    """The metrics that all have."""
    first, *others = each
    return [metric for metric in first if all(metric in of for of in others)]


def counts_of(measured: Measured) -> dict[str, Array]:
    """What each row adds to the corpus scores that are made of sums, by their metric: [N, K]."""
    return {f"target.{name}": np.array(counts) for name, counts in measured.target_counts.items()}


def values_of(measured: Measured, base: dict[str, Array]) -> dict[str, float]:
    """Every number of one measurement, by its metric; `base` holds the rows of the base."""
    rows = rows_of(measured)
    values = {metric: float(each.mean()) for metric, each in rows.items()}
    values |= {f"target.{name}": value for name, value in measured.target.items()}
    values |= {f"general.{name}": value for name, value in measured.general.items()}
    values |= {f"kl.{name}": each.to_base for name, each in measured.divergence.items()}
    values |= {f"kl_from_base.{name}": each.from_base for name, each in measured.divergence.items()}
    drifts = {metric: rows[metric] - base[metric] for metric in rows if metric.startswith("tax.")}
    values |= {metric: float(each.mean()) for metric, each in drifts.items()}
    if "tax.nll" in drifts and np.isfinite(drifts["tax.nll"]).all():
        values |= {f"tax.nll_p{percent}": float(np.percentile(drifts["tax.nll"], percent)) for percent in (50, 90)}
    kl = kl_rows_of(measured)
    if kl and np.isfinite(kl).all():
        values["kl.general_p90"] = float(np.percentile(kl, 90))
    return values | {"weight_change": measured.weight_change}


def kl_rows_of(measured: Measured) -> tuple[float, ...]:
    """KL(arm || base) along each gold answer of general ability; () where none was measured."""
    return measured.divergence["general"].to_base_rows if "general" in measured.divergence else ()


def drifts_of(measured: Measured, base: dict[str, Array]) -> list[float]:
    """Of each question; [] where none was measured."""
    rows = rows_of(measured)
    drifts: list[float] = (rows["tax.nll"] - base["tax.nll"]).tolist() if "tax.nll" in rows else []
    return drifts


def alarms_of(told: Iterable[Told], seed: int | None = None) -> tuple[Alarm, ...]:
    """What a run said was going wrong; `seed` where a report has runs of several."""
    return tuple(
        Alarm(
            step=each.rollout_step,
            sentence=each.sentence,
            samples=tuple(
                Sample(
                    source=str(row["source"]),
                    reference=str(row["reference"]),
                    output=str(row["completion"]),
                    rewards={"reward": float(row["reward"])},
                )
                for row in each.rows
            ),
            seed=seed,
        )
        for each in told
    )
