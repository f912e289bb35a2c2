"""Short runs under a real Trainer, to be stopped, resumed and disturbed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sft import SFT
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.rewards import Chrf

TOKENS = 4
"""The most that an answer has."""


def policy_settings(model: str, **settings: Any) -> PolicySettings:
    return PolicySettings(model=model, lora=LoraSettings(rank=4, alpha=8.0, dropout=0.2), **settings)


def grpo(model: str, anchor: AnchorSettings | None = None, **settings: Any) -> GRPO:
    torch.manual_seed(5)
    return GRPO(
        anchor=anchor,
        rewards={"chrf": Chrf()},
        policy=policy_settings(model, **settings),
        sampling=Sampling(num_generations=4, temperature=1.0, max_new_tokens=TOKENS),
        optimizer=OptimizerSettings(lr=1e-2),
        metrics=MetricSettings(names=("chrf",)),
        num_iterations=2,
        samples_every=1,
    )


def sft(model: str, anchor: AnchorSettings | None = None, **settings: Any) -> SFT:
    torch.manual_seed(5)
    return SFT(
        anchor=anchor,
        policy=policy_settings(model, **settings),
        optimizer=OptimizerSettings(lr=1e-2),
        metrics=MetricSettings(names=("chrf",)),
        max_new_tokens=TOKENS,
    )


class At(Callback):
    """Does something after a rollout step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if module.rollout_step == self.step:
            self.act()


class Stop(Exception):
    pass


def stop() -> None:
    raise Stop


def run(
    module: PolicyModule,
    folder: Path,
    *callbacks: Callback,
    resume: str = "auto",
    rows: int = 16,
    epochs: int = 2,
    precision: Any = "32-true",
    data: TranslationData | None = None,
    **keep: Any,
) -> PolicyModule:
    """Two epochs of four batches, validated after every third."""
    torch.manual_seed(11)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        logger=MetricsLog(str(folder)),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=min(3, (rows if data is None else data.plan.micro.train) // 4),
        callbacks=[Checkpoints(**{"every_n_steps": 3, "monitor": "val/chrf", **keep}, resume=resume), *callbacks],
    )
    data = data or TranslationData(micro=MicroRows(train=rows, validation=4, test=4), batch_size=4)
    trainer.fit(module, datamodule=TrainerData(data))
    return module


def trained(module: PolicyModule) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.policy.trained().items()}


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith(("timing/", "tokens_per_second"))}
            for row in csv.DictReader(file)
        ]
