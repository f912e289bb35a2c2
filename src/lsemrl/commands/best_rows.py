"""A group drawn for every training row, and the best of it kept as a row to train on.

SFT on these rows is self-SFT: the policy's own words, chosen by the reward that RL would climb, without RL. It belongs
beside RL because on-policy data alone may be what keeps a model from forgetting (arXiv 2510.18874).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

from lsemrl.data.base import TaskData
from lsemrl.data.collate import encode
from lsemrl.files import make_folder, try_folder, write_lines
from lsemrl.reading import Unreadable, read_lines
from lsemrl.types import Rewards, Rollouts, UserError

if TYPE_CHECKING:
    from lsemrl.modules.grpo import GRPO

FILE = "best_of.jsonl"


def write_best(module: GRPO, data: TaskData, folder: Path) -> Path:
    """Write the best completion of every training row to best_of.jsonl, in the fields of its task.

    A completion that is empty or was cut at the length limit is never chosen; a row that has no other is left out.
    Each row also says the `reward` of its completion and the `mean_reward` of its group.

    Args:
        module: A GRPO run that has not started: its policy, sampling, rewards and how they are combined.
        data: Whose training rows are answered; their references only play the part that the rewards give them.
        folder: Made where it is missing.

    Returns:
        The file's path.

    Raises:
        UserError: `folder` cannot be written to, the rows have several inputs, or no completion could be kept.
    """
    from lsemrl.modules.legibility import check_run
    from lsemrl.modules.sampler import sample

    task = data.plan.task
    if len(task.inputs) > 1:
        raise UserError(
            f"data is of the task {task.name}, whose rows have {' and '.join(task.inputs)}; best-of answers rows of "
            "one input, such as translation's"
        )
    path = folder / FILE
    _check_file(path)
    try_folder(folder, "trainer.default_root_dir")
    policy = module.policy
    prepared = data.prepare(policy.tokenizer)
    checked = check_run(policy, data, ("train",), module.encoders(), module.sampling.max_new_tokens)
    for line in [*prepared, *checked, *module.reward_mix.look_at(data.train_examples)]:
        print(line, file=sys.stderr)
    policy.load()
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    examples, size = data.train_examples, data.batch_size
    rows: list[dict[str, Any]] = []
    starts = range(0, len(examples), size)
    for at in track(starts, "answering", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        batch = encode(policy.tokenizer, examples[at : at + size]).to(module.device)
        rollouts = sample(policy, batch, module.sampling, module.rollout_seed())
        rows += _best(
            rollouts, module.reward_mix(rollouts.completions, rollouts.num_generations), task.inputs[0], task.target
        )
        module.rollout_step += 1
    if not rows:
        raise UserError(
            f"none of {len(examples)} rows has a completion that ended by itself and has a reward; raise "
            "sampling.max_new_tokens, or start from a policy that answers"
        )
    make_folder(folder, "trainer.default_root_dir")
    write_lines(path, rows)
    means = [sum(row[name] for row in rows) / len(rows) for name in ("reward", "mean_reward")]
    print(
        f"{len(rows):,} of {len(examples):,} rows kept; mean reward {means[0]:.3f} of the best of "
        f"{module.sampling.num_generations}, {means[1]:.3f} of all\n{path}"
    )
    return path


def _check_file(path: Path) -> None:
    """Refuse to replace rows that this has not written."""
    if not path.exists():
        return
    try:
        own = {"reward", "mean_reward"} <= json.loads(next(iter(read_lines(path)), "")).keys()
    except (Unreadable, ValueError, AttributeError):
        own = False
    if not own:
        raise UserError(f"{str(path)!r} holds rows of another kind, and would be replaced; move it away")


def _best(rollouts: Rollouts, rewards: Rewards, source: str, target: str) -> list[dict[str, Any]]:
    group = rollouts.num_generations
    spoken = torch.tensor([one.ended and bool(one.text.strip()) for one in rollouts.completions])
    fit_BG = rewards.total_N.masked_fill(~spoken | rewards.total_N.isnan(), -torch.inf).view(-1, group)
    rows = []
    for at, (fit_G, plain_G) in enumerate(zip(fit_BG, rewards.plain_N.view(-1, group), strict=True)):
        best = int(fit_G.argmax())
        if fit_G[best].isfinite():
            chosen = rollouts.completions[group * at + best]
            row = {"id": chosen.example.id, source: chosen.example.source, target: chosen.text}
            rows.append(row | {"reward": float(plain_G[best]), "mean_reward": float(plain_G.nanmean())})
    return rows
