"""The rim that GRPO and SFT share: reading weights, optimizers, evaluation, checkpoints of what is trained.

What a step of training does is in `grpo` and `sft`; nothing here decides anything about learning.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lsemrl.files import append, make_folder, replace_folder, write_lines
from lsemrl.metrics.scorer import MetricSettings, Scorer
from lsemrl.modules.adapters.config import check_placement
from lsemrl.modules.ground import ground
from lsemrl.modules.legibility import check_run
from lsemrl.modules.losses import WindowCounts
from lsemrl.modules.optimization import OptimizerSettings, clipped_step, make_optimizer
from lsemrl.modules.packing import MicroBatch, micro_batches, padding
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.random_state import random_state, seed_of, set_random_state
from lsemrl.modules.ranks import averages, every_rank, highest, leave_at_exit
from lsemrl.modules.sampler import Sampling, sample
from lsemrl.modules.sharding import whole_tensors
from lsemrl.modules.step_faults import texts, unsound, within_memory
from lsemrl.modules.timing import Stopwatch
from lsemrl.runs import SKIPPED
from lsemrl.types import Completion, Example, PromptBatch, Rollouts, Sequences, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

T = TypeVar("T")
LossOf = Callable[[MicroBatch], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class PolicyModule(LightningModule):
    """A policy under manual optimization, scored greedily on held-out prompts.

    Two clocks run: `rollout_step` counts training batches, Lightning's `global_step` counts optimizer steps.
    """

    learns_references = False
    """Whether training learns references, rather than answering prompts."""

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
        self.micro_batch_tokens, self.sampling_parts = micro_batch_tokens, 1
        self._asked_tokens = micro_batch_tokens
        self.automatic_optimization = False
        self.policy = Policy(policy)
        self.optimizer = optimizer
        self.scorer = Scorer(metrics)
        self.greedy = Sampling(num_generations=1, temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
        self.rollout_step = 0
        self.stopwatch = Stopwatch(torch.device("cpu"))  # of the step that is taken
        self.folder = Path()  # where this run writes, from `setup` on
        self._scored: list[Completion] = []
        self.skipped = self.skipped_in_a_row = 0  # optimizer steps without a finite gradient
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
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            world = self.trainer.world_size
            self.policy.shard(init_device_mesh(self.trainer.strategy.root_device.type, (world,)))

    def setup(self, stage: str) -> None:
        """Settle where this run writes: all ranks must ask at once, as the Trainer has the first tell the others."""
        self.folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if self.trainer.world_size > 1 and not isinstance(self.trainer.strategy, DDPStrategy | ModelParallelStrategy):
            raise UserError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__}, under which ranks do not stay in step; "
                "use the overlay configs/ddp.yaml or configs/fsdp.yaml"
            )
        if self.policy.adapter_config is not None:
            check_placement(
                self.policy.adapter_config,
                sharded=isinstance(self.trainer.strategy, ModelParallelStrategy),
                halved=stage == "fit" and self.policy.settings.dtype == "bfloat16",
            )
        if stage == "fit" and (self.policy.settings.train, self.policy.settings.dtype) == ("full", "bfloat16"):
            raise UserError(
                "policy.train is full and policy.dtype is bfloat16, which rounds small steps away; set policy.dtype to "
                "float32, and trainer.precision to bf16-mixed for its speed"
            )
        if self.policy.settings.flex_attention and stage == "fit" and self.trainer.strategy.root_device.type == "cpu":
            raise UserError("policy.flex_attention is true, but it has no backward pass on a CPU; set it to false")
        # Whole models in half precision would take adapters with them; float16 would need its gradients scaled.
        if self.trainer.precision not in ("32-true", "bf16-mixed"):
            raise UserError(
                f"trainer.precision is {self.trainer.precision}; choose 32-true or bf16-mixed, and set policy.dtype to "
                "bfloat16 to halve frozen weights"
            )
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        splits = {"fit": ("train", "validation"), "validate": ("validation",)}.get(stage, ("test",))
        new, learned = self.greedy.max_new_tokens, self.learns_references
        for line in check_run(self.policy, data, splits, self.encoders(), new, learned=learned):
            self.say(line)
        if stage in ("validate", "test") or (stage == "fit" and self.trainer.limit_val_batches):
            for line in self.scorer.look_at(self.scored_examples(stage)):
                self.say(line)

    def encoders(self) -> dict[str, SentenceTransformer]:
        """What reads references, by the field that names it and its value."""
        return self.scorer.encoders

    def scored_examples(self, stage: str | None) -> list[Example]:
        """The rows whose outputs are scored in a stage of Lightning's."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows: list[Example] = data.validation_examples if stage in ("fit", "validate") else data.test_examples
        return rows

    def updates_per_batch(self) -> int:
        """Optimizer steps that one training batch takes."""
        return 1

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule over the optimizer steps that this run will take."""
        # Not from the Trainer's own loader: made this early, it would never be told where a checkpoint left off.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        share = self.trainer.limit_train_batches
        batches = min(batches, share) if isinstance(share, int) else int(batches * (share or 1.0))
        every = self.trainer.val_check_interval
        counted_anew = self.trainer.limit_val_batches and self.trainer.check_val_every_n_epoch is not None
        if counted_anew and isinstance(every, int) and every > batches:
            raise UserError(
                f"trainer.val_check_interval is {every}, but an epoch has {batches} batches; lower it, or set "
                "trainer.check_val_every_n_epoch to null to count across epochs"
            )
        epochs = math.inf if self.trainer.max_epochs in (None, -1) else self.trainer.max_epochs
        limit = math.inf if self.trainer.max_steps == -1 else self.trainer.max_steps
        steps = min(batches * epochs * self.updates_per_batch(), limit)
        if math.isinf(steps):
            raise UserError("the run has no end: set trainer.max_epochs, or trainer.max_steps (in optimizer steps)")
        for name, weight in self.policy.trained().items():
            if weight.dtype != torch.float32:
                raise UserError(
                    f"policy.adapter trains {name} in {str(weight.dtype).removeprefix('torch.')}, which rounds small "
                    "steps away; set policy.dtype to float32"
                )
        optimizer, schedule = make_optimizer(self.policy.parameters(), self.optimizer, int(steps))
        return [optimizer], [schedule]

    def begin_step(self) -> None:
        """Start the clock of a training step."""
        self.stopwatch = Stopwatch(self.device)
        # Mixed precision would remember weights as it cast them first: without gradients, and before they moved.
        torch.set_autocast_cache_enabled(False)

    def micro_batches(self, whole: Sequences, rows: torch.Tensor) -> list[MicroBatch]:
        """Completions as they go through the policy."""
        return micro_batches(whole, rows, self.micro_batch_tokens, share=self.policy.shares_prompts)

    def window_counts(self, mask_NT: torch.Tensor) -> WindowCounts:
        """Rows and active tokens behind one optimizer step, over all ranks."""
        own = torch.tensor([mask_NT.shape[0], int(mask_NT.sum())], device=self.device)
        rows, tokens = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        return WindowCounts(rows=rows, tokens=tokens)

    def learn(self, whole: Sequences, rows: torch.Tensor, loss_of: LossOf) -> dict[str, torch.Tensor]:
        """One optimizer step on `rows` of `whole`, in micro-batches.

        A step whose loss or gradient is not finite on any rank is skipped by all, and its rows are written out.

        Args:
            whole: This rank's completions.
            rows: int64, those of the step.
            loss_of: This rank's share of the loss of a micro-batch, and sums of metrics.

        Returns:
            The sums over all micro-batches, the share of padding, the norm of the gradient before clipping, and how
            many steps have been skipped so far.

        Raises:
            UserError: Too many steps were skipped in a row, or memory ran out.
        """
        batches, found = within_memory(
            self.policy,
            lambda: self._backward(whole, rows, loss_of),
            self._halve_micro_batches,
            "model.micro_batch_tokens or policy.lora.rank, or set policy.gradient_checkpointing",
        )
        self.stopwatch.lap("update")
        self.meet()
        norm = self._apply_gradients()
        if bool(norm.isfinite()):
            self.skipped_in_a_row = 0
            every = self.policy.settings.ref_model_sync_steps
            if every and self.global_step % every == 0:
                self.policy.sync_reference()
        else:
            self._skip(whole, batches, found["loss"])
        totals = {name: torch.stack(values).sum() for name, values in found.items()}
        return {
            **totals,
            "grad_norm": norm,
            "padding/update": torch.tensor(padding(batches)),
            "skipped_steps": torch.tensor(float(self.skipped)),
        }

    def _backward(
        self, whole: Sequences, rows: torch.Tensor, loss_of: LossOf
    ) -> tuple[list[MicroBatch], dict[str, list[torch.Tensor]]]:
        """Gradients of this rank's share of a step, one micro-batch after the other.

        Ranks deal their rows into micro-batches on their own and may have unlike numbers of them. So DDP, which would
        have gradients meet in every backward pass, is told not to; they meet in `_apply_gradients`.
        """
        wrapped = self.trainer.strategy.model
        apart: AbstractContextManager[Any]
        if isinstance(wrapped, DistributedDataParallel):
            apart, scale = wrapped.no_sync(), 1
        else:  # strategies that shard average over ranks where we want the sum
            apart, scale = nullcontext(), self.trainer.world_size
        batches = self.micro_batches(whole, rows)
        found: dict[str, list[torch.Tensor]] = defaultdict(list)
        with apart:
            for batch, counts in self.in_step(batches):
                loss, metrics = loss_of(batch)
                self.manual_backward(loss * scale if counts else loss * 0)
                for name, value in {**metrics, "loss": loss}.items() if counts else ():
                    found[name].append(value.detach())
        return batches, found

    def in_step(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
        """Micro-batches, each with whether it counts.

        Where weights are sharded, all ranks must pass through them equally often; who has done repeats the last one.
        """
        most = highest(len(batches), self.device) if self.policy.sharded else len(batches)
        yield from ((batch, True) for batch in batches)
        yield from ((batches[-1], False) for _ in range(most - len(batches)))

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
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
            for work in [all_reduce(gradient, async_op=True) for gradient in gradients]:
                work.wait()
            self.stopwatch.lap("communication")
        return clipped_step(optimizer, schedule, self.optimizer.max_grad_norm)

    def _skip(self, whole: Sequences, batches: Sequence[MicroBatch], losses: Sequence[torch.Tensor]) -> None:
        """Count a step that was skipped, and write out the rows it was of."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        bad = [batch for batch, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        about = {"rollout_step": self.rollout_step, "rank": self.global_rank, "loss_is_finite": not bad}
        own = [{**about, **row} for row in texts(whole, bad or batches, self.policy)]
        rows = [row for rank in every_rank(own) for row in rank]
        path = self.folder / SKIPPED
        if self.trainer.is_global_zero:
            append(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.say(f"the gradient of rollout step {self.rollout_step} is not finite: skipped; its rows are in {path}")
        if self.skipped_in_a_row >= self.optimizer.max_skipped_steps:
            raise UserError(
                f"the gradient was not finite in {self.skipped_in_a_row} optimizer steps running "
                f"(optimizer.max_skipped_steps); look at the rows in {str(path)!r}, or lower optimizer.lr"
            )

    def meet(self) -> None:
        """Wait for all ranks, and count how long as waiting."""
        if self.trainer.world_size > 1:
            self.trainer.strategy.barrier()
            self.stopwatch.lap("waiting")

    def together(self, work: Callable[[], T]) -> list[T]:
        """What each rank makes of `work`, in their order.

        Raises:
            UserError: That of the first rank that refused, on all of them: none waits for one that has gone.
        """
        own: T | UserError
        try:
            own = work()
        except UserError as error:
            own = error
        self.meet()
        found = every_rank(own)
        for one in found:
            if isinstance(one, UserError):
                raise one
        return [one for one in found if not isinstance(one, UserError)]

    def rollout_seed(self) -> int:
        """A seed of its own for every rank and rollout step, so that a resumed run draws what it would have drawn."""
        return (torch.initial_seed() * 1_000_003 + self.rollout_step * 1009 + self.global_rank) % 2**63

    def say(self, line: str) -> None:
        """Tell the user something once, whatever the number of ranks."""
        rank_zero_info(line)

    def log_step(self, metrics: dict[str, Any], *shown: str) -> None:
        """Log a training batch under both clocks, with where its time went; `shown` appear in the progress bar too."""
        seconds = dict(self.stopwatch.seconds)
        if self.policy.traffic is not None:
            seconds["communication"] = self.policy.traffic.take()
        metrics = {**metrics, **{f"timing/{stage}": value for stage, value in seconds.items()}}
        clocks = {"rollout_step": float(self.rollout_step), "optimizer_step": float(self.global_step)}
        due = (self.rollout_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self._log_row({**metrics, **clocks}, self.rollout_step, shown, due=due)

    def _log_row(self, metrics: dict[str, Any], step: int, shown: Sequence[str] = (), *, due: bool = True) -> None:
        """Average metrics over ranks, show them, and write a row.

        Not by Lightning's own way: it would write the row only after a checkpoint was, and reduce every number alone.
        """
        values = averages({name: float(value) for name, value in metrics.items()}, self.device)
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, logger=False, batch_size=1)
        if due and not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step)

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; scored at the end of the epoch."""
        self._scored += self.draw(prompts, self.greedy, seed=0).completions

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
        completions = self._everyones()
        scores = {f"{stage}/{name}": value for name, value in self.scorer(completions).items()}
        if self.trainer.state.fn == "fit":
            self._log_row(scores, max(self.rollout_step - 1, 0))
        else:
            for name, value in scores.items():
                self.log(name, value, sync_dist=True)

    def _everyones(self) -> list[Completion]:
        """The outputs of all ranks since the last call, in the order of the rows."""
        own, self._scored = self._scored, []
        if self.trainer.world_size == 1:
            return own
        # Rows were dealt out in turn, and the first dealt again to ranks that would have had fewer.
        turns = zip(*every_rank(own), strict=True)
        count = len(self.scored_examples(self.trainer.state.fn))
        return [completion for turn in turns for completion in turn][:count]

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        """Answer greedily; written at the end of the epoch."""
        self.validation_step(prompts, batch_idx)

    def on_predict_epoch_end(self) -> None:
        """Write id, source, output and references of each row to predictions.jsonl in the run's folder."""
        completions = self._everyones()
        if not self.trainer.is_global_zero:
            return
        rows = [
            {"id": row.id, "source": row.source, "output": completion.text, "references": row.references}
            for completion in completions
            for row in (completion.example,)
        ]
        make_folder(self.folder)
        path = self.folder / "predictions.jsonl"
        write_lines(path, rows)
        self.print(f"{len(completions)} outputs in {path}")

    def own_state(self) -> dict[str, Any]:
        """What this rank alone knows and a resumed run must have again, as JSON can hold it."""
        return {
            "skipped": [self.skipped, self.skipped_in_a_row],
            "micro_batch_tokens": self.micro_batch_tokens if self.micro_batch_tokens < self._asked_tokens else None,
            "sampling_parts": self.sampling_parts,
            "random": random_state(self.device),
        }

    def stands_on(self) -> dict[str, str]:
        """Hashes of what a resumed run must find as it was, by the field that names it."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return ground(self.policy, data.train_examples, self.encoders())

    def resume_state(self, state: dict[str, Any]) -> None:
        """Take up what `own_state` gave; the random numbers in `on_train_start`, after everything else has drawn."""
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.micro_batch_tokens = min(self.micro_batch_tokens, state["micro_batch_tokens"] or self.micro_batch_tokens)
        self.sampling_parts = state["sampling_parts"]
        self._resumed = state

    def on_train_start(self) -> None:
        """Go on with the random numbers of the checkpoint, if there is one."""
        state, self._resumed = self._resumed, None
        if state is None:
            return
        if seed_of(state["random"]) == torch.initial_seed():
            set_random_state(state["random"], self.device)
        else:
            self.say("seed_everything is another than the checkpoint's: what is drawn from here on will be other")

    def unsound(self) -> str | None:
        """Why the policy is none to be saved; None if it is one. All ranks must ask."""
        return unsound(self.policy, self.skipped_in_a_row, self.device)

    def save_policy(self, folder: Path) -> None:
        """Write what is trained to `folder`, whole or not at all; all ranks must call.

        Raises:
            UserError: It cannot be written.
        """
        weights = whole_tensors(self.policy.trained())
        if not self.trainer.is_global_zero:
            return
        replace_folder(folder, lambda part: self.policy.save(part, weights))
