"""What data are asked for, and what those of single tasks share: preparing their rows once, and the loaders.

Nothing here needs Lightning or torch before rows become batches: they take seconds to load, and settings are read, and
refused, before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from lsemrl.data.loading import Loading
from lsemrl.data.prepared import prepare
from lsemrl.data.skipped import SkippedRows
from lsemrl.data.task import Plan
from lsemrl.types import Example

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase


class Data(ABC):
    """Rows to learn from and to be scored by, as batches."""

    batch_size: int
    """Rows in a training batch of one process."""
    tokenizer: PreTrainedTokenizerBase
    """Of the policy; this and what follows is set by `prepare`."""
    train_examples: list[Example]
    """Rows to learn from."""
    validation_examples: list[Example]
    """Rows to watch a run by."""
    test_examples: list[Example]
    """Rows to report."""
    report: dict[str, dict[str, int]]
    """For each split, how many rows were kept, left out and cut (see `prepared.Prepared`)."""

    @property
    def ordered_by(self) -> dict[str, Any]:
        """What the order of the training rows in an epoch follows from beside the rows, by the fields that say it."""
        return {}

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Read the rows and write their prompts for `tokenizer`; once, however often it is called.

        Returns:
            What became of the rows, in a line each; none the second time.

        Raises:
            UserError: Whatever is wrong with the files, named by file and line.
        """

    @abstractmethod
    def check_files(self) -> None:
        """Refuse files that are not there, without reading those that are.

        Raises:
            UserError: The first, or one whose format is unknown.
        """

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Example]:
        """Whole batches in an order of the seed and the epoch."""

    @abstractmethod
    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The validation rows in order."""

    @abstractmethod
    def test_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The test rows in order."""


class TaskData(Data):
    """Rows of one task; what they are is in its `Plan`."""

    held_out: frozenset[str]
    """Content keys of the validation and test rows."""

    def __init__(self, plan: Plan, loading: Loading) -> None:
        self.plan, self.loading = plan, loading
        self.batch_size = loading.batch_size

    @property
    def ordered_by(self) -> dict[str, Any]:
        """See `Data`."""
        return {"data.seed": self.loading.seed}

    def check_files(self) -> None:
        """See `Data`."""
        self.plan.check_files()

    def prepare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        elsewhere: Set[str] = frozenset(),
        *,
        trains: bool = True,
        lists: SkippedRows | None = None,
    ) -> list[str]:
        """Read the rows and write their prompts for `tokenizer`; once, however often it is called.

        Args:
            tokenizer: The policy's.
            elsewhere: See `prepared.prepare`.
            trains: Likewise.
            lists: Likewise.

        Returns:
            A line for each split; none the second time.

        Raises:
            UserError: Whatever is wrong with the files, named by file and line.
        """
        if getattr(self, "tokenizer", None) is tokenizer:
            return []
        prepared = prepare(self.plan, tokenizer, elsewhere, trains=trains, lists=lists)
        self.tokenizer, self.report = tokenizer, prepared.report
        self.train_examples = prepared.train
        self.validation_examples, self.test_examples = prepared.validation, prepared.test
        self.held_out = prepared.held_out
        return prepared.lines

    def train_dataloader(self) -> DataLoader[Example]:
        """Whole batches in an order of the seed and the epoch."""
        from lsemrl.data.loaders import train_loader
        from lsemrl.data.samplers import epoch_sampler

        sampler = epoch_sampler(len(self.train_examples), self.loading.seed)
        return train_loader(self.tokenizer, self.train_examples, sampler, self.loading)

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The validation rows in order."""
        return self._in_order(self.validation_examples)

    def test_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The test rows in order."""
        return self._in_order(self.test_examples)

    def _in_order(self, examples: list[Example]) -> DataLoader[Example] | list[Any]:
        from lsemrl.data.loaders import eval_loader

        return eval_loader(self.tokenizer, examples, self.loading)
