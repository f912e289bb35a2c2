"""The alignment tax: what a policy gained on the new task, and what it lost of what the base model could do.

Everything is measured against the ORIGINAL base, on the same rows for every arm: reading comprehension by greedy
answers and by the NLL of the gold answers, and KL(policy || base), exact over the vocabulary, along fixed texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsemrl.data.collate import encode
from lsemrl.evaluation.scorer import MetricSettings, Scorer
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import Sampling, sample
from lsemrl.types import Completion, Example, PromptBatch


@dataclass(frozen=True, kw_only=True)
class Battery:
    """The rows that every arm is measured on.

    Attributes:
        target: The new task.
        general: Reading comprehension in the language the base knows.
        text: Plain text in that language, as a first sentence and what follows it.
    """

    target: tuple[Example, ...]
    general: tuple[Example, ...]
    text: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one policy scored on a battery.

    Attributes:
        target: Scores on the new task, in [0, 1].
        general: CMRC exact match, F1, their average, answer length in characters, mean NLL of the gold answers.
        nll: NLL of each gold answer, nats per token.
        kl: KL(policy || base) in nats per token along the gold outputs of `target` and `general`, and along `text`.
        outputs: Greedy outputs on the new task.
    """

    target: dict[str, float]
    general: dict[str, float]
    nll: tuple[float, ...]
    kl: dict[str, float]
    outputs: tuple[Completion, ...]


def scores(
    policy: Policy, battery: Battery, scorer: Scorer, max_new_tokens: int, batch_size: int = 100
) -> tuple[dict[str, float], dict[str, float], list[Completion]]:
    """What greedy outputs alone can tell: scores on `target`, scores on `general`, and the outputs on `target`."""
    outputs = answer(policy, battery.target, max_new_tokens, batch_size)
    general = CMRC(answer(policy, battery.general, max_new_tokens, batch_size))
    return scorer(outputs), {name: general[name] for name in ("em", "f1", "average", "answer_length")}, outputs


def measure(
    policy: Policy, battery: Battery, scorer: Scorer, max_new_tokens: int, batch_size: int = 100
) -> Measurement:
    """Measure the policy as it stands; the base is the same policy with its training switched off."""
    target, general, outputs = scores(policy, battery, scorer, max_new_tokens, batch_size)
    nll = gold_nll(policy, battery.general, batch_size)
    return Measurement(
        target=target,
        general={**general, "nll": float(nll.mean())},
        nll=tuple(nll.tolist()),
        kl={
            name: kl_to_base(policy, examples, batch_size)
            for name, examples in (("target", battery.target), ("general", battery.general), ("text", battery.text))
        },
        outputs=tuple(outputs),
    )


_CHUNK = 1024
"""Tokens whose distributions over the vocabulary are held at once."""

CMRC = Scorer(MetricSettings(names=("cmrc",)))
"""Scores answers to reading comprehension."""


def answer(policy: Policy, examples: Sequence[Example], max_new_tokens: int, batch_size: int) -> list[Completion]:
    """Greedy outputs, one for each example, in order."""
    greedy = Sampling(num_generations=1, temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
    return [
        completion
        for prompts in _batches(policy, examples, batch_size)
        for completion in sample(policy, prompts, greedy, seed=0).completions
    ]


def gold_nll(policy: Policy, examples: Sequence[Example], batch_size: int) -> Tensor:
    """Mean negative log-likelihood per token of each first reference with its EOS: float32 [len(examples)], nats."""
    pieces = []
    with policy.inference():
        for prompts in _batches(policy, examples, batch_size):
            sequences = prompts.sequences
            logprobs_NT, _ = policy.logprobs(sequences)
            pieces.append(-logprobs_NT.sum(dim=1) / sequences.completion_mask_NT.sum(dim=1))
    return torch.cat(pieces).cpu()


def kl_to_base(policy: Policy, examples: Sequence[Example], batch_size: int) -> float:
    """KL(policy || base) in nats per token along the first references: RL's Razor (arXiv 2509.04259) ties it to tax."""
    total, tokens = 0.0, 0
    for prompts in _batches(policy, examples, batch_size):
        sequences = prompts.sequences
        with policy.inference():
            now = policy.predictions(sequences)
        with policy.base():
            then = policy.predictions(sequences)
        length = int(sequences.completion_mask_NT.sum())
        with torch.no_grad():
            for at in range(0, length, _CHUNK):
                chunk = slice(at, at + _CHUNK)
                now_CV, then_CV = now(chunk).log_softmax(dim=-1), then(chunk).log_softmax(dim=-1)
                total += float((now_CV.exp() * (now_CV - then_CV)).sum())
        tokens += length
    return total / tokens


def _batches(policy: Policy, examples: Sequence[Example], size: int) -> Iterator[PromptBatch]:
    device = next(policy.parameters()).device
    for at in range(0, len(examples), size):
        yield encode(policy.tokenizer, examples[at : at + size]).to(device)
