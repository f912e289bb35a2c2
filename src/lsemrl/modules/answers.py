"""Outputs for held-out prompts: gathered from all ranks in the order of the rows, and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lsemrl.files import make_folder, write_lines
from lsemrl.modules.ranks import every_rank
from lsemrl.runs import PREDICTIONS
from lsemrl.types import Completion


def of_all_ranks(own: Sequence[Completion], rows: int) -> list[Completion]:
    """The outputs of all ranks in the order of the rows; all must ask.

    Args:
        own: This rank's.
        rows: How many there are over all ranks.
    """
    # Rows were dealt out in turn, and the first dealt again to ranks that would have had fewer.
    return [completion for turn in zip(*every_rank(own), strict=True) for completion in turn][:rows]


def write_predictions(folder: Path, completions: Sequence[Completion]) -> Path:
    """Write what each row was answered to predictions.jsonl in `folder`, and say where that is.

    A line holds the row's id, source and references, the output, and whether it ended rather than was cut.

    Raises:
        UserError: It cannot be written.
    """
    rows = [
        {
            "id": row.id,
            "source": row.source,
            "output": completion.text,
            "ended": completion.ended,
            "references": row.references,
        }
        for completion in completions
        for row in (completion.example,)
    ]
    make_folder(folder)
    path = folder / PREDICTIONS
    write_lines(path, rows)
    return path
