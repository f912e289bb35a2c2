"""Supervised fine-tuning: the cold start before GRPO, and the strong baseline beside it."""

from __future__ import annotations

import torch

from lsemrl.evaluation.scorer import MetricSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.losses import token_weights
from lsemrl.modules.optimization import OptimizerSettings
from lsemrl.modules.policy import PolicySettings
from lsemrl.types import PromptBatch


class SFT(PolicyModule):
    """Next-token loss on the reference and its EOS; the prompt is read, not learned."""

    def __init__(
        self,
        policy: PolicySettings = PolicySettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        metrics: MetricSettings = MetricSettings(),
        micro_batch_size: int = 32,
        max_new_tokens: int = 64,
    ) -> None:
        """
        Args:
            policy: What is trained.
            optimizer: How.
            metrics: What validation measures.
            micro_batch_size: Rows in one forward pass; the gradient does not depend on it.
            max_new_tokens: Length limit of outputs in evaluation.
        """
        super().__init__(policy, optimizer, metrics, max_new_tokens)
        self.micro_batch_size = micro_batch_size

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """One optimizer step on the batch, in micro-batches."""
        sequences = prompts.sequences
        mask_NT = sequences.completion_mask_NT
        weights_NT = token_weights(mask_NT, "dapo", mask_NT.shape[1], self.window_counts(mask_NT))
        loss = torch.zeros((), device=self.device)
        for rows in sequences.micro_batches(torch.arange(len(sequences), device=self.device), self.micro_batch_size):
            micro_batch = sequences.select(rows)
            logprobs_NT, _ = self.policy.logprobs(micro_batch)
            piece = -(logprobs_NT * weights_NT[rows, : logprobs_NT.shape[1]]).sum()
            self.backward_share(piece)
            loss += piece.detach()
        grad_norm = self.apply_gradients()
        self.rollout_step += 1
        self.log_step({"loss": loss, "grad_norm": grad_norm, "num_tokens": mask_NT.sum().float()}, "loss")
