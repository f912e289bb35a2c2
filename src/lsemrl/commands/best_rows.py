"""A group drawn for every training row, and the best of it kept as a row to train on.

SFT on these rows is self-SFT: the policy's own words, chosen by the reward that RL would climb, without RL. It belongs
beside RL because on-policy data alone may be what keeps a model from forgetting (arXiv 2510.18874).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track

from lsemrl import __version__
from lsemrl.data.base import TaskData
from lsemrl.data.collate import encode
from lsemrl.devices import computing_device
from lsemrl.evaluation.measurement import hash_rows
from lsemrl.files import make_folder, try_folder, write_lines
from lsemrl.json_records import UNREADABLE
from lsemrl.reading import read_lines
from lsemrl.types import Rewards, Rollouts, UserError
from lsemrl.unfinished import Unfinished

if TYPE_CHECKING:
    from lsemrl.modules.grpo import GRPO

FILE = "best_of.jsonl"


def write_best(module: GRPO, data: TaskData, folder: Path, asked: Mapping[str, Any]) -> Path:
    """Write the best completion of every training row to best_of.jsonl, in the fields of its task.

    A completion that is empty, was cut at the length limit or is shut out by a gate is never chosen; a row that has no
    other is left out. Each row also says the `reward` of its completion and the `mean_reward` of its group. A command
    that was interrupted goes on after its last whole batch when it is given again.

    Args:
        module: A GRPO run that has not started: its policy, sampling, rewards and how they are combined.
        data: Whose training rows are answered; their references only play the part that the rewards give them.
        folder: Made where it is missing.
        asked: Whatever else decides: a command that was interrupted with another is not gone on from.

    Returns:
        The file's path.

    Raises:
        UserError: `folder` cannot be written to, the rows have several inputs, or no completion could be kept.
    """
    from lsemrl.modules.ground import ground
    from lsemrl.modules.legibility import check_run
    from lsemrl.modules.random_state import rollout_seed

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
    examples, size = data.train_examples, data.batch_size
    make_folder(folder, "trainer.default_root_dir")
    with Unfinished(path) as part:
        policy.load()
        module.to(computing_device())
        rows_of = {"lsemrl": __version__, "task": task.name, "rows": hash_rows(examples).sha256, "batch_size": size}
        stands_on = ground(policy, examples, module.encoders(), module.languages(), module.given)
        part.take_up({**asked, **rows_of, **stands_on})
        if part.lines:
            _go_on(module, part.lines)
        starts = range(len(part.lines) * size, len(examples), size)
        for at in track(starts, "answering", console=Console(stderr=True), disable=not sys.stderr.isatty()):
            batch = encode(policy.tokenizer, examples[at : at + size]).to(module.device)
            rollouts = module.draw(batch, module.sampling, rollout_seed(module.rollout_step, module.global_rank))
            rewards = module.reward_mix(rollouts.completions, rollouts.num_generations)
            best, left = _best(rollouts, rewards, task.inputs[0], task.target)
            stands = {"sampling_parts": module.sampling_parts, "rewards": module.reward_mix.state()}
            part.add(json.dumps({"best": best, "left": left, **stands}, ensure_ascii=False))
            module.rollout_step += 1
        batches = [json.loads(line) for line in part.lines]
        rows = [row for batch in batches for row in batch["best"]]
        if rows:
            write_lines(path, rows)
    left_out = Counter[str]()
    for batch in batches:
        left_out.update(batch["left"])
    if not rows:
        raise UserError(
            f"none of {len(examples)} rows has a completion that ended by itself, has a reward and passes every gate; "
            "raise sampling.max_new_tokens, or start from a policy that answers"
        )
    means = [sum(row[name] for row in rows) / len(rows) for name in ("reward", "mean_reward")]
    why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    print(
        f"{len(rows):,} of {len(examples):,} rows kept{f' (left out: {why})' if why else ''}; mean reward "
        f"{means[0]:.3f} of the best of {module.sampling.num_generations}, {means[1]:.3f} of its group, as far as it "
        f"could be kept\n{path}"
    )
    return path


def _check_file(path: Path) -> None:
    """Refuse to replace rows that this has not written."""
    if not path.exists():
        return
    try:
        own = {"reward", "mean_reward"} <= json.loads(next(iter(read_lines(path)), "")).keys()
    except UNREADABLE:
        own = False
    if not own:
        raise UserError(f"{str(path)!r} holds rows of another kind, and would be replaced; move it away")


def _go_on(module: GRPO, batches: Sequence[str]) -> None:
    """Have the module stand where it stood behind the last of `batches`."""
    last = json.loads(batches[-1])
    module.rollout_step, module.sampling_parts = len(batches), last["sampling_parts"]
    module.reward_mix.resume(last["rewards"])
    print(f"{len(batches):,} batches were answered already", file=sys.stderr)


def _best(
    rollouts: Rollouts, rewards: Rewards, source: str, target: str
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows that can be kept, and how many of the others cannot be for which reason."""
    group = rollouts.num_generations
    spoken_N = torch.tensor([one.ended and bool(one.text.strip()) for one in rollouts.completions])
    paid_N = spoken_N & ~rewards.total_N.isnan()
    fit_N = paid_N & rewards.open_N
    fit_BG = rewards.total_N.masked_fill(~fit_N, -torch.inf).view(-1, group)
    plain_BG = rewards.plain_N.masked_fill(~fit_N, torch.nan).view(-1, group)
    rows = []
    for at, (fit_G, plain_G) in enumerate(zip(fit_BG, plain_BG, strict=True)):
        best = int(fit_G.argmax())
        if fit_G[best].isfinite():
            chosen = rollouts.completions[group * at + best]
            row = {"id": chosen.example.id, source: chosen.example.source, target: chosen.text}
            rows.append(row | {"reward": float(plain_G[best]), "mean_reward": float(plain_G.nanmean())})
    spoken, paid = (int(of_N.view(-1, group).any(dim=1).sum()) for of_N in (spoken_N, paid_N))
    return rows, {
        "of which none ended with a text": len(fit_BG) - spoken,
        "of which none has a reward": spoken - paid,
        "all of which a gate shuts out": paid - len(rows),
    }
