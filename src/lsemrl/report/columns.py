"""The columns of a report's tables: how each is read from an arm, shown, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np

from lsemrl.report.contrasts import Compared
from lsemrl.report.findings import number, unmeasured
from lsemrl.report.records import KEPT, SCORES, Arm, Report


@dataclass(frozen=True)
class Column:
    """One measurement of an arm, and how to show it.

    Attributes:
        head: The heading. Here and in `group` and `metric`, braces stand for what a report calls it (see `named`).
        group: The heading above it.
        metric: Under which arms, seeds and intervals know it (see `contrasts.Contrast`).
        read: Its value of an arm, given the base, where that is not what the arm holds under `metric`.
        better: +1 where more is better, -1 where less is, 0 where neither.
        scale: What to multiply by before showing.
        digits: After the decimal point.
        delta: Whether to show the difference from the base.
    """

    head: str
    group: str
    metric: str = ""
    _: KW_ONLY
    read: Callable[[Arm, Arm], float | None] | None = None
    better: int = 1
    scale: float = 1
    digits: int = 1
    delta: bool = False

    def value(self, arm: Arm, base: Arm) -> float | None:
        """Of `arm`; None where it was not measured."""
        if self.read:
            return self.read(arm, base)
        field, _, key = self.metric.partition(".")
        scores: dict[str, float] = getattr(arm, field)
        return scores.get(key)

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

    @property
    def line(self) -> str:
        """All of it: the value and its spread, and in brackets what it is beside the base."""
        aside = " ".join(filter(None, (self.delta, self.interval)))
        return " ".join(filter(None, (self.text, self.spread, aside and f"({aside})")))


Rows = list[tuple[Arm, list[Cell]]]


def _lost(arm: Arm, base: Arm) -> float | None:
    kept = next((name for name in KEPT if name in arm.general and name in base.general), None)
    return None if arm is base or kept is None else base.general[kept] - arm.general[kept]


def _drift(arm: Arm, base: Arm) -> float | None:
    """Mean of an arm's drifts; NaN where any is not finite, since a mean of the rest would flatter."""
    return float(np.mean(arm.nll_drifts)) if arm.nll_drifts else None


def _percent(head: str, group: str, metric: str) -> Column:
    return Column(head, group, metric, scale=100, delta=True)


def _kl(head: str, field: str, key: str) -> Column:
    return Column(head, _KL[field], f"{field}.{key}", better=-1, digits=3)


def _percentile(field: str, percent: int) -> Callable[[Arm, Arm], float | None]:
    def read(arm: Arm, base: Arm) -> float | None:
        values = np.array(getattr(arm, field))
        if not len(values):
            return None
        return float(np.percentile(values, percent)) if np.isfinite(values).all() else math.nan

    return read


LEARNED_GROUP, _GENERAL, _TAX, _COST = "New task", "{general}", "Tax", "Training"
_SHORT = {"em": "EM", "accuracy": "accuracy", "chrf_sentence": "chrF", "": ""}
"""Of what is lost, where there is little room."""
_KL = {"kl": "KL(arm ‖ base)", "kl_from_base": "KL(base ‖ arm)"}
SCORE_COLUMNS = {name: _percent(head, LEARNED_GROUP, f"target.{name}") for name, head in SCORES.items()}
MEANING_F1, CHRF, LANGUAGE = (SCORE_COLUMNS[name] for name in ("meaning_f1", "chrf", "language_rate"))
EXACT = _percent("wholly right", LEARNED_GROUP, "target.meaning_exact")
EM = Column("exact match", _GENERAL, "general.em", scale=100)
ACCURACY = Column("accuracy", _GENERAL, "general.accuracy", scale=100)
ANSWERS_CHRF = Column("chrF, answers", _GENERAL, "general.chrf_sentence", scale=100)
LEAK = Column("leak", _GENERAL, "general.leak", better=-1, scale=100, delta=True)
LOST = Column("{lost} lost", _TAX, "tax.{kept}", read=_lost, better=-1, scale=100)
DRIFT = Column("NLL drift", _TAX, "tax.nll", read=_drift, better=-1, digits=3)
DRIFT_P90 = Column("drift P90", _TAX, "tax.nll_p90", read=_percentile("nll_drifts", 90), better=-1, digits=3)
KL_TARGET = _kl("KL, new task", "kl", "target")
KL_P90 = replace(_kl("KL, {short} P90", "kl", "general_p90"), read=_percentile("kl_rows", 90))
JUDGED = Column("judge win", "RL or SFT", read=lambda arm, base: arm.judge_win, better=0, scale=100)
SEEDS = Column("seeds", _COST, read=lambda arm, base: len(arm.seeds) or None, better=0, digits=0)
MINUTES = Column("minutes", _COST, read=lambda arm, base: arm.seconds or None, better=0, scale=1 / 60)
_KEPT = (EM, ACCURACY, ANSWERS_CHRF)
SUMMARY = (MEANING_F1, EXACT, CHRF, LANGUAGE, *_KEPT, LOST, DRIFT, KL_TARGET, JUDGED, SEEDS, MINUTES)
TERMINAL = (MEANING_F1, EXACT, CHRF, *_KEPT, LOST, SEEDS, MINUTES)
LEARNED = (
    MEANING_F1,
    EXACT,
    CHRF,
    SCORE_COLUMNS["chrf_sentence"],
    _percent("chrF++", LEARNED_GROUP, "target.chrf_pp"),
    _percent("chrF++ of sentences", LEARNED_GROUP, "target.chrf_pp_sentence"),
    SCORE_COLUMNS["bleu"],
    _percent("BLEU 13a", LEARNED_GROUP, "target.bleu_13a"),
    _percent("spBLEU", LEARNED_GROUP, "target.spbleu"),
    Column("COMET", LEARNED_GROUP, "target.comet", digits=3, delta=True),
    Column("MetricX", LEARNED_GROUP, "target.metricx", better=-1, digits=2, delta=True),
    Column("TER", LEARNED_GROUP, "target.ter", better=-1, scale=100, delta=True),
    Column("TER of sentences", LEARNED_GROUP, "target.ter_sentence", better=-1, scale=100, delta=True),
    SCORE_COLUMNS["rouge_l"],
    SCORE_COLUMNS["em"],
    _percent("F1", LEARNED_GROUP, "target.f1"),
    _percent("average", LEARNED_GROUP, "target.average"),
    Column("length", LEARNED_GROUP, "target.answer_length", better=0, delta=True),
    Column("similarity", LEARNED_GROUP, "target.similarity", digits=3, delta=True),
    LANGUAGE,
    Column("copied", LEARNED_GROUP, "target.copied", better=-1, scale=100, delta=True),
    _percent("ended", LEARNED_GROUP, "target.ended_rate"),
    Column("similarity reward", "Reward against oracle", "target.similarity_reward", digits=3, delta=True),
    Column("hacking gap", "Reward against oracle", "target.hacking_gap", better=0, digits=3, delta=True),
    Column("steps", _COST, read=lambda arm, base: arm.steps or None, better=0, digits=0),
    MINUTES,
)
LOSSES = (
    EM,
    _percent("F1", _GENERAL, "general.f1"),
    _percent("average", _GENERAL, "general.average"),
    _percent("contained", _GENERAL, "general.contained"),
    ACCURACY,
    _percent("per token", _GENERAL, "general.accuracy_per_token"),
    Column("guessed", _GENERAL, "general.chance", better=0, scale=100),
    ANSWERS_CHRF,
    LEAK,
    Column("asked back", _GENERAL, "general.asked_back", better=-1, scale=100, delta=True),
    Column("length", _GENERAL, "general.answer_length", better=0, delta=True),
    _percent("ended", _GENERAL, "general.ended_rate"),
    Column("NLL", _GENERAL, "general.nll", better=-1, digits=3, delta=True),
    LOST,
    DRIFT,
    Column("drift P50", _TAX, "tax.nll_p50", read=_percentile("nll_drifts", 50), better=-1, digits=3),
    DRIFT_P90,
)
MOVED = (
    KL_TARGET,
    _kl("KL, own outputs", "kl", "own"),
    _kl("KL, {short}", "kl", "general"),
    KL_P90,
    _kl("KL, {text}", "kl", "text"),
    _kl("reverse, new task", "kl_from_base", "target"),
    _kl("reverse, own outputs", "kl_from_base", "own"),
    _kl("reverse, {short}", "kl_from_base", "general"),
    _kl("reverse, {text}", "kl_from_base", "text"),
    Column(
        "change, %", "Weights", "weight_change", read=lambda arm, base: arm.weight_change, better=0, scale=100, digits=2
    ),
)


def speaking(report: Report, columns: Sequence[Column]) -> tuple[Column, ...]:
    """`columns` with the score that the sentences over the table speak of, and in place of chrF where it is another."""
    score = SCORE_COLUMNS[report.score]
    if score in columns:
        return tuple(columns)
    return tuple(score if column is CHRF else column for column in columns)


def named(report: Report, column: Column) -> Column:
    """`column` with what `report` calls general ability, its main score and the language of the plain text."""
    words = {"general": report.general_name, "short": report.general_short, "text": report.text_name}
    words |= {"kept": report.kept, "lost": _SHORT[report.kept]}
    head, group, metric = (text.format(**words) for text in (column.head, column.group, column.metric))
    return replace(column, head=head, group=group, metric=metric)


def grid(report: Report, columns: Sequence[Column]) -> tuple[list[Column], Rows]:
    """The columns that any arm has a value for, and a row of cells per arm.

    The best is marked among trained arms only, where there are several that differ; not of what was lost
    where the base had (next to) nothing to lose.
    """
    shown: list[Column] = []
    rows: Rows = [(arm, []) for arm in report.arms]
    nothing_to_lose = bool(unmeasured(report))
    for each in columns:
        if each == LOST and nothing_to_lose:
            continue
        column = named(report, each)
        values = {arm.name: column.value(arm, report.base) for arm in report.arms}
        if all(value is None for value in values.values()):
            continue
        shown.append(column)
        rivals = [value for arm in report.trained if (value := values[arm.name]) is not None and math.isfinite(value)]
        differ = len(set(map(column.show, rivals))) > 1
        void = nothing_to_lose and each.group in (_GENERAL, _TAX)
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


def interval(column: Column, of: Compared) -> str:
    """The bounds of a difference as `column` shows its values; "" where it has none."""
    if not (math.isfinite(of.low) and math.isfinite(of.high)):
        return ""
    return f"[{column.show(of.low)}, {column.show(of.high)}]"
