"""The paper's own tables (arXiv 2605.14366), with what was measured here beside each published figure.

Published figures are of Qwen3-4B on real Tibetan; ours are of whatever the report says. Directions can be compared,
figures cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lsemrl.report.columns import Cell, Column
from lsemrl.report.records import Arm, Report

Read = Callable[[Arm, Arm], float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column of a published table.

    Attributes:
        head: As the paper has it.
        read: Our value of an arm, given the base, in the paper's unit.
        digits: After the decimal point, as the paper has them.
        metric: Under which an arm's seeds know it.
        scale: From the unit of `report.Arm` to the paper's.
        cmrc: Whether it is of CMRC 2018, beside which no other general ability stands.
    """

    head: str
    read: Read
    digits: int = 4
    metric: str = ""
    scale: float = 1
    cmrc: bool = False


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A published table.

    Attributes:
        title: What it shows.
        task: "translation" or "headline"; "" where the paper does not say.
        figures: Its columns.
        rows: Names of ours, the first that was measured stands beside the row; the paper's name of it; its figures,
            None where blank.
    """

    title: str
    task: str
    figures: tuple[Figure, ...]
    rows: tuple[tuple[tuple[str, ...], str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row's head, as much of an `Arm` as a table shows."""

    name: str
    label: str


def _score(head: str, key: str) -> Figure:
    return Figure(head=head, read=lambda arm, base: arm.target.get(key), metric=f"target.{key}")


def _points(head: str, key: str) -> Figure:
    return Figure(
        head=head,
        read=lambda arm, base: arm.general.get(key),
        digits=2,
        metric=f"general.{key}",
        scale=100,
        cmrc=True,
    )


def _drifts(head: str, field: str, metric: str, summary: Callable[[np.ndarray], float], digits: int) -> Figure:
    def read(arm: Arm, base: Arm) -> float | None:
        values = np.array(getattr(arm, field))
        return float(summary(values)) if len(values) else None

    return Figure(head=head, read=read, digits=digits, metric=metric, cmrc=True)


def _p90(values: np.ndarray) -> float:
    return float(np.percentile(values, 90)) if np.isfinite(values).all() else math.nan


_JUDGED = Figure(head="judge win, %", read=lambda arm, base: arm.judge_win, digits=1, scale=100)
_SIMILARITY = _score("similarity", "similarity")
_GENERAL = (_points("CMRC average", "average"), _points("CMRC F1", "f1"))
TABLES = (
    PaperTable(
        title="Translation",
        task="translation",
        figures=(_score("BLEU-4", "bleu"), _SIMILARITY, *_GENERAL, _JUDGED),
        rows=(
            (("cold_start",), "Cold start", (0.3953, 0.5593, None, None, None)),
            (("rl",), "RL", (0.4519, 0.7164, 46.97, 65.79, 33.5)),
            (("sft",), "Strong SFT", (0.6006, 0.8282, 41.82, 62.99, 59.2)),
        ),
    ),
    PaperTable(
        title="Headline generation",
        task="headline",
        figures=(_score("ROUGE-L", "rouge_l"), _SIMILARITY, *_GENERAL, _JUDGED),
        rows=(
            (("cold_start",), "Cold start", (0.2204, 0.5774, None, None, None)),
            (("rl",), "RL", (0.2530, 0.6404, 45.10, 65.20, 51.2)),
            (("sft",), "Strong SFT", (0.3095, 0.6499, 44.20, 65.30, 35.1)),
        ),
    ),
    PaperTable(
        title="Reward ablation, translation",
        task="translation",
        figures=(_SIMILARITY,),
        rows=(
            (("embedding_language", "rl"), "Embedding + language", (0.7164,)),
            (("bleu_language",), "BLEU + language", (0.6375,)),
            (("bleu_embedding_language",), "BLEU + embedding + language", (0.6175,)),
            (("bleu_embedding",), "BLEU + embedding", (0.2312,)),
        ),
    ),
    PaperTable(
        title="Few-shot transfer to headlines",
        task="headline",
        figures=(_SIMILARITY,),
        rows=(
            (("headlines_from_rl",), "From translation-RL", (0.5690,)),
            (("headlines_from_sft",), "From translation-SFT", (0.5456,)),
        ),
    ),
    PaperTable(
        title="Drift on CMRC against the base",
        task="",
        figures=(
            _drifts("mean NLL drift", "nll_drifts", "tax.nll", lambda values: float(values.mean()), 2),
            _drifts("P90 NLL drift", "nll_drifts", "tax.nll_p90", _p90, 2),
            _drifts("P90 KL", "kl_rows", "kl.general_p90", _p90, 4),
        ),
        rows=((("rl",), "RL", (0.24, 0.62, 0.0839)), (("sft",), "Strong SFT", (0.64, 1.43, 0.0932))),
    ),
)


def beside(report: Report) -> list[tuple[str, list[Column], list[tuple[Line, list[Cell]]]]]:
    """The paper's tables of which two rows at least were measured: title, columns, rows of published and own values."""
    arms = {arm.name: arm for arm in report.trained}
    ours = report.kept == "em" and "squad" not in report.signatures
    shown = []
    for table in TABLES:
        measured = [next((name for name in names if name in arms), "") for names, *_ in table.rows]
        kept = [at for at, figure in enumerate(table.figures) if ours or not figure.cmrc]
        if not report.paper or table.task not in ("", report.paper) or sum(map(bool, measured)) < 2 or not kept:
            continue
        figures = [table.figures[at] for at in kept]
        columns = [
            Column(head=head, group=figure.head, read=figure.read, better=0, digits=figure.digits)
            for figure in figures
            for head in ("published", "ours")
        ]
        rows = []
        for name, (_, label, published) in zip(measured, table.rows, strict=True):
            cells = []
            for figure, value in zip(figures, (published[at] for at in kept), strict=True):
                cells += [Cell(text=_column(figure).show(value)), _own(figure, arms.get(name), report.base)]
            rows.append((Line(name=name, label=label), cells))
        shown.append((table.title, columns, rows))
    return shown


def _column(figure: Figure) -> Column:
    return Column(head=figure.head, group="", read=figure.read, better=0, digits=figure.digits)


def _own(figure: Figure, arm: Arm | None, base: Arm) -> Cell:
    column = _column(figure)
    value = figure.read(arm, base) if arm else None
    spread = arm.spread(figure.metric) if arm else None
    return Cell(
        text=column.show(None if value is None else figure.scale * value),
        spread="" if spread is None else f"±{column.show(figure.scale * spread)}",
    )
