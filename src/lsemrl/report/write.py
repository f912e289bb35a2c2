"""A report as files, and as a table for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lsemrl.errors import UserError
from lsemrl.files import make_folder, write_bytes, write_text
from lsemrl.foreign import visible
from lsemrl.report import page, plots
from lsemrl.report.columns import TERMINAL, grid, speaking
from lsemrl.report.findings import comparisons, finding
from lsemrl.report.records import Report


def write_report(report: Report, folder: Path, field: str = "") -> Path:
    """Write report.json, and what `write_pages` writes.

    Args:
        report: The report.
        folder: Made where it is missing.
        field: Where the user named it.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        UserError: `folder` cannot be written.
    """
    others = [name for name in ("report.md", "report.html") if (folder / name).exists()]
    if others and not (folder / "report.json").exists():
        raise UserError(f"{field} is {str(folder)!r}, whose {others[0]} is none of lsemrl's; name another folder")
    make_folder(folder, field)
    report.to_json(folder / "report.json")
    return write_pages(report, folder)


def write_pages(report: Report, folder: Path) -> Path:
    """Write report.md, report.html and the plots as PNG to a folder that exists; the path of report.html.

    Raises:
        UserError: `folder` cannot be written.
    """
    figures = plots.draw(report)
    write_text(folder / "report.md", page.markdown(report, list(figures)))
    for name, figure in figures.items():
        write_bytes(folder / f"{name}.png", plots.png(figure))
    images = {name: plots.svg(figure) for name, figure in figures.items()}
    write_text(folder / "report.html", page.html(report, images))
    return folder / "report.html"


def table(report: Report) -> Table:
    """The most telling columns, as many as a terminal of 80 characters has room for."""
    columns, rows = grid(report, speaking(report, TERMINAL))
    shown = Table(
        title=Text(visible(finding(report)), style="bold"),
        title_justify="left",
        caption=Text(visible("\n".join(comparisons(report)))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("arm", no_wrap=True)
    for column in columns:
        shown.add_column(column.head, justify="right")  # a head of several words may take as many lines
    for arm, cells in rows:
        shown.add_row(Text(visible(arm.label)), *(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
    return shown
