"""`lsemrl tax`: measured arms side by side."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console

from lsemrl.report.folders import find_general, find_judgement, find_measurements


def tax(
    folders: list[Path],
    *,
    typed: list[str],
    output: Path,
    against: list[str] | None = None,
    path: list[list[str]] | None = None,
) -> None:
    """Make a report of what lies in folders, and print its table.

    Args:
        folders: Searched for measurement.json, general.json, and the judge.json of rl against sft.
        typed: The command, for whoever wants these numbers again.
        output: Folder for report.json, .md, .html and plots.
        against: Arms that the others are held against beside the base; by default cold_start and rl.
        path: Arms that are one way of training, weakest first; give it twice or more to compare losses at the same
            score.
    """
    measured = find_measurements(folders)
    from lsemrl.report.tax_report import tax_report  # scipy, for which words that cannot be do not wait
    from lsemrl.report.write import table, write_report

    report = tax_report(
        measured,
        command=shlex.join(typed),
        against=against or None,
        judged=find_judgement(folders, measured),
        paths=path or (),
        general=find_general(folders),
    )
    page = write_report(report, output, "--output")
    Console().print(table(report))
    print(page)
