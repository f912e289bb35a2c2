"""The paper's own tables (arXiv 2605.14366), with what was measured here beside each published figure.

Published figures are of Qwen3-4B on real Tibetan; ours are of whatever the report says. Directions can be compared,
figures cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lsemrl.report.columns import DRIFT, DRIFT_P90, JUDGED, KL_P90, Cell, Column
from lsemrl.report.findings import number
from lsemrl.report.records import Arm, Report


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A published table.

    Attributes:
        title: What it shows.
        task: "translation" or "headline"; "" where the paper does not say.
        columns: Headed as the paper has them, with as many digits.
        rows: Names of ours, the first that was measured stands beside the row; the paper's name of it; its figures,
            None where blank.
    """

    title: str
    task: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row's head, as much of an `Arm` as a table shows."""

    name: str
    label: str


_JUDGED = replace(JUDGED, head="judge win, %")
_SIMILARITY = Column("similarity", "", "target.similarity", digits=4)
_GENERAL = (
    Column("CMRC average", "", "general.average", scale=100, digits=2),
    Column("CMRC F1", "", "general.f1", scale=100, digits=2),
)
_DRIFTS = (
    replace(DRIFT, head="mean NLL drift", digits=2),
    replace(DRIFT_P90, head="P90 NLL drift", digits=2),
    replace(KL_P90, head="P90 KL", digits=4),
)
_CMRC = (*_GENERAL, *_DRIFTS)
"""Of CMRC 2018, beside which no other general ability stands."""
TABLES = (
    PaperTable(
        title="Translation",
        task="translation",
        columns=(Column("BLEU-4", "", "target.bleu", digits=4), _SIMILARITY, *_GENERAL, _JUDGED),
        rows=(
            (("cold_start",), "Cold start", (0.3953, 0.5593, None, None, None)),
            (("rl",), "RL", (0.4519, 0.7164, 46.97, 65.79, 33.5)),
            (("sft",), "Strong SFT", (0.6006, 0.8282, 41.82, 62.99, 59.2)),
        ),
    ),
    PaperTable(
        title="Headline generation",
        task="headline",
        columns=(Column("ROUGE-L", "", "target.rouge_l", digits=4), _SIMILARITY, *_GENERAL, _JUDGED),
        rows=(
            (("cold_start",), "Cold start", (0.2204, 0.5774, None, None, None)),
            (("rl",), "RL", (0.2530, 0.6404, 45.10, 65.20, 51.2)),
            (("sft",), "Strong SFT", (0.3095, 0.6499, 44.20, 65.30, 35.1)),
        ),
    ),
    PaperTable(
        title="Reward ablation, translation",
        task="translation",
        columns=(_SIMILARITY,),
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
        columns=(_SIMILARITY,),
        rows=(
            (("headlines_from_rl",), "From translation-RL", (0.5690,)),
            (("headlines_from_sft",), "From translation-SFT", (0.5456,)),
        ),
    ),
    PaperTable(
        title="Drift on CMRC against the base",
        task="",
        columns=_DRIFTS,
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
        kept = [at for at, column in enumerate(table.columns) if ours or column not in _CMRC]
        if not report.paper or table.task not in ("", report.paper) or sum(map(bool, measured)) < 2 or not kept:
            continue
        columns = [table.columns[at] for at in kept]
        rows = []
        for name, (_, label, published) in zip(measured, table.rows, strict=True):
            cells = []
            for column, value in zip(columns, (published[at] for at in kept), strict=True):
                cells += [Cell(text=number(value, column.digits)), _own(column, arms.get(name), report.base)]
            rows.append((Line(name=name, label=label), cells))
        heads = [replace(column, head=head, group=column.head) for column in columns for head in ("published", "ours")]
        shown.append((table.title, heads, rows))
    return shown


def _own(column: Column, arm: Arm | None, base: Arm) -> Cell:
    spread = arm.spread(column.metric) if arm else None
    return Cell(
        text=column.show(column.value(arm, base) if arm else None),
        spread="" if spread is None else f"±{column.show(spread)}",
    )
