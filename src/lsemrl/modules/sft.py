"""Supervised fine-tuning: the cold start before GRPO, and the strong baseline beside it."""

from __future__ import annotations

import torch

from lsemrl.data.base import Data
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.losses import likelihood_loss, token_weights
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import PromptBatch, UserError


class SFT(PolicyModule):
    """Next-token loss on the reference and its EOS; the prompt is read, not learned."""

    learns_references = True
    step_name = "step"

    def __init__(
        self,
        policy: PolicySettings = PolicySettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        metrics: MetricSettings = MetricSettings(),
        micro_batch_tokens: int = 4096,
        max_new_tokens: int = 64,
        anchor: AnchorSettings | None = None,
    ) -> None:
        """
        Args:
            policy: What is trained.
            optimizer: How.
            metrics: What validation measures.
            micro_batch_tokens: Tokens in one forward pass, padding included; the gradient does not depend on it.
            max_new_tokens: Length limit of outputs in evaluation.
            anchor: What holds the policy to its base beside the task.
        """
        super().__init__(policy, optimizer, metrics, max_new_tokens, micro_batch_tokens, anchor)
        if policy.ref_model_sync_steps is not None:
            raise UserError(
                f"policy.ref_model_sync_steps is {policy.ref_model_sync_steps}, but SFT is held to no reference; leave "
                "it out"
            )

    def setup(self, stage: str) -> None:
        """Check that there is something to learn."""
        data: Data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        if stage == "fit" and not all(example.references for example in data.train_examples):
            raise UserError(
                "data.untranslated gives rows without a reference, of which SFT learns nothing; leave it out, or train "
                "by RL on rewards that read no reference"
            )
        super().setup(stage)

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the batch, in micro-batches."""
        self.begin_step()
        sequences = prompts.sequences
        mask_NT = sequences.completion_mask_NT
        weights_NT = token_weights(mask_NT, "dapo", mask_NT.shape[1], self.window_counts(mask_NT))

        def loss_of(batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return self.policy.loss(batch.sequences, likelihood_loss(batch.pack(weights_NT)))

        found = self.learn(sequences, torch.arange(len(sequences), device=self.device), loss_of)
        self.log_step({**found, "num_tokens": mask_NT.sum().float() * self.trainer.world_size}, "loss")
        self.rollout_step += 1
