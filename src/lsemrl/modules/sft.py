"""Supervised fine-tuning: the cold start before GRPO, and the strong baseline beside it."""

from __future__ import annotations

import torch

from lsemrl.evaluation.scorer import MetricSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.losses import likelihood_loss, token_weights
from lsemrl.modules.optimization import OptimizerSettings
from lsemrl.modules.packing import MicroBatch, padding
from lsemrl.modules.policy import PolicySettings
from lsemrl.types import PromptBatch


class SFT(PolicyModule):
    """Next-token loss on the reference and its EOS; the prompt is read, not learned."""

    def __init__(
        self,
        policy: PolicySettings = PolicySettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        metrics: MetricSettings = MetricSettings(),
        micro_batch_tokens: int = 4096,
        max_new_tokens: int = 64,
    ) -> None:
        """
        Args:
            policy: What is trained.
            optimizer: How.
            metrics: What validation measures.
            micro_batch_tokens: Tokens in one forward pass, padding included; the gradient does not depend on it.
            max_new_tokens: Length limit of outputs in evaluation.
        """
        super().__init__(policy, optimizer, metrics, max_new_tokens, micro_batch_tokens)

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the batch, in micro-batches."""
        sequences = prompts.sequences
        mask_NT = sequences.completion_mask_NT
        weights_NT = token_weights(mask_NT, "dapo", mask_NT.shape[1], self.window_counts(mask_NT))
        losses: list[torch.Tensor] = []

        def loss_of(batch: MicroBatch) -> torch.Tensor:
            loss, _ = self.policy.loss(batch.sequences, likelihood_loss(batch.pack(weights_NT)))
            losses.append(loss.detach())
            return loss

        batches = self.micro_batches(sequences, torch.arange(len(sequences), device=self.device))
        self.backward_window(batches, loss_of)
        grad_norm = self.apply_gradients()
        self.rollout_step += 1
        self.log_step(
            {
                "loss": torch.stack(losses).sum() * self.trainer.world_size,  # they add up; logging averages over ranks
                "grad_norm": grad_norm,
                "num_tokens": mask_NT.sum().float(),
                "padding/update": padding(batches),
            },
            "loss",
        )
