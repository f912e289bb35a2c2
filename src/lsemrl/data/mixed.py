"""Two kinds of data as one: training with replay of general data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, DistributedSampler

from lsemrl.data.base import Data, TaskData
from lsemrl.data.collate import epoch_sampler, train_loader
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReplaySampler(DistributedSampler[int]):
    """Every main row once an epoch, with replay rows between them at an even pace; each rank takes its share of both.

    Indices below `main` are main rows, those from there on replay rows. Of any n indices in sequence, `share` * n are
    replay to within one, so batches of every size keep the share. No replay row comes again before all have come.
    """

    def __init__(self, *, main: int, replay: int, share: float, seed: int) -> None:
        order = epoch_sampler(main, seed)
        super().__init__(
            order.dataset, order.num_replicas, order.rank, shuffle=True, seed=order.seed, drop_last=order.drop_last
        )
        self.main = main
        self.replay = epoch_sampler(replay, seed)
        # In whole numbers, so that length and order agree to the row.
        self.part, self.whole = Fraction(str(share)).as_integer_ratio()

    def __iter__(self) -> Iterator[int]:
        main, replay = super().__iter__(), self._replay()
        for at in itertools.count():
            if (at + 1) * self.part // self.whole > at * self.part // self.whole:
                yield self.main + next(replay)
            elif (row := next(main, None)) is not None:
                yield row
            else:
                return

    def __len__(self) -> int:
        return self.num_samples * self.whole // (self.whole - self.part)

    def _replay(self) -> Iterator[int]:
        for turn in itertools.count():
            self.replay.set_epoch((self.epoch << 16) + turn)
            yield from self.replay


class MixedData(Data):
    """Training rows of two kinds of data; validation and test are those of `main`, and so are batch sizes and seed.

    Replay rows that share a text with what `main` holds out are left out, as main rows are.
    """

    def __init__(self, main: TaskData, replay: TaskData, replay_share: float = 0.3) -> None:
        """Keep the settings; nothing is read before `prepare`.

        Args:
            main: What is to be learned.
            replay: What is not to be forgotten.
            replay_share: Share of the training rows that come from `replay`, in (0, 1).

        Raises:
            UserError: The share is outside (0, 1), or one of the two cannot be mixed.
        """
        if not 0 < replay_share < 1:
            raise UserError(f"replay_share is {replay_share}; give a share in (0, 1), or train on main alone")
        for name, module in (("main", main), ("replay", replay)):
            if not isinstance(module, TaskData):
                raise UserError(
                    f"{name} is {type(module).__name__}, which cannot be mixed; give TranslationData, HeadlineData or "
                    "ComprehensionData"
                )
        self.main, self.replay = main, replay
        self.replay_share = replay_share
        self.batch_size = self.main.batch_size

    def check_files(self) -> None:
        """Those of both."""
        self.main.check_files()
        self.replay.check_files()

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Prepare both for `tokenizer`; once, however often it is called. The replay rows stand behind the main rows.

        Returns:
            A line for each split of both, and one on the mixture; none the second time.

        Raises:
            UserError: Whatever is wrong with the files of either.
        """
        if getattr(self, "tokenizer", None) is tokenizer:
            return []
        lines = [*self.main.prepare(tokenizer), *self.replay.prepare(tokenizer, self.main.held_out)]
        self.tokenizer = tokenizer
        self.train_examples = [*self.main.train_examples, *self.replay.train_examples]
        self.validation_examples, self.test_examples = self.main.validation_examples, self.main.test_examples
        self.report = {**self.main.report, "replay": self.replay.report["train"]}
        mixture = (
            f"mixed/train: {len(self.main.train_examples):,} main rows, and {self.replay_share:.0%} of every batch "
            f"from {len(self.replay.train_examples):,} replay rows"
        )
        return [*lines, mixture]

    def train_dataloader(self) -> DataLoader[Example]:
        """Whole batches of both, in an order of the seed and the epoch."""
        main, replay = len(self.main.train_examples), len(self.replay.train_examples)
        sampler = ReplaySampler(main=main, replay=replay, share=self.replay_share, seed=self.main.loading.seed)
        return train_loader(self.tokenizer, self.train_examples, sampler, self.main.loading)

    def val_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The validation rows of `main`."""
        return self.main.val_dataloader()

    def test_dataloader(self) -> DataLoader[Example] | list[Any]:
        """The test rows of `main`."""
        return self.main.test_dataloader()
