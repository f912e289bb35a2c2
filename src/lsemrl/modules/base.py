"""The rim that GRPO and SFT share: reading weights, optimizers, evaluation, checkpoints of what is trained.

What a step of training does is in `grpo` and `sft`; nothing here decides anything about learning.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lsemrl.data.base import Data
from lsemrl.languages import Language
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.anchor import Anchor
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.answers import of_all_ranks, write_predictions
from lsemrl.modules.gradients import LossOf, Part, Passed, accumulate, in_step, sum_gradients
from lsemrl.modules.ground import checksum_of, ground
from lsemrl.modules.legibility import check_run
from lsemrl.modules.losses import WindowCounts
from lsemrl.modules.metrics_log import log_row
from lsemrl.modules.optimization import check_float32, clipped_step, make_optimizer
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.packing import MicroBatch, micro_batches, padding
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.random_state import random_state, seed_of, set_random_state
from lsemrl.modules.ranks import every_rank, leave_at_exit
from lsemrl.modules.reference import sync_reference
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling, check_tokens, greedy
from lsemrl.modules.step_faults import SkippedSteps, skipped_rows, unsound, within_memory
from lsemrl.modules.timing import Stopwatch
from lsemrl.modules.trainer_settings import check_trainer, planned_steps
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.runs import SKIPPED
from lsemrl.types import Completion, Example, PromptBatch, Rollouts, Sequences


class PolicyModule(LightningModule):
    """A policy under manual optimization, scored greedily on held-out prompts.

    Two clocks run: `rollout_step` counts training batches, Lightning's `global_step` counts optimizer steps.
    """

    learns_references = False
    """Whether training learns references, rather than answering prompts."""
    step_name = "rollout step"
    """What a training batch is called where it is counted."""

    def __init__(
        self,
        policy: PolicySettings,
        optimizer: OptimizerSettings,
        metrics: MetricSettings,
        max_new_tokens: int,
        micro_batch_tokens: int,
        anchor: AnchorSettings | None = None,
        kl: bool = False,
    ) -> None:
        super().__init__()
        self.anchor = Anchor(anchor) if anchor and anchor.coefficient else None
        check_tokens(max_new_tokens, micro_batch_tokens)
        self.micro_batch_tokens, self.sampling_parts = micro_batch_tokens, 1
        self._asked_tokens = micro_batch_tokens
        self.automatic_optimization = False
        self.policy = Policy(policy.keeping(reference=kl, base=bool(self.anchor and not self.anchor.settings.top_k)))
        self.optimizer = optimizer
        self.scorer = Scorer(metrics)
        self.greedy = greedy(max_new_tokens)
        self.rollout_step = 0
        self.stopwatch = Stopwatch(torch.device("cpu"))  # of the step that is taken
        self.folder = Path()  # where this run writes, from `setup` on
        self.answers: list[Completion] = []  # of this rank, to rows that are not scored yet
        self.skipped = SkippedSteps()
        self.alarm: str | None = None  # why this rank would end the run before its next step
        self.given: dict[str, str] = {}  # see `given_to`; whoever reads a configuration says
        self._resumed: dict[str, Any] | None = None  # this rank's part of a checkpoint

    def configure_model(self) -> None:
        """Read the weights once everything else has been checked, and spread them over ranks where that is asked."""
        if self.policy.model is not None:
            return
        leave_at_exit()
        # A new adapter is drawn: of one seed on all ranks, whose shards must be of the same whole.
        seed = self.trainer.strategy.broadcast(torch.initial_seed())
        with nullcontext() if self.trainer.world_size == 1 else torch.random.fork_rng(devices=[]):
            if self.trainer.world_size > 1:
                torch.default_generator.manual_seed(seed)
            self.policy.load()
        if self.anchor:
            self.anchor.check(self.policy)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            world = self.trainer.world_size
            self.policy.shard(init_device_mesh(self.trainer.strategy.root_device.type, (world,)))

    def setup(self, stage: str) -> None:
        """Settle where this run writes: all ranks must ask at once, as the Trainer has the first tell the others."""
        self.folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        check_trainer(self.trainer, self.policy, stage)
        data: Data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        splits = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        new, learned = self.greedy.max_new_tokens, self.learns_references
        for line in check_run(self.policy, data, splits, self.encoders(), new, learned=learned):
            self.say(line)
        if stage in ("validate", "test") or (stage == "fit" and self.trainer.limit_val_batches):
            for line in self.scorer.look_at(self.scored_examples(stage)):
                self.say(line)

    def encoders(self) -> dict[str, EncoderUse]:
        """Sentence encoders, by the field that names each and its value."""
        return self.scorer.encoders

    def languages(self) -> dict[str, Language]:
        """Languages that outputs are judged by, by the field that names each."""
        return {"metrics.language": self.scorer.language}

    def scored_examples(self, stage: str | None) -> list[Example]:
        """The rows whose outputs are scored in a stage of Lightning's."""
        data: Data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        return data.validation_examples if stage in ("fit", "validate") else data.test_examples

    def updates_per_batch(self) -> int:
        """Optimizer steps that one training batch takes."""
        return 1

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule over the optimizer steps that this run will take."""
        self.planned_steps = planned_steps(self.trainer, self.updates_per_batch())
        check_float32(self.policy.trained())
        optimizer, schedule = make_optimizer(self.policy.parameters(), self.optimizer, self.planned_steps)
        return [optimizer], [schedule]

    def begin_step(self) -> None:
        """Start the clock of a training step."""
        self.stopwatch = Stopwatch(self.device)
        # Mixed precision would remember weights as it cast them first: without gradients, and before they moved.
        torch.set_autocast_cache_enabled(False)

    def micro_batches(self, whole: Sequences, rows: torch.Tensor) -> list[MicroBatch]:
        """Completions as they go through the policy."""
        return micro_batches(whole, rows, self.micro_batch_tokens, share=self.policy.shares_prompts)

    def held_batches(self) -> list[MicroBatch]:
        """The longest of what an anchor holds the policy to, as it goes through it; nothing without one."""
        held = self.anchor.longest(self.device) if self.anchor else None
        return self.micro_batches(held, torch.arange(len(held), device=self.device)) if held else []

    def window_counts(self, mask_NT: torch.Tensor) -> WindowCounts:
        """Rows and active tokens behind one optimizer step, over all ranks."""
        own = torch.tensor([mask_NT.shape[0], int(mask_NT.sum())], device=self.device)
        rows, tokens = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        return WindowCounts(rows=rows, tokens=tokens)

    def learn(self, whole: Sequences, rows: torch.Tensor, loss_of: LossOf) -> dict[str, torch.Tensor]:
        """One optimizer step on `rows` of `whole`, in micro-batches.

        A step whose gradient is not finite on any rank is skipped by all, and its rows are written out.

        Args:
            whole: This rank's completions.
            rows: int64, those of the step.
            loss_of: This rank's share of the loss of a micro-batch, and sums of metrics.

        Returns:
            To be logged: sums over all micro-batches, the gradient's norm before clipping, the learning rate, the share
            of padding.

        Raises:
            UserError: Too many steps were skipped in a row, or memory ran out.
        """
        parts = [Part("task", whole, rows, loss_of), *self._held_beside()]
        passed, found = within_memory(
            self.policy,
            lambda: self._backward(parts),
            self._halve_micro_batches,
            "model.micro_batch_tokens or policy.lora.rank, or set policy.gradient_checkpointing",
        )
        self.stopwatch.lap("update")
        self.meet()
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        norm = self._apply_gradients()
        if bool(norm.isfinite()):
            self.skipped.in_a_row = 0
            every = self.policy.settings.ref_model_sync_steps
            if every and self.global_step % every == 0:
                sync_reference(self.policy)
        else:
            self._skip(passed)
        # They add up over ranks, and logging averages.
        totals = {name: torch.stack(values).sum() * self.trainer.world_size for name, values in found.items()}
        same = {"learning_rate": torch.tensor(rate), "padding/update": torch.tensor(padding(passed[0].batches))}
        return {**totals, "grad_norm": norm, **same}

    def _skip(self, passed: list[Passed]) -> None:
        """Count a step whose gradient is not finite, and write its rows out."""
        about = {"rollout_step": self.rollout_step, "rank": self.global_rank}
        rows = every_rank(skipped_rows(passed, self.policy, about))
        path = self.folder / SKIPPED
        self.say(f"the gradient of {self.step_name} {self.rollout_step + 1} is not finite: skipped; rows are in {path}")
        self.skipped.add(path, rows if self.trainer.is_global_zero else (), self.optimizer.max_skipped_steps)

    def _held_beside(self) -> list[Part]:
        """What the anchor holds in this step; apart, for ranks count once, however often one tries."""
        if not self.anchor:
            return []
        # A step that was skipped is not come back to: its rows would give no finite gradient once more.
        tried = self.global_step + self.skipped.count
        held, numbers = self.anchor.beside(tried, self.global_rank, self.trainer.world_size, self.device)
        counts = self.window_counts(held.completion_mask_NT if numbers else held.completion_mask_NT[:0])
        loss_of = self.anchor.loss(self.policy, numbers, counts.tokens)
        return [Part("anchor", held, torch.arange(len(held), device=self.device), loss_of)]

    def _backward(self, parts: list[Part]) -> tuple[list[Passed], dict[str, list[torch.Tensor]]]:
        passed, found = [], dict[str, list[torch.Tensor]]()
        for part in parts:
            batches = self.micro_batches(part.whole, part.rows)
            counted = in_step(batches, self.policy, self.device)
            sums = accumulate(self.trainer.strategy.model, counted, part.loss_of, self.manual_backward)
            passed.append(Passed(part, batches, sums["loss"]))
            found = sums | found  # the loss that is logged is the task's
            self.stopwatch.lap("anchor" if part.of == "anchor" else "update")
        return passed, found

    def _halve_micro_batches(self) -> str:
        self.micro_batch_tokens = max(1, self.micro_batch_tokens // 2)
        return f"model.micro_batch_tokens at {self.micro_batch_tokens}, which changes no gradient"

    def draw(self, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
        """Completions of `prompts` by `sample`, in halves from when memory first ran out."""
        return within_memory(
            self.policy,
            lambda: sample(self.policy, prompts, sampling, seed, self.sampling_parts),
            self._halve_sampling,
            "data.batch_size, sampling.num_generations or sampling.max_new_tokens",
        )

    def _halve_sampling(self) -> str:
        self.sampling_parts *= 2
        return f"the completions of a batch drawn in {self.sampling_parts} parts"

    def _apply_gradients(self) -> torch.Tensor:
        """One clipped optimizer step on the sum of all ranks' gradients; returns its norm before clipping."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer) and isinstance(schedule, LRScheduler)
        if sum_gradients(self.trainer.strategy.model, self.policy):
            self.stopwatch.lap("communication")
        return clipped_step(optimizer, schedule, self.optimizer.max_grad_norm)

    def meet(self) -> None:
        """Wait for all ranks, and count how long as waiting."""
        if self.trainer.world_size > 1:
            self.trainer.strategy.barrier()
            self.stopwatch.lap("waiting")

    def say(self, line: str) -> None:
        """Tell the user something once, whatever the number of ranks."""
        rank_zero_info(line)

    def log_step(self, metrics: dict[str, Any], *shown: str) -> None:
        """Log a training batch under both clocks, with where its time went; `shown` appear in the progress bar too."""
        seconds = dict(self.stopwatch.seconds)
        if self.policy.traffic is not None:
            seconds["communication"] = self.policy.traffic.take()
        metrics = {**metrics, **{f"timing/{stage}": value for stage, value in seconds.items()}}
        metrics["skipped_steps"] = float(self.skipped.count)
        clocks = {"rollout_step": float(self.rollout_step), "optimizer_step": float(self.global_step)}
        due = (self.rollout_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        log_row(self, {**metrics, **clocks}, self.rollout_step, shown, due=due)

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; scored, or written, at the end of the epoch."""
        self.answers += self.draw(prompts, self.greedy, seed=0).completions

    test_step = predict_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log every metric as val/<metric>."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log every metric as test/<metric>."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        completions = self._answered()
        scores = {f"{stage}/{name}": value for name, value in self.scorer(completions).items()}
        if self.trainer.state.fn == "fit":
            log_row(self, scores, max(self.rollout_step - 1, 0))
        else:
            for name, value in scores.items():
                self.log(name, value, sync_dist=True)

    def _answered(self) -> list[Completion]:
        own, self.answers = self.answers, []
        return of_all_ranks(own, rows=len(self.scored_examples(self.trainer.state.fn)))

    def on_predict_epoch_end(self) -> None:
        """Write what each row was answered to predictions.jsonl in the run's folder."""
        completions = self._answered()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            path = write_predictions(self.folder, completions)
            self.print(f"{len(completions)} outputs in {path}")

    def own_state(self) -> dict[str, Any]:
        """What this rank alone knows and a resumed run must have again, as JSON can hold it."""
        return {
            "skipped": [self.skipped.count, self.skipped.in_a_row],
            "micro_batch_tokens": self.micro_batch_tokens if self.micro_batch_tokens < self._asked_tokens else None,
            "sampling_parts": self.sampling_parts,
            "random": random_state(self.device),
        }

    def stands_on(self) -> dict[str, str]:
        """Hashes of what a resumed run must find as it was, by the field that names it."""
        data: Data = self.trainer.datamodule.data  # type: ignore[attr-defined]
        found = ground(self.policy, data.train_examples, self.encoders(), self.languages(), self.given)
        found["data.validation"] = checksum_of(data.validation_examples)
        return found | {"model.anchor.path": self.anchor.digest} if self.anchor else found

    def resume_state(self, state: dict[str, Any]) -> None:
        """Take up what `own_state` gave; the random numbers in `on_train_start`, after everything else has drawn."""
        self.skipped = SkippedSteps(*state["skipped"])
        self.micro_batch_tokens = min(self.micro_batch_tokens, state["micro_batch_tokens"] or self.micro_batch_tokens)
        self.sampling_parts = state["sampling_parts"]
        self._resumed = state

    def on_train_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if there is one."""
        state, self._resumed = self._resumed, None
        if state is None or state["random"] is None:  # as on another number of ranks
            return
        if seed_of(state["random"]) == torch.initial_seed():
            set_random_state(state["random"], self.device)
        else:
            self.say("seed_everything is another than the checkpoint's: what is drawn from here on will be other")

    def unsound(self) -> str | None:
        """Why the policy is none to be saved; None if it is one. All ranks must ask."""
        return unsound(self.policy, self.skipped.in_a_row, self.device)
