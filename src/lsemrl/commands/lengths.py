"""Length limits for a user's rows, by their own lengths, and what these limits will touch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lsemrl.data.limits import Limits, describe

_LONGEST_CUT, _SHARE = 1024, 0.995
_USUAL, _ODD = 0.95, 4
"""What is so many times as long as nearly all is a mistake in the rows, or not worth the memory of a batch."""


def limits_of(lengths: Sequence[tuple[int, int]], *, cut: bool, bound: int | None) -> Limits:
    """Limits that hold the prompts and all but the longest targets, within what the policy reads.

    Args:
        lengths: Of the training rows, at least one.
        cut: Whether an input may be cut, as an article may and a sentence may not: then at 1,024 tokens.
        bound: How many tokens a prompt and an output may have together; None for any number.
    """
    prompts, targets = (sorted(each) for each in zip(*lengths, strict=True))
    prompt = _rounded(min(prompts[-1], _ODD * prompts[int(len(prompts) * _USUAL)]), 64)
    target = min(targets[int(len(targets) * _SHARE)], _ODD * targets[int(len(targets) * _USUAL)])
    prompt, target = min(prompt, _LONGEST_CUT) if cut else prompt, _rounded(target + 1, 8)
    if bound is not None and prompt + target > bound:
        target = min(target, max(bound // 2, bound - prompt))
        prompt = min(prompt, bound - target)
    return Limits(max_prompt_tokens=prompt, max_target_tokens=target, on_long="truncate" if cut else "skip")


def fitting(lengths: Iterable[tuple[int, int]], limits: Limits) -> int:
    """How many rows of these lengths are left to train on."""
    most = math.inf if limits.on_long == "truncate" else limits.max_prompt_tokens
    return sum(prompt <= most and target <= limits.max_target_tokens for prompt, target in lengths)


def foretold(
    task: str, lengths: Mapping[str, Sequence[tuple[int, int]]], report: Mapping[str, Mapping[str, int]], limits: Limits
) -> list[str]:
    """What `lsemrl fit` will say of each split with these limits.

    Args:
        task: Its name.
        lengths: For each split, see `prepared.Prepared`.
        report: Of rows without limits, see `prepared.Prepared`.
        limits: Those to come.
    """
    lines = []
    for name, rows in lengths.items():
        targets_over = sum(target > limits.max_target_tokens for _, target in rows)
        # Held-out rows are kept, however long the target.
        kept = [prompt for prompt, target in rows if name != "train" or target <= limits.max_target_tokens]
        prompts_over = sum(prompt > limits.max_prompt_tokens for prompt in kept)
        skipped = 0 if limits.on_long == "truncate" else prompts_over
        counts = {
            **report[name],
            "rows": len(kept) - skipped,
            "prompts_over": prompts_over,
            "prompts_truncated": prompts_over - skipped,
            "prompts_skipped": skipped,
            "targets_over": targets_over,
            "targets_skipped": targets_over if name == "train" else 0,
        }
        if rows:
            lines.append(describe(f"{task}/{name}", counts, limits))
    return lines


def _rounded(length: int, step: int) -> int:
    return -(-length // step) * step
