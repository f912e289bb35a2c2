"""metrics.csv: a row for whatever is logged at a step, written at once, and taken back to a checkpoint.

The same rows can go to TensorBoard too.
"""

from __future__ import annotations

import csv
import io
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lsemrl.files import append, make_folder, set_aside, told, write_text
from lsemrl.modules.event_log import EventLog
from lsemrl.modules.ranks import averages
from lsemrl.runs import METRICS

log = logging.getLogger(__name__)

_STEP = "step"


class MetricsLog(Logger):
    """Writes metrics.csv in the folder of a run.

    Lightning's own CSVLogger begins a file by deleting the one that is there, and keeps rows back until many have come.
    """

    def __init__(self, folder: str | None = None, *, events: bool = False) -> None:
        """
        Args:
            folder: The run's; None where it is to be set before anything is logged.
            events: Whether TensorBoard's events are written beside the rows.
        """
        super().__init__()
        self.folder = None if folder is None else Path(folder)
        self._events: EventLog | None = None
        self._with_events = events
        self._resumed_at: int | None = None
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Nothing: the folder says it all."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder says it all."""
        return ""

    @property
    def path(self) -> Path:
        """The file."""
        assert self.folder is not None
        return self.folder / METRICS

    @property
    def save_dir(self) -> str | None:
        """The run's folder."""
        return None if self.folder is None else str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsLog:
        """Itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Show the settings of a run in TensorBoard; config.yaml has them too.

        Raises:
            UserError: The file cannot be written to.
        """
        if events := self._event_log():
            events.append_settings(params if isinstance(params, dict) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row; a metric that is new gets a column.

        Raises:
            UserError: A file cannot be written to.
        """
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row[_STEP] = step
        if self._columns is None:
            self._columns = self._read()[0]
        if row.keys() <= set(self._columns):
            append(self.path, _text(self._columns, [row]))
        else:
            self._write(sorted({*self._columns, *row}), [*self._read()[1], row])
        if events := self._event_log():
            events.append(metrics, step or 0)

    def rows(self) -> list[dict[str, float]]:
        """What has been logged so far, in order; of each row what it has a number of."""
        return [{name: float(cell) for name, cell in row.items() if cell not in ("", None)} for row in self._read()[1]]

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Show Markdown in TensorBoard.

        Raises:
            UserError: The file cannot be written to.
        """
        if events := self._event_log():
            events.append_text(name, text, step)

    def _event_log(self) -> EventLog | None:
        if self._with_events and self._events is None:
            self._events = EventLog(self.path.parent, self._resumed_at)
        return self._events

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged at `step` or later."""
        self._resumed_at = step
        if step and not self.path.exists():
            log.warning("%s is gone: it is begun again", self.path)
        columns, rows = self._read()
        self._write(columns, [row for row in rows if not row[_STEP] or int(row[_STEP]) < step])

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """What the file holds, after it has been mended.

        A last row that a kill cut short is dropped; where anything else cannot be read, the file is set aside and
        another begun with what can.
        """
        if not self.path.is_file():
            return [], []
        with told(self.path):
            *lines, torn = self.path.read_bytes().decode("utf-8", errors="replace").split("\n")
        columns, *cells = map(_cells, lines or [""])
        if _STEP not in columns:
            columns, cells = [], [columns, *cells] if lines else []
        rows = [dict(zip(columns, row, strict=True)) for row in cells if len(row) == len(columns)]
        rows = [row for row in rows if not row[_STEP] or row[_STEP].isdecimal()]
        damaged = len(rows) < len(cells) or not (torn == "" or _cells(torn))
        if damaged:
            with told(self.path):
                kept = set_aside(self.path)
            log.warning("%s cannot be read whole: kept as %s, and begun again with %d rows", self.path, kept, len(rows))
        elif torn:
            log.warning("%s ends in the middle of a row, which is left out", self.path)
        if damaged or torn:
            self._write(columns, rows)
        return columns, rows

    def _write(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        make_folder(self.path.parent)
        write_text(self.path, _text(columns, rows, header=True) if columns else "")
        self._columns = columns


def show_text(module: Any, name: str, text: str, step: int) -> None:
    """Show Markdown beside the numbers of a step, where the run's own log shows any."""
    for logger in module.trainer.loggers:
        if isinstance(logger, MetricsLog):
            logger.log_text(name, text, step)


def log_row(
    module: LightningModule, metrics: Mapping[str, Any], step: int, shown: Sequence[str] = (), *, due: bool = True
) -> None:
    """Average metrics over ranks, show them, and write a row.

    Not by Lightning's own way: it would write the row only after a checkpoint was, reduce every number alone, and take
    a fifth of a small step for it. Callbacks find them in `trainer.callback_metrics` all the same.

    Args:
        module: Whose Trainer has the loggers.
        metrics: Of this rank; all ranks must log the same ones.
        step: The row's.
        shown: Those that appear in the progress bar.
        due: Whether the row is to be written.
    """
    values = averages({name: float(value) for name, value in metrics.items()}, module.device)
    for name in filter(values.__contains__, shown):
        module.log(name, values[name], prog_bar=True, logger=False, batch_size=1)
    module.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    if due and not module.trainer.sanity_checking:
        for logger in module.trainer.loggers:
            logger.log_metrics(values, step)


def _cells(line: str) -> list[str]:
    """The cells of a line; none if it is not as it was written."""
    if "\0" in line or "\N{REPLACEMENT CHARACTER}" in line:
        return []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _text(columns: list[str], rows: list[dict[str, Any]], *, header: bool = False) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns)
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()
