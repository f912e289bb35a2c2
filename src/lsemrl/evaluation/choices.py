"""Multiple choice: which of several texts a policy holds for the likeliest answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lsemrl.data.collate import encode
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.likelihood import nll_of
from lsemrl.modules.policy import Policy
from lsemrl.types import Example, Sequences


def score_choices(policy: Policy, examples: Sequence[Example], batches: Batches) -> dict[str, tuple[float, ...]]:
    """Score each question by the log-probabilities of its choices.

    The EOS counts: without it a choice that begins another one would always be the likelier of the two.

    Args:
        policy: As it stands.
        examples: With choices, the first reference among them.
        batches: Of choices, of one question at least.

    Returns:
        Of each question: accuracy, 1 where the right choice has the highest log-probability; accuracy_per_token,
        likewise by the mean over its tokens; chance, what guessing gives. NaN where a log-probability is not finite.
    """
    rows: dict[str, list[float]] = {"accuracy": [], "accuracy_per_token": [], "chance": []}
    for example, (sums_C, lengths_C) in zip(examples, _logprobs(policy, examples, batches), strict=True):
        right = example.choices.index(example.reference)
        rows["accuracy"].append(_is_best(sums_C, right))
        rows["accuracy_per_token"].append(_is_best(sums_C / lengths_C, right))
        rows["chance"].append(1 / len(example.choices))
    return {name: tuple(each) for name, each in rows.items()}


def _is_best(scores_C: Tensor, right: int) -> float:
    return float(scores_C.argmax() == right) if scores_C.isfinite().all() else math.nan


def _logprobs(policy: Policy, examples: Sequence[Example], batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Of each question, the log-probabilities of its choices in nats, and their lengths in tokens, [C]."""
    most = max((len(example.choices) for example in examples), default=1)

    def known(rows: Sequence[Example], number: int) -> list[tuple[list[float], list[int]]]:
        sequences = _sequences(policy, rows)
        sums_N = -nll_of(policy, sequences).double().sum(dim=1)
        lengths_N = sequences.completion_mask_NT.sum(dim=1)
        counts = [len(row.choices) for row in rows]
        each = zip(sums_N.split(counts), lengths_N.split(counts), strict=True)
        return [(sums_C.tolist(), lengths_C.tolist()) for sums_C, lengths_C in each]

    found = batches.each(examples, known, max(1, batches.size // most))
    return [(torch.tensor(sums_C, dtype=torch.float64), torch.tensor(lengths_C)) for sums_C, lengths_C in found]


def _sequences(policy: Policy, rows: Sequence[Example]) -> Sequences:
    """Every choice as a completion of its question, whose prompt they share."""
    device = next(policy.parameters()).device
    texts = [replace(row, references=(choice,)) for row in rows for choice in row.choices]
    batch = encode(policy.tokenizer, texts).to(device)
    counts = torch.tensor([len(row.choices) for row in rows], device=device)
    firsts = counts.cumsum(0) - counts
    return replace(
        batch.sequences,
        prompt_ids_BP=batch.prompt_ids_BP[firsts],
        prompt_mask_BP=batch.prompt_mask_BP[firsts],
        prompt_of_N=torch.arange(len(rows), device=device).repeat_interleave(counts),
    )
