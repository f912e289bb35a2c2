"""Tables of arms against each other, of ways of training at the same score, and of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, stdev

from lsemrl.report.columns import DRIFT, LEARNED_GROUP, LOST, SCORE_COLUMNS, Cell, Column, Rows, interval, named
from lsemrl.report.contrasts import part_of
from lsemrl.report.findings import MISSING, unmeasured
from lsemrl.report.records import KEPT, Report


def differences(report: Report) -> tuple[list[Column], Rows]:
    """What each arm has over another one than the base, with intervals."""
    similarity = Column("similarity", LEARNED_GROUP, "target.similarity", digits=3)
    lost = () if unmeasured(report) else (named(report, LOST),)
    shown: list[Column] = []
    rows: Rows = [(arm, []) for arm in report.trained]
    for other in report.trained:
        for column in (SCORE_COLUMNS[report.score], similarity, *lost, DRIFT):
            found = [report.contrast(arm.name, other.name, column.metric) for arm, _ in rows]
            if not any(found):
                continue
            shown.append(replace(column, group=f"minus {other.label}"))
            for (_, cells), contrast in zip(rows, found, strict=True):
                if contrast:
                    aside = ", ".join(filter(None, (interval(column, contrast), part_of(contrast))))
                    cells.append(Cell(text=column.show(contrast.value, "+"), interval=aside))
                else:
                    cells.append(Cell(text=MISSING))
    return shown, [row for row in rows if any(cell.interval for cell in row[1])]


def same_scores(report: Report) -> tuple[list[Column], Rows]:
    """What the first way of training and each of the others had lost when they scored the same."""
    arms = {arm.name: arm for arm in report.arms}
    of = arms[report.paths[0][-1]].label
    lost = f"{report.general_short} {KEPT[report.kept]} lost by"
    score, own, other, more, share = columns = [
        Column(head, group, scale=100)
        for head, group in (
            ("compared at", "Score"),
            (of, lost),
            ("the other", lost),
            ("lost more", "The other"),
            (f"{of}'s loss in % of it", "The other"),
        )
    ]
    rows: Rows = []
    for each in report.same_scores:
        if not each.scores:
            missing = Cell(text=MISSING)
            rows.append((arms[each.against], [replace(missing, interval=part_of(each)), *[missing] * 4]))
            continue
        losses, against = fmean(each.losses), fmean(each.losses_against)
        cells = [
            Cell(text=column.show(fmean(values)), spread=f"±{column.show(stdev(values))}" if len(values) > 1 else "")
            for column, values in ((score, each.scores), (own, each.losses), (other, each.losses_against))
        ]
        cells[0] = replace(cells[0], interval=part_of(each))
        cells.append(Cell(text=more.show(against - losses, "+"), interval=interval(more, each)))
        cells.append(Cell(text=share.show(losses / against if against > 0 else None)))
        rows.append((arms[each.against], cells))
    return columns, rows


def harness(report: Report) -> tuple[list[Column], Rows]:
    """What lm-evaluation-harness found of each arm, beside the base."""
    keys = list(dict.fromkeys(key for arm in report.trained for key in arm.harness))
    columns = [Column(key, "lm-evaluation-harness", digits=3) for key in keys]
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
                cells.append(
                    Cell(
                        text=column.show(found.after),
                        delta=column.show(found.after - found.before, "+"),
                        interval=", ".join(filter(None, (interval(column, found), part_of(found)))),
                    )
                )
    return columns, rows
