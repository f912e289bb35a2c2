"""metrics.csv: a row for whatever is logged at a step, written at once, and taken back to a checkpoint."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lsemrl.types import UserError

_STEP = "step"


class MetricsLog(Logger):
    """Writes metrics.csv in the folder of a run.

    Lightning's own CSVLogger begins a file by deleting the one that is there, and keeps rows back until many have come.
    """

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: The run's.
        """
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
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
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsLog:
        """Itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row; a metric that is new gets a column.

        Raises:
            UserError: The file cannot be written to.
        """
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row[_STEP] = step
        try:
            if self._columns is None:
                self._columns = self._read()[0]
            if not row.keys() <= set(self._columns):
                self._write(sorted({*self._columns, *row}), [*self._read()[1], row])
            else:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise UserError(
                f"{str(self.path)!r} cannot be written to ({error.strerror}); make room, and run the same command "
                "again: it goes on from the last checkpoint"
            ) from error

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged at `step` or later, and a last row that a kill cut short."""
        columns, rows = self._read()
        self._write(columns, [row for row in rows if int(row[_STEP]) < step])

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        if not self.path.is_file():
            return [], []
        with self.path.open(newline="", encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
        table = csv.DictReader(whole)
        return list(table.fieldnames or ()), list(table)

    def _write(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}")
        with part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            if columns:
                table.writeheader()
            table.writerows(rows)
        os.replace(part, self.path)
        self._columns = columns
