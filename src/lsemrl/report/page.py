"""The pages of a report: Markdown, and HTML that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lsemrl.foreign import code, fenced, page_template
from lsemrl.foreign import markdown as plain
from lsemrl.report.colours import colours
from lsemrl.report.columns import LEARNED, LOSSES, MOVED, SUMMARY, Cell, Column, grid, speaking
from lsemrl.report.compared import differences, harness, same_scores
from lsemrl.report.findings import MISSING, comparisons, finding, hacking, notes, number, unmeasured
from lsemrl.report.plots import smoothing
from lsemrl.report.published import Line, beside
from lsemrl.report.records import Alarm, Arm, Report, Sample

_ABRIDGED = 90
_TABLES = (("What each arm learned", LEARNED), ("What each arm lost", LOSSES), ("How far each arm moved", MOVED))
_DIFFERENCES = "Arms against each other"
_HARNESS = "General ability by lm-evaluation-harness"
_SAME = "What was lost at the same score"
_BESIDE = "Beside the paper"
Table = tuple[str, list[Column], Sequence[tuple[Arm | Line, list[Cell]]]]


def _sources(report: Report) -> list[tuple[Sample, list[Sample | None]]]:
    """Each source once with its reference, beside what every arm said."""
    said = [{(sample.source, sample.reference): sample for sample in arm.samples} for arm in report.arms]
    return [
        (next(by[key] for by in said if key in by), [by.get(key) for by in said])
        for key in dict.fromkeys(key for by in said for key in by)
    ]


def _tables(report: Report) -> list[Table]:
    tables: list[Table] = [("The arms", *grid(report, speaking(report, SUMMARY)))]
    tables += [table for title, columns in _TABLES if (table := (title, *grid(report, columns)))[1]]
    if any(arm.harness for arm in report.arms):
        tables.append((_HARNESS, *harness(report)))
    if report.same_scores and not unmeasured(report):
        tables.append((_SAME, *same_scores(report)))
    against = differences(report)
    return [*tables, (_DIFFERENCES, *against)] if against[1] else tables


def language(text: str) -> str:
    """The language tag that makes a browser choose the right font: by the script of most letters."""
    tibetan, han = len(re.findall(r"[\u0f40-\u0fbc]", text)), len(re.findall(r"[\u4e00-\u9fff]", text))
    return "und" if not tibetan + han else "bo" if tibetan >= han else "zh"


def _spelt(name: str, qa: str) -> str:
    """The name of general ability for prose: its QA as `qa`."""
    return f"{name.removesuffix('QA')}{qa}" if name.endswith(" QA") else name


def _shorter(text: str) -> str:
    return text if len(text) <= _ABRIDGED else text[:_ABRIDGED] + "…"


def _abridged(sample: Sample) -> Sample:
    """For a line of its own; the run's files have it whole."""
    return replace(
        sample, source=_shorter(sample.source), reference=_shorter(sample.reference), output=_shorter(sample.output)
    )


def _said(sample: Sample | None) -> str:
    """An output and its rewards in Markdown."""
    if sample is None:
        return MISSING
    rewards = f" ({plain(', '.join(_rewards(sample)))})" if sample.rewards else ""
    return f"{plain(sample.output) or '(empty)'}{rewards}"


def _rewards(sample: Sample) -> list[str]:
    return [f"{name} {number(value, 2)}" for name, value in sample.rewards.items()]


def _when(alarm: Alarm) -> str:
    seed = "" if alarm.seed is None else f" of seed {alarm.seed}"
    return f"alarm after {alarm.step + 1} rollout steps{seed}"


def html(report: Report, images: dict[str, str]) -> str:
    """One page that needs no other file: `images` are data URIs by the name of the plot."""
    template = page_template(
        Path(__file__).with_name("report.html.jinja"),
        language=language,
        shorter=_shorter,
        rewards=_rewards,
        when=_when,
        brief=_abridged,
    )
    return template.render(
        report=report,
        finding=finding(report),
        comparisons=comparisons(report),
        tables=_tables(report),
        published=beside(report),
        published_words=_beside_words(report),
        asked=_spelt(report.general_name, "question answering"),
        asked_long=_spelt(report.general_name, "reading comprehension"),
        alarmed=[arm for arm in report.trained if arm.alarms],
        curves=[(arm, hacking(arm), smoothing(len(arm.curve))) for arm in report.trained if arm.curve],
        sources=_sources(report),
        notes=notes(report),
        images=images,
        colours=colours(report),
        missing=MISSING,
        abridged=_ABRIDGED,
    )


def markdown(report: Report, figures: list[str]) -> str:
    """The same report for a terminal or a repository, the plots as files beside it."""
    lines = [f"# {plain(finding(report))}.", ""]
    lines += [f"{plain(sentence)}\n" for sentence in comparisons(report)]
    lines += [plain(f"{report.task}, {report.seeds}, {report.created}, lsemrl {report.lsemrl}"), ""]
    for title, columns, rows in _tables(report):
        lines += [f"## {title}", "", *_markdown_table(_with_groups(columns, title), rows), ""]
    lines += [f"- {plain(note)}" for note in notes(report)]
    if tables := beside(report):
        lines += ["", f"## {_BESIDE}", "", plain(_beside_words(report)), ""]
    for title, columns, beside_rows in tables:
        lines += [f"### {title}", "", *_markdown_table(_with_groups(columns, _BESIDE), beside_rows), ""]
    lines += ["", *(f"{plain(f'{arm.label}: {words}')}\n" for arm in report.trained if (words := hacking(arm)))]
    for arm in report.trained:
        for alarm in arm.alarms:
            lines += [f"{plain(f'{arm.label}, {_when(alarm)}: {alarm.sentence}')}", ""]
            brief = map(_abridged, alarm.samples)
            lines += [
                f"- {plain(one.source)}, answered {_said(one)}; reference {plain(one.reference)}" for one in brief
            ]
            lines.append("")
    lines += [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in figures]
    if sources := _sources(report):
        heads = ["source", "reference", *(plain(arm.label) for arm in report.arms)]
        lines += ["## Outputs side by side", "", _row(heads), "|" + " --- |" * len(heads)]
        for first, samples in sources:
            lines.append(_row([plain(_shorter(first.source)), plain(first.reference), *map(_said, samples)]))
    lines += ["", "## How to get these numbers again", "", fenced(str(report.command)), ""]
    lines += [f"- {plain(arm.label)}: {plain(arm.trained_by)}" for arm in report.arms if arm.trained_by]
    lines += [f"- {plain(metric)}: {code(str(signature))}" for metric, signature in report.signatures.items()]
    rest = report.setup | report.machine | report.versions
    lines += [f"- {plain(key)}: {plain(str(value))}" for key, value in rest.items()]
    return "\n".join(lines) + "\n"


def _with_groups(columns: Sequence[Column], title: str) -> list[Column]:
    """With the heading above in their own, where columns mean nothing without it and a table has one line of them."""
    whole = {_SAME: "{0.group} {0.head}", _DIFFERENCES: "{0.head} {0.group}", _BESIDE: "{0.group}, {0.head}"}
    return [replace(one, head=whole.get(title, "{0.head}").format(one)) for one in columns]


def _beside_words(report: Report) -> str:
    """What the figures beside each other are of."""
    return (
        f"Published: arXiv 2605.14366, Qwen3-4B on real Tibetan. Ours: {report.setup.get('base model', 'see below')}, "
        f"{report.task}. Models and data differ, so directions can be compared and figures cannot."
    )


def _markdown_table(columns: list[Column], rows: Sequence[tuple[Arm | Line, list[Cell]]]) -> Iterator[str]:
    def show(cell: Cell) -> str:
        return (replace(cell, text=f"**{cell.text}**") if cell.best else cell).line

    yield _row(["arm", *(plain(column.head) for column in columns)])
    yield "| --- |" + " ---: |" * len(columns)
    for arm, cells in rows:
        yield _row([plain(arm.label), *map(show, cells)])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
