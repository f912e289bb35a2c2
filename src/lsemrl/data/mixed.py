"""Several kinds of data as one: replay of general data, or files of one task by share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lsemrl.data.base import Data, TaskData
from lsemrl.data.skipped import SkippedRows
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

REPLAY = "replay"
"""What reports call the rows that are not main; the second of them replay_2."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Rows that take a share of every batch."""

    data: TaskData
    """The rows: of any task, from any file."""
    share: float
    """Share of the training rows, in (0, 1)."""


class MixedData(Data):
    """Training rows of several kinds of data; validation and test are those of `main`, and so are batch sizes and seed.

    Other rows that share a text with what `main` holds out are left out, as main rows are.
    """

    def __init__(
        self, main: TaskData, replay: TaskData, replay_share: float = 0.3, more: list[Shared] | None = None
    ) -> None:
        """Keep the settings; nothing is read before `prepare`.

        Args:
            main: What is to be learned.
            replay: What is not to be forgotten, or rows for the same from another file.
            replay_share: Share of the training rows that come from `replay`, in (0, 1).
            more: Others, with a share each.

        Raises:
            UserError: The shares leave nothing for `main`, or one of the data cannot be mixed.
        """
        self.others = [Shared(data=replay, share=replay_share), *(more or [])]
        self.shares = shares = {
            ("replay_share" if at == 0 else f"more.{at - 1}.share"): one.share for at, one in enumerate(self.others)
        }
        for name, share in shares.items():
            if not 0 < share < 1:
                raise UserError(f"{name} is {share}; give a share in (0, 1), or train on main alone")
        if sum(shares.values()) >= 1:
            raise UserError(
                f"{' and '.join(shares)} come to {sum(shares.values()):g}; lower them, to leave some for main"
            )
        modules = {"main": main, "replay": replay} | {f"more.{at}.data": one.data for at, one in enumerate(more or [])}
        for name, module in modules.items():
            if not isinstance(module, TaskData):
                raise UserError(
                    f"{name} is {type(module).__name__}, which cannot be mixed; give data of one task, such as "
                    "TranslationData or InstructionData"
                )
        self.main, self.replay = main, replay
        self.batch_size = self.main.batch_size

    @property
    def ordered_by(self) -> dict[str, Any]:
        """See `Data`."""
        shares = {f"data.{name}": share for name, share in self.shares.items()}
        return {"data.main.seed": self.main.loading.seed, **shares}

    def check_files(self) -> None:
        """Those of all."""
        for data in (self.main, *(one.data for one in self.others)):
            data.check_files()

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Prepare all for `tokenizer`; once, however often it is called. Other rows stand behind the main rows.

        Returns:
            A line for each split of each, and one on the mixture; none the second time.

        Raises:
            UserError: Whatever is wrong with the files of any.
        """
        if getattr(self, "tokenizer", None) is tokenizer:
            return []
        lists = SkippedRows()
        lines = self.main.prepare(tokenizer, lists=lists)
        self.train_examples, self.report = [*self.main.train_examples], {**self.main.report}
        told = []
        for at, one in enumerate(self.others):
            lines += one.data.prepare(tokenizer, self.main.held_out, lists=lists)
            rows = one.data.train_examples
            self.train_examples += rows
            self.report[f"{REPLAY}_{at + 1}" if at else REPLAY] = one.data.report["train"]
            told.append(f"{one.share:.0%} of every batch from {len(rows):,} replay rows")
        self.tokenizer = tokenizer
        self.validation_examples, self.test_examples = self.main.validation_examples, self.main.test_examples
        mixture = f"mixed/train: {len(self.main.train_examples):,} main rows, and {', '.join(told)}"
        return [*lines, mixture]

    def train_dataloader(self) -> DataLoader[Example]:
        """Whole batches of all, in an order of the seed and the epoch."""
        from lsemrl.data.loaders import train_loader
        from lsemrl.data.samplers import ReplaySampler

        others = [(len(one.data.train_examples), one.share) for one in self.others]
        sampler = ReplaySampler(main=len(self.main.train_examples), others=others, seed=self.main.loading.seed)
        return train_loader(self.tokenizer, self.train_examples, sampler, self.main.loading)

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The validation rows of `main`."""
        return self.main.val_dataloader()

    def test_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The test rows of `main`."""
        return self.main.test_dataloader()
