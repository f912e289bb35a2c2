"""Data as the Trainer asks for them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, DistributedSampler

from lsemrl.data.base import Data


class TrainerData(LightningDataModule):
    """Rows and batches of `data`, for whichever policy is trained.

    Attributes:
        data: What knows nothing of a trainer.
    """

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def setup(self, stage: str) -> None:
        """Read the rows for the policy in training, and say what became of them."""
        assert self.trainer is not None, "without a trainer, call data.prepare"
        module: Any = self.trainer.lightning_module
        for line in self.data.prepare(module.policy.tokenizer):
            rank_zero_info(line)
        if stage == "fit":
            self.data.train_dataloader()  # refuses a batch of more rows than there are, before weights are read

    def train_dataloader(self) -> Any:
        """Those of the data, here and below."""
        return self.data.train_dataloader()

    def val_dataloader(self) -> Any:
        """The validation rows in order."""
        return self.data.val_dataloader()

    def test_dataloader(self) -> Any:
        """The test rows in order."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """The test rows in order; each rank gets as many batches, for which Lightning does not see here."""
        loader, ranks = self.data.test_dataloader(), self.trainer.world_size if self.trainer else 1
        if ranks == 1 or not isinstance(loader, DataLoader):
            return loader
        return DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            sampler=DistributedSampler(loader.dataset, ranks, self.trainer.global_rank, shuffle=False),  # type: ignore
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            generator=loader.generator,
        )
