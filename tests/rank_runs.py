"""A few steps in one process or on two gloo ranks, on the same global batches and completions.

Completions follow from the example alone: ranks would draw others than one process. Those of every second row of the
order, which are what the second of two ranks is given, are all rewarded alike.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import destroy_process_group, get_rank, init_process_group
from torch.nn.parallel import DistributedDataParallel

from lsemrl.data.samplers import epoch_sampler
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules import base, grpo
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.gradients import sum_gradients
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sharding import whole_tensors
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.rewards import Reward
from lsemrl.types import Completion, PromptBatch, Rollouts, Sequences

ROWS, BATCH, GROUP, LONGEST = 12, 4, 4, 9


class Invented(Reward):
    """A number for every completion, which it counts; the same for all siblings of the rows in `tied`."""

    def __init__(self) -> None:
        super().__init__()
        self.tied: set[str] = set()
        self.count = 0.0

    @property
    def counters(self) -> dict[str, float]:
        return {"scored": self.count}

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        self.count += len(completions)
        return torch.tensor(
            [
                0.5 if one.example.id in self.tied else zlib.crc32(f"{one.example.id} {one.text}".encode()) / 2**32
                for one in completions
            ]
        )


def invent(policy: Policy, prompts: PromptBatch, sampling: Sampling, seed: int) -> Rollouts:
    """Completions of unlike lengths that follow from their examples."""
    rows, lengths = [], []
    for example in prompts.examples:
        generator = torch.Generator().manual_seed(zlib.crc32(example.id.encode()))
        for _ in range(sampling.num_generations):
            lengths.append(int(torch.randint(1, LONGEST + 1, (1,), generator=generator)))
            rows.append(torch.randint(10, 1000, (LONGEST,), generator=generator))
    mask_NT = torch.arange(LONGEST) < torch.tensor(lengths)[:, None]
    ids_NT = torch.stack(rows).masked_fill(~mask_NT, policy.tokenizer.pad_token_id)
    examples = [example for example in prompts.examples for _ in range(sampling.num_generations)]
    return Rollouts(
        completions=tuple(
            Completion(text=str(ids.tolist()), ended=True, example=example)
            for ids, example in zip(ids_NT, examples, strict=True)
        ),
        sequences=Sequences(
            prompt_ids_BP=prompts.prompt_ids_BP,
            prompt_mask_BP=prompts.prompt_mask_BP,
            prompt_of_N=torch.arange(len(examples)) // sampling.num_generations,
            completion_ids_NT=ids_NT,
            completion_mask_NT=mask_NT,
        ),
        ended_N=torch.ones(len(examples), dtype=torch.bool),
        logprobs_NT=torch.zeros(mask_NT.shape),
        num_generations=sampling.num_generations,
        slots=int(mask_NT.sum()),
    )


def train(words: list[str]) -> None:
    """Train, and write what was trained.

    Args:
        words: A model's folder, that of the run, one | ddp | fsdp | fsdp_streamed, lora | full, a file of own text, and
            a checkpoint or never.
    """
    model, folder, layout, trained, own_text, resume = words
    torch.manual_seed(5)
    reward = Invented()
    module = grpo.GRPO(
        rewards={"invented": reward},
        policy=PolicySettings(
            model=model,
            train=trained,  # type: ignore[arg-type]
            lora=LoraSettings(rank=4, alpha=8.0, dropout=0.0),
            reference="initial",
            ref_model_sync_steps=2,
            ref_model_mixup_alpha=0.6,
            gather_for_sampling=layout != "fsdp_streamed",
        ),
        sampling=Sampling(num_generations=GROUP, temperature=1.0, max_new_tokens=LONGEST),
        loss=LossSettings(beta=0.1),
        optimizer=OptimizerSettings(lr=1e-3, warmup_ratio=0.0, schedule="constant"),
        metrics=MetricSettings(names=("chrf",)),
        num_iterations=2,
        micro_batch_tokens=60,
        samples_every=1,
        # Rows that two ranks cannot share alike. After full fine-tuning no base is left to ask.
        anchor=AnchorSettings(path=own_text, coefficient=0.5, rows=5, top_k=0 if trained == "lora" else 8),
    )
    if os.environ.get("LOCAL_RANK", "0") != "0":
        torch.manual_seed(6)  # a rank that nobody has told the seed
    world = 1 if layout == "one" else 2
    data = TranslationData(micro=MicroRows(train=ROWS, validation=5, test=4), batch_size=BATCH // world)
    data.prepare(module.policy.tokenizer)
    order = list(epoch_sampler(ROWS, data.loading.seed))
    reward.tied = {data.train_examples[at].id for at in order[1::2]}
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    strategies = {"one": "auto", "ddp": DDPStrategy(process_group_backend="gloo")}
    trainer = Trainer(
        strategy=strategies.get(layout, sharded),
        devices=world,
        accelerator="cpu",
        max_epochs=1,
        logger=MetricsLog(folder),
        log_every_n_steps=1,
        callbacks=[Checkpoints(every_n_steps=2, keep=9, resume=resume)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )

    def sample_too(policy: Policy, prompts: PromptBatch, sampling: Sampling, seed: int, parts: int) -> Rollouts:
        sample(policy, prompts, sampling, seed, parts)  # for its collectives: ranks draw unlike completions
        return invent(policy, prompts, sampling, seed)

    base.sample = sample_too
    trainer.fit(module, datamodule=TrainerData(data))
    weights = whole_tensors(module.policy.trained())
    if trainer.is_global_zero:
        save_file(weights, Path(folder, "weights.safetensors"))


def add_up(words: list[str]) -> None:
    """Print the summed gradients of three experts: each rank's tokens come to one of its own, none to the third."""
    init_process_group("gloo")
    rank = get_rank()
    experts = torch.nn.ModuleList(torch.nn.Linear(2, 1, bias=False) for _ in range(3))
    wrapped = DistributedDataParallel(experts)
    with wrapped.no_sync():
        experts[rank](torch.full((1, 2), 10.0**rank)).sum().backward()
    assert sum_gradients(wrapped, experts)
    print([None if weight.grad is None else weight.grad.tolist() for weight in experts.parameters()])
    # As the last to hold the group it would wait, with the interpreter's lock, for a thread that waits for that.
    del wrapped
    destroy_process_group()
