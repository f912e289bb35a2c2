"""Loaders of examples in an order."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lsemrl.data.collate import encode
from lsemrl.data.loading import Loading
from lsemrl.errors import UserError, reason_of
from lsemrl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def train_loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], sampler: Sampler[int], loading: Loading
) -> DataLoader[Any]:
    """Whole batches in the order of `sampler`.

    Raises:
        UserError: There are fewer rows than a batch needs.
    """
    rows = len(cast("Sequence[int]", sampler))
    if rows < loading.batch_size:
        raise UserError(
            f"batch_size is {loading.batch_size}, but there are {rows} training rows; lower it, or give more rows"
        )
    return _loader(tokenizer, examples, loading, sampler=sampler, batch_size=loading.batch_size, drop_last=True)


def eval_loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], loading: Loading
) -> DataLoader[Any] | list[Any]:
    """Every row in order; an empty list, which Lightning passes over, if there are none."""
    return _loader(tokenizer, examples, loading, batch_size=loading.eval_batch_size) if examples else []


def _loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], loading: Loading, **settings: Any
) -> DataLoader[Any]:
    return ResumableLoader(
        cast("Dataset[Example]", examples),
        collate_fn=functools.partial(encode, tokenizer),
        num_workers=loading.num_workers,
        # Of its own, so that making an iterator draws nothing from the global stream that sampling uses.
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


class ResumableLoader(DataLoader[Any]):
    """A loader that a checkpoint puts back where it was in the middle of an epoch; Lightning asks for its state."""

    given = 0
    skipped = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given, self.skipped = self.skipped, 0
        died_at = -1
        while True:
            try:
                batches = super().__iter__()
                if self.num_workers:
                    # torch would tell of a worker's death in the middle of whatever goes on then, a training step for
                    # one; without its handler it finds out when it asks for the next batch.
                    with contextlib.suppress(ValueError):  # not the main thread
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for batch in itertools.islice(batches, self.given, None):
                    self.given += 1
                    yield batch
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # The order is the sampler's, so that a second set of workers goes on where the first one died.
                told = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
                if not told or self.given == died_at:
                    raise
                died_at = self.given
                log.warning("a data worker died (%s); starting the workers again", reason_of(error, 150))

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch have been given; none after the last."""
        return {"batches": self.given % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after those batches."""
        self.skipped = state["batches"]
