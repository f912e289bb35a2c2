"""What is done where a step goes wrong: memory that runs out, rows that give no finite gradient."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from lsemrl.errors import reason_of
from lsemrl.files import append
from lsemrl.modules.gradients import Passed
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy import Policy
from lsemrl.modules.ranks import highest
from lsemrl.types import Sequences, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")


def within_memory(policy: Policy, work: Callable[[], T], halve: Callable[[], str] | None, lower: str) -> T:
    """Do `work`, and if memory runs out do it once more by halves.

    Args:
        policy: Whose gradients are dropped in between.
        work: What can be done again from its beginning.
        halve: Makes it need less, and says how; None where nothing does.
        lower: What the user can lower if that does not help.

    Raises:
        UserError: It did not, or other ranks wait in the middle of a pass through sharded weights, which cannot be
            begun again.
    """
    for again in (halve is not None and not policy.sharded, False):
        try:
            return work()
        except torch.OutOfMemoryError as error:
            reason = reason_of(error, 120)
        # Not inside the handler: what the failed pass holds lives as long as its traceback.
        if halve is None or not again:
            break
        for parameter in policy.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()
        log.warning("memory ran out (%s); trying again, and going on, with %s", reason, halve())
    raise UserError(f"memory ran out ({reason}); lower {lower}, and see docs/scale.md")


@dataclass
class SkippedSteps:
    """Optimizer steps without a finite gradient, which were skipped.

    Attributes:
        count: All of them.
        in_a_row: Those that came last, one after the other.
    """

    count: int = 0
    in_a_row: int = 0

    def add(self, path: Path, rows_of_ranks: Sequence[list[dict[str, Any]]], most: int) -> None:
        """Count a step, and write out the rows it was of.

        Args:
            path: Where they are appended as JSONL.
            rows_of_ranks: See `skipped_rows`; none on a rank that does not write.
            most: So many in a row are too many.

        Raises:
            UserError: There were so many.
        """
        self.count += 1
        self.in_a_row += 1
        if rows_of_ranks:
            append(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for rows in rows_of_ranks for row in rows))
        if self.in_a_row >= most:
            raise UserError(
                f"the gradient was not finite in {self.in_a_row} optimizer steps running "
                f"(optimizer.max_skipped_steps); look at the rows in {str(path)!r}, or lower optimizer.lr"
            )


def unsound(policy: Policy, skipped_in_a_row: int, device: torch.device) -> str | None:
    """Why a policy is none to be saved, told alike on all ranks, which must ask together; None if it is one.

    Args:
        policy: What is trained.
        skipped_in_a_row: Optimizer steps without a finite gradient that it has just had.
        device: Where ranks meet.
    """
    if skipped_in_a_row:
        return f"the last optimizer steps ({skipped_in_a_row}) had no finite gradient"
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in policy.trained().values())
    if highest(any(not bool(weight.isfinite().all()) for weight in own), device):
        return "the trained weights are not finite"
    return None


def skipped_rows(passed: Sequence[Passed], policy: Policy, about: dict[str, int]) -> list[dict[str, str | int | bool]]:
    """What a rank writes of a step that was skipped: the rows whose loss is not finite, else all of them."""
    finite = not any(each.bad() for each in passed)
    return [
        {**about, "of": each.part.of, "loss_is_finite": finite, **row}
        for each in passed
        for row in texts(each.part.whole, each.batches if finite else each.bad(), policy)
    ]


def texts(whole: Sequences, batches: Sequence[MicroBatch], policy: Policy) -> list[dict[str, str]]:
    """Prompt and completion of every row of `batches`, which count those of `whole`, special tokens included."""

    def decode(ids: torch.Tensor) -> str:
        return str(policy.tokenizer.decode(ids))

    rows = [row for batch in batches for row in batch.rows.tolist()]
    prompts = [int(whole.prompt_of_N[row]) for row in rows]
    return [
        {
            "prompt": decode(whole.prompt_ids_BP[prompt][whole.prompt_mask_BP[prompt]]),
            "completion": decode(whole.completion_ids_NT[row][whole.completion_mask_NT[row]]),
        }
        for row, prompt in zip(rows, prompts, strict=True)
    ]
