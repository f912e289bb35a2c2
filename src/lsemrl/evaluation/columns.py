"""The columns of a report's tables: how each is read from an arm, shown, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lsemrl.evaluation.findings import number
from lsemrl.evaluation.report import Arm, Report


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measurement of an arm, and how to show it.

    Attributes:
        head: The heading.
        group: The heading above it.
        read: The value of an arm, given the base; None where it was not measured.
        better: +1 where more is better, -1 where less is, 0 where neither.
        scale: What to multiply by before showing.
        digits: After the decimal point.
        delta: Whether to show the difference from the base.
    """

    head: str
    group: str
    read: Callable[[Arm, Arm], float | None]
    better: int
    scale: float = 1
    digits: int = 1
    delta: bool = False

    def show(self, value: float | None, sign: str = "") -> str:
        """`value` as text."""
        return number(value if value is None else self.scale * value, self.digits, sign)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as text, its difference from the base, and whether it is the best of the trained arms."""

    text: str
    delta: str = ""
    best: bool = False


Rows = list[tuple[Arm, list[Cell]]]


def _of(field: str, key: str) -> Callable[[Arm, Arm], float | None]:
    return lambda arm, base: getattr(arm, field).get(key)


def _lost(arm: Arm, base: Arm) -> float | None:
    if arm is base or "em" not in arm.general or "em" not in base.general:
        return None
    return base.general["em"] - arm.general["em"]


def _drift(summary: Callable[[np.ndarray], float]) -> Callable[[Arm, Arm], float | None]:
    """`summary` of an arm's drifts; NaN where any drift is not finite, since a summary of the rest would flatter."""

    def read(arm: Arm, base: Arm) -> float | None:
        values = np.array(arm.nll_drifts)
        if not len(values):
            return None
        return float(summary(values)) if np.isfinite(values).all() else math.nan

    return read


def _percent(head: str, group: str, field: str, key: str) -> Column:
    return Column(head=head, group=group, read=_of(field, key), better=1, scale=100, delta=True)


_LEARNED, _QA, _TAX, _KL, _COST = "New task", "Chinese QA", "Tax", "Divergence", "Training"
MEANING_F1 = _percent("meaning F1", _LEARNED, "target", "meaning_f1")
EXACT = _percent("wholly right", _LEARNED, "target", "meaning_exact")
CHRF = _percent("chrF", _LEARNED, "target", "chrf")
LANGUAGE = _percent("language", _LEARNED, "target", "language_rate")
EM = Column(head="exact match", group=_QA, read=_of("general", "em"), better=1, scale=100)
LOST = Column(head="EM lost", group=_TAX, read=_lost, better=-1, scale=100)
DRIFT = Column(head="NLL drift", group=_TAX, read=_drift(np.mean), better=-1, digits=3)
KL_TARGET = Column(head="KL, new task", group=_KL, read=_of("kl", "target"), better=-1, digits=3)
MINUTES = Column(head="minutes", group=_COST, read=lambda arm, base: arm.seconds or None, better=0, scale=1 / 60)
SUMMARY = (MEANING_F1, EXACT, CHRF, LANGUAGE, EM, LOST, DRIFT, KL_TARGET, MINUTES)
LEARNED = (
    MEANING_F1,
    EXACT,
    CHRF,
    _percent("BLEU", _LEARNED, "target", "bleu"),
    _percent("ROUGE-L", _LEARNED, "target", "rouge_l"),
    Column(head="similarity", group=_LEARNED, read=_of("target", "similarity"), better=1, digits=3, delta=True),
    LANGUAGE,
    _percent("ended", _LEARNED, "target", "ended_rate"),
    Column(head="steps", group=_COST, read=lambda arm, base: arm.steps or None, better=0, digits=0),
    MINUTES,
)
LOSSES = (
    EM,
    _percent("F1", _QA, "general", "f1"),
    _percent("average", _QA, "general", "average"),
    Column(head="length", group=_QA, read=_of("general", "answer_length"), better=0, delta=True),
    Column(head="NLL", group=_QA, read=_of("general", "nll"), better=-1, digits=3, delta=True),
    LOST,
    DRIFT,
    Column(head="drift P50", group=_TAX, read=_drift(lambda values: np.percentile(values, 50)), better=-1, digits=3),
    Column(head="drift P90", group=_TAX, read=_drift(lambda values: np.percentile(values, 90)), better=-1, digits=3),
    KL_TARGET,
    Column(head="KL, QA", group=_KL, read=_of("kl", "general"), better=-1, digits=3),
    Column(head="KL, Chinese", group=_KL, read=_of("kl", "text"), better=-1, digits=3),
)


def grid(report: Report, columns: Sequence[Column]) -> tuple[list[Column], Rows]:
    """The columns that any arm has a value for, and a row of cells per arm.

    The best is marked among trained arms only, and only where there are several to choose from.
    """
    shown: list[Column] = []
    rows: Rows = [(arm, []) for arm in report.arms]
    for column in columns:
        values = {arm.name: column.read(arm, report.base) for arm in report.arms}
        if all(value is None for value in values.values()):
            continue
        shown.append(column)
        rivals = [value for arm in report.trained if (value := values[arm.name]) is not None and math.isfinite(value)]
        best = column.show(max(rivals, key=lambda value: column.better * value)) if len(rivals) > 1 else ""
        before = values["base"]
        for arm, cells in rows:
            now, delta = values[arm.name], ""
            if column.delta and arm is not report.base and now is not None and before is not None:
                delta = column.show(now - before, "+") if math.isfinite(now - before) else ""
            won = column.better != 0 and arm is not report.base and column.show(now) == best
            cells.append(Cell(text=column.show(now), delta=delta, best=won))
    return shown, rows
