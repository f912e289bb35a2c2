"""The rim that GRPO and SFT share: reading weights, optimizers, evaluation, checkpoints of what is trained.

What a step of training does is in `grpo` and `sft`; nothing here decides anything about learning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed import all_reduce
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lsemrl.evaluation.scorer import MetricSettings, Scorer
from lsemrl.modules.losses import WindowCounts
from lsemrl.modules.optimization import OptimizerSettings, clipped_step, make_optimizer
from lsemrl.modules.packing import MicroBatch, micro_batches
from lsemrl.modules.policy import Policy, PolicySettings
from lsemrl.modules.sampler import Sampling, sample
from lsemrl.types import Completion, PromptBatch, Sequences, UserError


class PolicyModule(LightningModule):
    """A policy under manual optimization, scored greedily on held-out prompts.

    Two clocks run: `rollout_step` counts training batches, Lightning's `global_step` counts optimizer steps.
    """

    def __init__(
        self,
        policy: PolicySettings,
        optimizer: OptimizerSettings,
        metrics: MetricSettings,
        max_new_tokens: int,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__()
        if micro_batch_tokens < 1:
            raise UserError(f"model.micro_batch_tokens is {micro_batch_tokens}; it must be at least 1")
        self.micro_batch_tokens = micro_batch_tokens
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds what is trained; the rest comes from the model's own files
        self.policy = Policy(policy)
        self.optimizer = optimizer
        self.scorer = Scorer(metrics)
        self.greedy = Sampling(num_generations=1, temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
        self.rollout_step = 0
        self.folder = Path()  # where this run writes, from `setup` on
        self._scored: list[Completion] = []
        self._rng_state: torch.Tensor | None = None

    def configure_model(self) -> None:
        """Read the weights once everything else has been checked."""
        self.policy.load()

    def setup(self, stage: str) -> None:
        """Settle where this run writes: all ranks must ask at once, as the Trainer has the first tell the others."""
        self.folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def updates_per_batch(self) -> int:
        """Optimizer steps that one training batch takes."""
        return 1

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule over the optimizer steps that this run will take."""
        # Not from the Trainer's own loader: made this early, it would never be told where a checkpoint left off.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        share = self.trainer.limit_train_batches
        batches = min(batches, share) if isinstance(share, int) else int(batches * (share or 1.0))
        epochs = math.inf if self.trainer.max_epochs in (None, -1) else self.trainer.max_epochs
        limit = math.inf if self.trainer.max_steps == -1 else self.trainer.max_steps
        steps = min(batches * epochs * self.updates_per_batch(), limit)
        if math.isinf(steps):
            raise UserError("the run has no end: set trainer.max_epochs, or trainer.max_steps (in optimizer steps)")
        optimizer, schedule = make_optimizer(self.policy.parameters(), self.optimizer, int(steps))
        return [optimizer], [schedule]

    def micro_batches(self, whole: Sequences, rows: torch.Tensor) -> list[MicroBatch]:
        """Completions as they go through the policy."""
        return micro_batches(whole, rows, self.micro_batch_tokens, share=self.policy.shares_prompts)

    def window_counts(self, mask_NT: torch.Tensor) -> WindowCounts:
        """Rows and active tokens behind one optimizer step, over all ranks."""
        own = torch.tensor([mask_NT.shape[0], int(mask_NT.sum())], device=self.device)
        rows, tokens = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        return WindowCounts(rows=rows, tokens=tokens)

    def backward_window(self, batches: Sequence[MicroBatch], loss_of: Callable[[MicroBatch], torch.Tensor]) -> None:
        """Backward of this rank's share of a window's loss, one micro-batch after the other.

        Ranks deal their rows into micro-batches on their own and may have unlike numbers of them. So DDP, which would
        have gradients meet in every backward pass, is told not to; they meet in `apply_gradients`.
        """
        wrapped = self.trainer.strategy.model
        apart: AbstractContextManager[Any]
        if isinstance(wrapped, DistributedDataParallel):
            apart, scale = wrapped.no_sync(), 1
        else:  # strategies that shard average over ranks where we want the sum
            apart, scale = nullcontext(), self.trainer.world_size
        with apart:
            for batch in batches:
                self.manual_backward(loss_of(batch) * scale)

    def apply_gradients(self) -> torch.Tensor:
        """One clipped optimizer step on the sum of all ranks' gradients; returns its norm before clipping."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LRScheduler)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
            for work in [all_reduce(gradient, async_op=True) for gradient in gradients]:
                work.wait()
        return clipped_step(optimizer, schedule, self.optimizer.max_grad_norm)

    def rollout_seed(self) -> int:
        """A seed of its own for every rank and rollout step, so that a resumed run draws what it would have drawn."""
        return (torch.initial_seed() * 1_000_003 + self.rollout_step * 1009 + self.global_rank) % 2**63

    def say(self, line: str) -> None:
        """Tell the user something once, whatever the number of ranks."""
        rank_zero_info(line)

    def log_step(self, metrics: dict[str, Any], *shown: str) -> None:
        """Log a training batch under both clocks; the metrics named in `shown` appear in the progress bar too."""
        clocks = {"rollout_step": float(self.rollout_step), "optimizer_step": float(self.global_step)}
        for name, value in {**metrics, **clocks}.items():
            self.log(name, value, prog_bar=name in shown, sync_dist=True, batch_size=1)

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; scored at the end of the epoch."""
        self._scored += sample(self.policy, prompts, self.greedy, seed=0).completions

    def on_validation_epoch_end(self) -> None:
        """Log every metric as val/<metric>."""
        self._log_scores("val")

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; scored at the end of the epoch."""
        self.validation_step(prompts, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log every metric as test/<metric>."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        completions, self._scored = self._scored, []
        for name, value in self.scorer(completions).items():
            self.log(f"{stage}/{name}", value, sync_dist=True)

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; written at the end of the epoch."""
        self.validation_step(prompts, batch_idx)

    def on_predict_epoch_end(self) -> None:
        """Write id, source, output and references of each row to predictions.jsonl in the run's folder."""
        completions, self._scored = self._scored, []
        path = self.folder / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for completion in completions:
                example = completion.example
                row = {
                    "id": example.id,
                    "source": example.source,
                    "output": completion.text,
                    "references": example.references,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.print(f"{len(completions)} outputs in {path}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and what it is held against; the base model stays where it came from."""
        kept = {f"policy.{name}" for name in self.policy.checkpoint_names()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}
        checkpoint["rollout_step"] = self.rollout_step
        checkpoint["rng_state"] = torch.get_rng_state()  # dropout draws from it

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of something else, and set the rollout clock."""
        expected = {f"policy.{name}" for name in self.policy.checkpoint_names()}
        if "rollout_step" not in checkpoint or set(checkpoint["state_dict"]) != expected:
            raise UserError(
                "the checkpoint given as --ckpt_path does not hold this policy's trained weights; "
                "resume with the configuration that wrote it"
            )
        self.rollout_step = checkpoint["rollout_step"]
        self._rng_state = checkpoint["rng_state"]

    def on_train_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if there is one."""
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state)
            self._rng_state = None

    def on_train_end(self) -> None:
        """Leave the trained adapter (or model) in the run's folder."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.policy.save(self.folder / "adapter")
