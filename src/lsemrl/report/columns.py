"""The columns of a report's tables: how each is read from an arm, shown, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import numpy as np

from lsemrl.report.findings import MISSING, SCORE_NAMES, number, unmeasured
from lsemrl.report.records import Arm, Contrast, Report


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
        metric: Under which seeds and intervals know it (see `report.Contrast`).
    """

    head: str
    group: str
    read: Callable[[Arm, Arm], float | None]
    better: int
    scale: float = 1
    digits: int = 1
    delta: bool = False
    metric: str = ""

    def show(self, value: float | None, sign: str = "") -> str:
        """`value` as text."""
        return number(value if value is None else self.scale * value, self.digits, sign)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table shows of one value.

    Attributes:
        text: The value.
        spread: Its standard deviation over seeds.
        delta: Its difference from the base.
        interval: Of that difference, 95%.
        best: Whether it is the best of the trained arms.
    """

    text: str
    spread: str = ""
    delta: str = ""
    interval: str = ""
    best: bool = False


Rows = list[tuple[Arm, list[Cell]]]


def _of(field: str, key: str) -> Callable[[Arm, Arm], float | None]:
    return lambda arm, base: getattr(arm, field).get(key)


def _lost(arm: Arm, base: Arm) -> float | None:
    if arm is base or "em" not in arm.general or "em" not in base.general:
        return None
    return base.general["em"] - arm.general["em"]


def _drift(arm: Arm, base: Arm) -> float | None:
    """Mean of an arm's drifts; NaN where any is not finite, since a mean of the rest would flatter."""
    return float(np.mean(arm.nll_drifts)) if arm.nll_drifts else None


def _column(
    head: str,
    group: str,
    metric: str,
    *,
    better: int = 1,
    scale: float = 1,
    digits: int = 1,
    delta: bool = False,
) -> Column:
    """A column of what an arm holds under `metric`."""
    field, _, key = metric.partition(".")
    return Column(
        head=head,
        group=group,
        read=_of(field, key),
        better=better,
        scale=scale,
        digits=digits,
        delta=delta,
        metric=metric,
    )


def _percent(head: str, group: str, metric: str) -> Column:
    return _column(head, group, metric, scale=100, delta=True)


def _kl(head: str, field: str, key: str) -> Column:
    return _column(head, _KL[field], f"{field}.{key}", better=-1, digits=3)


def _percentile(field: str, percent: int) -> Callable[[Arm, Arm], float | None]:
    def read(arm: Arm, base: Arm) -> float | None:
        values = np.array(getattr(arm, field))
        if not len(values):
            return None
        return float(np.percentile(values, percent)) if np.isfinite(values).all() else math.nan

    return read


_LEARNED, _QA, _TAX, _COST = "New task", "Chinese QA", "Tax", "Training"
_KL = {"kl": "KL(arm ‖ base)", "kl_from_base": "KL(base ‖ arm)"}
_SCORES = {name: _percent(head, _LEARNED, f"target.{name}") for name, head in SCORE_NAMES.items()}
MEANING_F1, CHRF, LANGUAGE = (_SCORES[name] for name in ("meaning_f1", "chrf", "language_rate"))
EXACT = _percent("wholly right", _LEARNED, "target.meaning_exact")
EM = _column("exact match", _QA, "general.em", scale=100)
LOST = Column(head="EM lost", group=_TAX, read=_lost, better=-1, scale=100, metric="tax.em")
DRIFT = Column(head="NLL drift", group=_TAX, read=_drift, better=-1, digits=3, metric="tax.nll")
KL_TARGET = _kl("KL, new task", "kl", "target")
JUDGED = Column(head="judge win", group="RL or SFT", read=lambda arm, base: arm.judge_win, better=0, scale=100)
SEEDS = Column(head="seeds", group=_COST, read=lambda arm, base: len(arm.seeds) or None, better=0, digits=0)
MINUTES = Column(head="minutes", group=_COST, read=lambda arm, base: arm.seconds or None, better=0, scale=1 / 60)
SUMMARY = (MEANING_F1, EXACT, CHRF, LANGUAGE, EM, LOST, DRIFT, KL_TARGET, JUDGED, SEEDS, MINUTES)
TERMINAL = (MEANING_F1, EXACT, CHRF, EM, LOST, SEEDS, MINUTES)
LEARNED = (
    MEANING_F1,
    EXACT,
    CHRF,
    _SCORES["chrf_sentence"],
    _SCORES["bleu"],
    _SCORES["rouge_l"],
    _column("similarity", _LEARNED, "target.similarity", digits=3, delta=True),
    LANGUAGE,
    _percent("ended", _LEARNED, "target.ended_rate"),
    _column("similarity reward", "Reward against oracle", "target.similarity_reward", digits=3, delta=True),
    _column("hacking gap", "Reward against oracle", "target.hacking_gap", better=-1, digits=3, delta=True),
    Column(head="steps", group=_COST, read=lambda arm, base: arm.steps or None, better=0, digits=0),
    MINUTES,
)
LOSSES = (
    EM,
    _percent("F1", _QA, "general.f1"),
    _percent("average", _QA, "general.average"),
    _column("length", _QA, "general.answer_length", better=0, delta=True),
    _column("NLL", _QA, "general.nll", better=-1, digits=3, delta=True),
    LOST,
    DRIFT,
    Column(head="drift P50", group=_TAX, read=_percentile("nll_drifts", 50), better=-1, digits=3, metric="tax.nll_p50"),
    Column(head="drift P90", group=_TAX, read=_percentile("nll_drifts", 90), better=-1, digits=3, metric="tax.nll_p90"),
)
MOVED = (
    KL_TARGET,
    _kl("KL, own outputs", "kl", "own"),
    _kl("KL, QA", "kl", "general"),
    Column(
        head="KL, QA P90",
        group=_KL["kl"],
        read=_percentile("kl_rows", 90),
        better=-1,
        digits=3,
        metric="kl.general_p90",
    ),
    _kl("KL, Chinese", "kl", "text"),
    _kl("reverse, new task", "kl_from_base", "target"),
    _kl("reverse, own outputs", "kl_from_base", "own"),
    _kl("reverse, QA", "kl_from_base", "general"),
    _kl("reverse, Chinese", "kl_from_base", "text"),
    Column(
        head="change, %",
        group="Weights",
        read=lambda arm, base: arm.weight_change,
        better=0,
        scale=100,
        digits=2,
        metric="weight_change",
    ),
)


def speaking(report: Report, columns: Sequence[Column]) -> tuple[Column, ...]:
    """`columns` with the score that the sentences over the table speak of, and in place of chrF where it is another."""
    score = _SCORES[report.score]
    if score in columns:
        return tuple(columns)
    return tuple(score if column is CHRF else column for column in columns)


def grid(report: Report, columns: Sequence[Column]) -> tuple[list[Column], Rows]:
    """The columns that any arm has a value for, and a row of cells per arm.

    The best is marked among trained arms only, where there are several that differ; not of what was lost of Chinese QA
    where the base answers (next to) none of it, for then nothing was.
    """
    shown: list[Column] = []
    rows: Rows = [(arm, []) for arm in report.arms]
    nothing_to_lose = bool(unmeasured(report))
    for column in columns:
        if column == LOST and nothing_to_lose:
            continue
        values = {arm.name: column.read(arm, report.base) for arm in report.arms}
        if all(value is None for value in values.values()):
            continue
        shown.append(column)
        rivals = [value for arm in report.trained if (value := values[arm.name]) is not None and math.isfinite(value)]
        differ = len(set(map(column.show, rivals))) > 1
        void = nothing_to_lose and column.group in (_QA, _TAX)
        best = column.show(max(rivals, key=lambda value: column.better * value)) if differ and not void else ""
        before = values["base"]
        for arm, cells in rows:
            now, delta, spread = values[arm.name], "", arm.spread(column.metric)
            if column.delta and arm is not report.base and now is not None and before is not None:
                delta = column.show(now - before, "+") if math.isfinite(now - before) else ""
            between = report.contrast(arm.name, "base", column.metric)
            shown_difference = now is not None and _is_difference(column)
            cells.append(
                Cell(
                    text=column.show(now),
                    spread="" if spread is None else f"±{column.show(spread)}",
                    delta=delta,
                    interval=interval(column, between) if between and shown_difference else "",
                    best=column.better != 0 and arm is not report.base and column.show(now) == best,
                )
            )
    return shown, rows


def _is_difference(column: Column) -> bool:
    """Whether a difference from the base is shown, beside the value or as the value."""
    return column.delta or column.metric.startswith("tax.")


def interval(column: Column, contrast: Contrast) -> str:
    """The bounds of `contrast` as `column` shows its values; "" where it has none."""
    if not (math.isfinite(contrast.low) and math.isfinite(contrast.high)):
        return ""
    return f"[{column.show(contrast.low)}, {column.show(contrast.high)}]"


def differences(report: Report) -> tuple[list[Column], Rows]:
    """What each arm has over another one than the base, with intervals."""
    similarity = _column("similarity", _LEARNED, "target.similarity", digits=3)
    shown: list[Column] = []
    rows: Rows = [(arm, []) for arm in report.trained]
    for other in report.trained:
        for column in (_SCORES[report.score], similarity, *(() if unmeasured(report) else (LOST,)), DRIFT):
            found = [report.contrast(arm.name, other.name, column.metric) for arm, _ in rows]
            if not any(found):
                continue
            shown.append(replace(column, group=f"minus {other.label}"))
            for (_, cells), contrast in zip(rows, found, strict=True):
                cells.append(
                    Cell(text=column.show(contrast.value, "+"), interval=interval(column, contrast))
                    if contrast
                    else Cell(text=MISSING)
                )
    return shown, [row for row in rows if any(cell.interval for cell in row[1])]


def same_scores(report: Report) -> tuple[list[Column], Rows]:
    """What the first way of training and each of the others had lost when they scored the same."""
    arms = {arm.name: arm for arm in report.arms}
    of = arms[report.paths[0][-1]].label
    score, own, other, more, share = columns = [
        _column(head, group, "", scale=100)
        for head, group in (
            ("compared at", "Score"),
            (of, "QA exact match lost by"),
            ("the other", "QA exact match lost by"),
            ("lost more", "The other"),
            (f"{of}'s loss in % of it", "The other"),
        )
    ]
    rows: Rows = []
    for each in report.same_scores:
        losses, against = fmean(each.losses), fmean(each.losses_against)
        cells = [
            Cell(text=column.show(fmean(values)), spread=f"±{column.show(stdev(values))}" if len(values) > 1 else "")
            for column, values in ((score, each.scores), (own, each.losses), (other, each.losses_against))
        ]
        bounds = f"[{more.show(each.low)}, {more.show(each.high)}]" if len(each.scores) > 1 else ""
        cells.append(Cell(text=more.show(against - losses, "+"), interval=bounds))
        cells.append(Cell(text=share.show(losses / against if against > 0 else None)))
        rows.append((arms[each.against], cells))
    return columns, rows


def harness(report: Report) -> tuple[list[Column], Rows]:
    """What lm-evaluation-harness found of each arm, beside the base."""
    keys = list(dict.fromkeys(key for arm in report.trained for key in arm.harness))
    columns = [_column(key, "lm-evaluation-harness", "", digits=3) for key in keys]
    asked = [arm for arm in report.trained if arm.harness]
    rows: Rows = [(arm, []) for arm in (report.base, *asked)]
    for key, column in zip(keys, columns, strict=True):
        for arm, cells in rows:
            found = arm.harness.get(key)
            if arm is report.base:
                before = [each.harness[key].before for each in asked if key in each.harness]
                cells.append(Cell(text=column.show(fmean(before))))
            elif found is None:
                cells.append(Cell(text=MISSING))
            else:
                known = math.isfinite(found.low)
                cells.append(
                    Cell(
                        text=column.show(found.after),
                        delta=column.show(found.after - found.before, "+"),
                        interval=f"[{column.show(found.low)}, {column.show(found.high)}]" if known else "",
                    )
                )
    return columns, rows
