"""`lsemrl report`: the pages of a report, written again."""

from __future__ import annotations

from pathlib import Path

from lsemrl.report.records import Report
from lsemrl.report.write import write_pages


def report(report: Path) -> None:
    """Render a report beside its JSON.

    Args:
        report: A report.json.
    """
    print(write_pages(Report.from_json(report), report.parent))
