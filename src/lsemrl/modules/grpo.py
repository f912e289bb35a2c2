"""GRPO with semantic rewards (arXiv 2605.14366): sample a group, score it, compare siblings, update, report.

Left out on purpose: a value network (the group is the baseline), and a replay buffer (rollouts are used while fresh).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lsemrl.kernels import default_chunk_tokens
from lsemrl.languages import Language
from lsemrl.matmul import float32_products
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.alarm_log import tell
from lsemrl.modules.alarms import AlarmSettings, Watched, alarms
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.correction import correction
from lsemrl.modules.engines import check_engine
from lsemrl.modules.ground import encoders_of, languages_of
from lsemrl.modules.grpo_settings import check_grpo, check_windows
from lsemrl.modules.losses import LossSettings, WindowCounts, active_mask, packed_policy_loss, token_weights
from lsemrl.modules.memory import HeldMemory, MemoryEstimate, beyond_estimate, estimate_memory, filled_up
from lsemrl.modules.metrics_log import MetricsLog, show_text
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.random_state import rollout_seed
from lsemrl.modules.ranks import together
from lsemrl.modules.rollout_report import append_samples, completion_metrics, reward_metrics, samples_page
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.scoring import score
from lsemrl.modules.step_faults import within_memory
from lsemrl.modules.windows import active_rows, over_windows
from lsemrl.rewards.advantages import AdvantageSettings, group_advantages
from lsemrl.rewards.base import Reward, RewardMix, concatenate
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.rewards.patience import Patience
from lsemrl.runs import ALARMS, SAMPLES
from lsemrl.types import Completion, PromptBatch, Rewards, Rollouts, Sequences

_WATCH_EVERY = 5
"""Rollout steps between two looks at what was logged."""


class GRPO(PolicyModule):
    """Group-relative policy optimization."""

    def __init__(
        self,
        rewards: dict[str, Reward],
        combine: Literal["sum", "gate", "normalize_then_sum"] = "sum",
        gate: str | list[str] | None = None,
        policy: PolicySettings = PolicySettings(),
        sampling: Sampling = Sampling(),
        advantages: AdvantageSettings = AdvantageSettings(),
        loss: LossSettings = LossSettings(),
        optimizer: OptimizerSettings = OptimizerSettings(),
        metrics: MetricSettings = MetricSettings(),
        num_iterations: int = 1,
        optimizer_batch_size: int | None = None,
        dropout_in_updates: bool = False,
        micro_batch_tokens: int = 4096,
        samples_every: int = 10,
        patience: Patience = Patience(),
        anchor: AnchorSettings | None = None,
        alarms: AlarmSettings | None = AlarmSettings(),
    ) -> None:
        """
        Args:
            rewards: Named parts of the reward, each with its weight; a weight of 0 only watches.
            combine: Add the weighted parts (the paper), let the gates decide whether the others count, or normalise
                each part within its group before adding (GDPO), and what they add up to over the batch.
            gate: The parts that are gates, with combine gate; null means the one named language.
            policy: What is trained.
            sampling: How completions are drawn.
            advantages: How siblings are compared. With combine normalize_then_sum the scale is that of the batch.
            loss: The clipped objective and its KL penalty.
            optimizer: How weights move.
            metrics: What validation measures.
            num_iterations: Passes over each batch of rollouts.
            optimizer_batch_size: Completions of a rank per optimizer step; null takes all of a batch in one step.
            dropout_in_updates: Whether updates draw what a model draws in training, such as dropout of its adapters
                or its own, or a router's noise. Without, they see the policy that sampled; with, ratios and KL measure
                noise too.
            micro_batch_tokens: Tokens in one forward pass, padding included; the gradient does not depend on it.
            samples_every: Write sample completions every so many rollout steps; 0 never does.
            anchor: What holds the policy to its base beside the task.
            patience: What is done about a part of the reward that raises, hangs or gives something else.
            alarms: When it is said that something is going wrong; null never says so.
        """
        kl = loss.beta > 0
        super().__init__(policy, optimizer, metrics, sampling.max_new_tokens, micro_batch_tokens, anchor, kl=kl)
        check_grpo(
            combine=combine,
            policy=policy,
            sampling=sampling,
            advantages=advantages,
            loss=loss,
            num_iterations=num_iterations,
            optimizer_batch_size=optimizer_batch_size,
            samples_every=samples_every,
        )
        # With normalize_then_sum the parts have been compared already, and theirs was the resolution.
        compared = combine == "normalize_then_sum"
        self.advantages = replace(advantages, scale_rewards="batch", resolution=0.0) if compared else advantages
        self.reward_mix = RewardMix(rewards, combine, gate, patience, advantages.resolution)
        self.sampling, self.loss = sampling, loss
        self.num_iterations, self.optimizer_batch_size = num_iterations, optimizer_batch_size
        self.samples_every, self.dropout_in_updates, self.alarms = samples_every, dropout_in_updates, alarms
        self.newest: tuple[Sequence[Completion], Tensor] = [], torch.empty(0)  # of this rank, with their rewards
        self.held: HeldMemory | None = None  # until weights are to be read
        self.estimate: MemoryEstimate | None = None  # until a first step tells how long completions are

    def configure_model(self) -> None:
        """Nothing is drawn in updates either, unless that is asked for."""
        self.held = self.held or HeldMemory(self.trainer.strategy.root_device)
        super().configure_model()
        self.policy.model.train(self.dropout_in_updates)

    def setup(self, stage: str) -> None:
        """Check that the rewards apply to the data, and that its batches divide into optimizer steps."""
        super().setup(stage)
        if stage != "fit":
            return
        check_engine(self.policy, self.sampling, self.trainer.strategy.root_device)
        for line in self.reward_mix.look_at(self.trainer.datamodule.data.train_examples):  # type: ignore[attr-defined]
            self.say(line)
        if self.alarms and not any(isinstance(each, MetricsLog) for each in self.trainer.loggers):
            self.say("alarms are off, which read the rows of a MetricsLog; add one to the Trainer's loggers")
        self.exact = (
            (self.trainer.precision, self.policy.settings.dtype) == ("32-true", "float32")
            and self.sampling.engine != "vllm"
            and float32_products(self.trainer.strategy.root_device) == "float32"
        )
        batch_size: int = self.trainer.datamodule.data.batch_size  # type: ignore[attr-defined]
        completions = batch_size * self.sampling.num_generations
        self.window_size = self.optimizer_batch_size or completions
        check_windows(self.optimizer_batch_size, batch_size, self.sampling.num_generations)
        self.windows = completions // self.window_size

    def encoders(self) -> dict[str, EncoderUse]:
        """Those of rewards too."""
        return super().encoders() | encoders_of(self.reward_mix.parts)

    def languages(self) -> dict[str, Language]:
        """Those of rewards too."""
        return super().languages() | languages_of(self.reward_mix.parts)

    def say_memory(self, whole: Sequences) -> None:
        """Say how it samples and how much memory it will take, with completions like its first ones and the longest."""
        self.say(f"sampling {self.policy.decoders[self.sampling.engine].about}")
        longest = self.sampling.max_new_tokens
        self.estimate, at_most = self._estimated(whole), self._estimated(filled_up(whole, longest))
        most = f"{at_most.total / 1e6:,.0f} MB if all took {longest} tokens"
        self.say(f"memory: {self.estimate}, and {most}{beyond_estimate(self.device)}")

    def _estimated(self, whole: Sequences) -> MemoryEstimate:
        vocabulary = self.policy.model.config.get_text_config().vocab_size
        window = torch.arange(self.window_size, device=self.device)
        found = estimate_memory(
            self.policy.model,
            whole,
            [*self.micro_batches(whole, window), *self.held_batches()],
            checkpointing=self.policy.settings.gradient_checkpointing,
            chunk_tokens=default_chunk_tokens(vocabulary, self.device)
            if self.policy.shares_prompts
            else self.micro_batch_tokens,  # the model's own logits come whole
            autocast=torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None,
            reference=self.policy.reference_model,
            shards=self.trainer.world_size if self.policy.sharded else 1,
            gather_for_sampling=self.policy.settings.gather_for_sampling,
        )
        return replace(found, sampling=0) if self.sampling.engine == "vllm" else found

    def on_train_end(self) -> None:
        """Look at what came after the last look, as the last validation, and say how much memory the run took."""
        self.watch()
        if self.estimate and self.held:  # else it was resumed at its end
            self.say(f"memory: the peak was {self.held.ended()}; {self.estimate.total / 1e6:,.0f} MB were estimated")

    def own_state(self) -> dict[str, Any]:
        """The counters of the rewards too."""
        return {**super().own_state(), "rewards": self.reward_mix.state()}

    def resume_state(self, state: dict[str, Any]) -> None:
        """The counters of the rewards too."""
        super().resume_state(state)
        self.reward_mix.resume(state["rewards"])

    def updates_per_batch(self) -> int:
        """Optimizer steps that one batch of rollouts takes."""
        return self.num_iterations * self.windows

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """The whole method, once."""
        self.begin_step()
        rollouts = self.draw(prompts, self.sampling, rollout_seed(self.rollout_step, self.global_rank))
        if self.estimate is None:
            self.say_memory(rollouts.sequences)
        self.stopwatch.lap("rollout")
        rewards = self.reward(rollouts)
        advantages_N, spread = self.compare(rewards)
        self.report(rollouts, rewards, advantages_N, {**spread, **self.update(rollouts, advantages_N)})

    def reward(self, rollouts: Rollouts) -> Rewards:
        """Rewards of the completions of all ranks, this rank's at its place among them."""

        def own() -> Rewards:
            # A part that is waited for has a thread of its own, which knows nothing of the policy's mixed precision.
            with torch.autocast(self.device.type, enabled=False):
                rewards = self.reward_mix(rollouts.completions, rollouts.num_generations)
            self.stopwatch.lap("reward")
            return rewards

        return concatenate(together(own, self.meet))

    def compare(self, rewards: Rewards) -> tuple[Tensor, dict[str, Tensor]]:
        """Advantages of this rank's completions over their siblings."""
        # Among those of all ranks, since scale_rewards batch divides by the deviation of the whole batch.
        rewards_BG = rewards.total_N.view(-1, self.sampling.num_generations)
        advantages_BG, metrics = group_advantages(rewards_BG, self.advantages)
        return advantages_BG.view(self.trainer.world_size, -1)[self.global_rank].to(self.device), metrics

    def update(self, rollouts: Rollouts, advantages_N: Tensor) -> dict[str, Tensor]:
        """Optimizer steps on one batch of rollouts.

        Returns:
            Metrics over those steps.
        """
        whole = rollouts.sequences
        mask_NT = active_mask(whole.completion_mask_NT, rollouts.ended_N, self.loss.mask_truncated_completions)
        windows = torch.arange(len(whole), device=self.device).split(self.window_size)
        rows = [active_rows(window, mask_NT) for window in windows]
        # With a single step the policy that is trained is still the one that sampled, but for what was rounded, or what
        # another engine computed otherwise.
        corrected = not self.exact and self.loss.importance_sampling_mode is not None
        old_NT = self.score(whole, rows) if corrected or self.updates_per_batch() > 1 else None
        correction_NT, differences = correction(old_NT if corrected else None, rollouts.logprobs_NT, mask_NT, self.loss)
        ref_NT = None
        if self.loss.beta > 0:
            with self.policy.reference():
                ref_NT = self.score(whole, rows)
        self.stopwatch.lap("reference")

        windows *= self.num_iterations
        steps = [self.step(whole, window, mask_NT, advantages_N, old_NT, ref_NT, correction_NT) for window in windows]
        self.stopwatch.lap("update")
        return over_windows(steps, self.loss) | differences

    def step(
        self,
        whole: Sequences,
        window: Tensor,
        mask_NT: Tensor,
        advantages_N: Tensor,
        old_NT: Tensor | None,
        ref_NT: Tensor | None,
        correction_NT: Tensor | None,
    ) -> tuple[dict[str, Tensor], WindowCounts]:
        """One optimizer step on the rows of a window.

        Args:
            whole: All sequences; what follows has a row for each.
            window: int64, the rows.
            mask_NT: The tokens to learn from.
            advantages_N: Of each completion over its siblings.
            old_NT, ref_NT: Log-probs under the policy that sampled and the reference; None where that takes none.
            correction_NT: See `modules.correction`; None where sampler and trainer agree.

        Returns:
            Metrics over the window, and what it holds.
        """
        counts = self.window_counts(mask_NT[window])
        weights_NT = torch.zeros(mask_NT.shape, device=self.device)
        weights_NT[window] = token_weights(mask_NT[window], self.loss.loss_type, self.sampling.max_new_tokens, counts)

        def loss_of(batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            loss_fn = packed_policy_loss(
                None if old_NT is None else batch.pack(old_NT),
                None if ref_NT is None else batch.pack(ref_NT),
                batch.pack(advantages_N[:, None].expand_as(mask_NT)),
                batch.pack(mask_NT),
                batch.pack(weights_NT),
                batch.lengths,
                self.loss,
                counts,
                None if correction_NT is None else batch.pack(correction_NT),
            )
            return self.policy.loss(
                batch.sequences,
                loss_fn,
                self.sampling.temperature,
                whole_rows=self.loss.importance_sampling_level == "sequence",
            )

        return self.learn(whole, active_rows(window, mask_NT), loss_of), counts

    def score(self, whole: Sequences, windows: Sequence[Tensor]) -> Tensor:
        """Log-probs of the sampled tokens as they stand, without gradients: float32 [N, T], 0 in rows of no window."""

        def work() -> Tensor:
            # As they step: rounded in other company, the same policy says something else.
            batches = [batch for rows in windows for batch in self.micro_batches(whole, rows)]
            return score(self.policy, whole, batches, self.sampling.temperature)

        return within_memory(self.policy, work, self._halve_micro_batches, "model.micro_batch_tokens")

    def report(self, rollouts: Rollouts, rewards: Rewards, advantages_N: Tensor, metrics: dict[str, Tensor]) -> None:
        """Log the batch and, now and then, write the first rank's completions to samples.csv in the run's folder."""
        completions = completion_metrics(rollouts)
        seconds = sum(self.stopwatch.seconds.values())
        self.log_step(
            {
                **reward_metrics(rewards, rollouts.num_generations),
                # Of all ranks, as logging averages.
                **{name: own * self.trainer.world_size for name, own in self.reward_mix.counters.items()},
                **metrics,
                **completions,
                "timing/reward_share": self.stopwatch.seconds["reward"] / seconds,
                "tokens_per_second": completions["num_tokens"] / seconds,
            },
            *("reward", "kl", "completions/mean_length"),
        )
        if self.samples_every and self.rollout_step % self.samples_every == 0 and self.trainer.is_global_zero:
            append_samples(self.folder / SAMPLES, self.rollout_step, rollouts, rewards, advantages_N)
            show_text(self, "samples", samples_page(rollouts, rewards), self.rollout_step)
        self.newest = rollouts.completions, rewards.plain_N[: len(rollouts.completions)]
        self.rollout_step += 1
        if self.rollout_step % _WATCH_EVERY == 0:
            self.watch()

    def watch(self) -> None:
        """Say what the rows logged so far show to go wrong, with rows of the newest batch; end the run if it is to."""
        if not self.alarms or not self.trainer.is_global_zero:
            return
        rows = next((each.rows() for each in self.trainer.loggers if isinstance(each, MetricsLog)), [])
        found = alarms(rows, Watched.of(self.reward_mix), self.alarms)
        completions, rewards_N = self.newest
        for each in tell(self.folder / ALARMS, self.rollout_step - 1, found, completions, rewards_N.tolist()):
            show_text(self, f"alarms/{each.kind}", each.page, each.rollout_step)
            if self.alarms.on_alarm == "stop":
                self.alarm = each.sentence
