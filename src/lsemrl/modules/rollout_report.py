"""What is told of a batch of rollouts: samples of it to read, and numbers."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import torch
from torch import Tensor

from lsemrl.canonical import canonical
from lsemrl.files import append
from lsemrl.foreign import cell, markdown
from lsemrl.modules.ranks import every_rank
from lsemrl.rewards.guards import CopyOfSource
from lsemrl.scripts import units
from lsemrl.types import Completion, Rewards, Rollouts


def append_samples(path: Path, step: int, rollouts: Rollouts, rewards: Rewards, advantages_N: Tensor) -> None:
    """Add the completions of the first two prompts to a table, with the parts of their rewards.

    Args:
        path: A CSV file, begun where it is missing.
        step: The rollout step.
        rollouts: The batch.
        rewards: Of its completions, and perhaps of others behind them.
        advantages_N: Of its completions.

    Raises:
        UserError: It cannot be written.
    """
    columns = ["rollout_step", "id", "source", "reference", "completion", "ended", "reward", "advantage"]
    text = io.StringIO()
    table = csv.writer(text)
    if not path.exists() or not path.stat().st_size:
        table.writerow([*columns, *map(cell, rewards.parts_N)])
    for row, completion in enumerate(rollouts.completions[: 2 * rollouts.num_generations]):
        example = completion.example
        numbers = [rewards.plain_N[row], advantages_N[row], *(part_N[row] for part_N in rewards.parts_N.values())]
        table.writerow(
            [step, *map(cell, (example.id, example.source, example.reference, completion.text)), completion.ended]
            + [f"{number:.4f}" for number in numbers]
        )
    append(path, text.getvalue())


def samples_page(rollouts: Rollouts, rewards: Rewards) -> str:
    """The completions of the first prompt with the parts of their rewards, as Markdown."""
    first = rollouts.completions[0].example
    names = list(rewards.parts_N)
    lines = [
        f"**{markdown(first.source)}** → {markdown(first.reference)}",
        "",
        f"| completion | reward | {' | '.join(map(markdown, names))} |",
        f"|---|---:|{'---:|' * len(names)}",
    ]
    for row, completion in enumerate(rollouts.completions[: rollouts.num_generations]):
        numbers = (rewards.plain_N[row], *(rewards.parts_N[name][row] for name in names))
        lines.append(f"| {markdown(completion.text)} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(lines)


def reward_metrics(rewards: Rewards, num_generations: int) -> dict[str, Tensor]:
    """Means and deviations, of the whole and of its parts."""
    # Without the siblings that no part applies to, as groups are compared.
    deviations_B = torch.stack([_deviation(own_G[~own_G.isnan()]) for own_G in rewards.plain_N.split(num_generations)])
    parts = {
        f"rewards/{name}/{statistic}": value
        for name, part_N in rewards.parts_N.items()
        for statistic, value in (("mean", part_N.nanmean()), ("std", _deviation(part_N[~part_N.isnan()])))
    }
    return {"reward": rewards.plain_N.nanmean(), "reward_std": deviations_B.nanmean(), **parts}


def _deviation(known_K: Tensor) -> Tensor:
    """NaN of fewer than two, without torch's warning."""
    return known_K.std() if len(known_K) > 1 else torch.tensor(torch.nan)


def completion_metrics(rollouts: Rollouts) -> dict[str, Tensor | float]:
    """Lengths and likeness over all ranks, which must ask together; of this rank's own how many were cut, and padding.

    Returns:
        Among them `completions/copied`, the mean of what `CopyOfSource` takes off, NaN where it does not apply; see
        `likeness` too.
    """
    own_N = rollouts.sequences.completion_mask_NT.sum(dim=1).float()
    # Copies are looked for by each rank in its own, as that takes longest.
    own = own_N.cpu(), rollouts.completions, 1 - CopyOfSource()(rollouts.completions)
    lengths, said, copied = zip(*every_rank(own), strict=True)
    lengths_N, completions = torch.cat(lengths), list(chain.from_iterable(said))
    return {
        "completions/mean_length": lengths_N.mean(),
        "completions/min_length": lengths_N.min(),
        "completions/max_length": lengths_N.max(),
        "completions/clipped_ratio": 1 - rollouts.ended_N.float().mean(),
        "completions/duplicates": 1 - len({canonical(one.text) for one in completions}) / len(completions),
        **likeness(completions),
        "completions/copied": torch.cat(copied).nanmean(),
        "num_tokens": lengths_N.sum(),
        "padding/rollout": 1 - own_N.sum() / rollouts.slots,
    }


def likeness(completions: Sequence[Completion]) -> dict[str, float]:
    """How much completions are like each other over prompts, beyond what references are.

    Returns:
        `completions/shared`, the share of completions that another prompt got too, but for those that are references,
        NaN of a single prompt;
        `completions/template`, of all pairs of neighbouring units the most that one is in more completions than first
        references, as shares over the prompts but for the one that has most of it, whose own words it may be, NaN where
        fewer than two prompts have references.
    """
    askers: dict[str, set[str]] = {}
    for one in completions:
        askers.setdefault(canonical(one.text), set()).add(one.example.prompt)
    shared = [
        len(askers[canonical(one.text)]) > 1 and canonical(one.text) not in map(canonical, one.example.references)
        for one in completions
    ]
    excess: dict[tuple[str, str], Counter[str]] = {}  # of each pair, by prompt
    answered = [one for one in completions if one.example.references]
    for one in answered:
        said, meant = (set(pairwise(units(text))) for text in (one.text, one.example.reference))
        for pair in said ^ meant:
            excess.setdefault(pair, Counter())[one.example.prompt] += 1 if pair in said else -1
    many = Counter(one.example.prompt for one in answered)
    shares = [[count / many[asker] for asker, count in each.items()] for each in excess.values()]
    most = max((sum(each) - max(each) for each in shares), default=0.0)
    return {
        # Of a single prompt nothing can be said, and of rows without references nothing is known.
        "completions/shared": sum(shared) / len(shared)
        if len({one.example.prompt for one in completions}) > 1
        else math.nan,
        "completions/template": max(most, 0.0) / (len(many) - 1) if len(many) > 1 else math.nan,
    }
