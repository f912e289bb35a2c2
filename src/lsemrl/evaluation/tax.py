"""The alignment tax: what a policy gained on the new task, and what it lost of what the base model could do.

Everything is measured against the ORIGINAL base, on the same rows for every arm: reading comprehension by greedy
answers and by the NLL of the gold answers, and the KL divergence both ways, exact over the vocabulary, along fixed
texts and along what the policy itself says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lsemrl.data.collate import encode
from lsemrl.data.splits import evenly
from lsemrl.data.task import ScoredBy
from lsemrl.data.tokens import target_ids
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.choices import score_choices
from lsemrl.evaluation.general import score_answers, score_leaks, signatures
from lsemrl.evaluation.likelihood import CHUNK, nll_of
from lsemrl.evaluation.measurement import Divergence
from lsemrl.metrics.corpus import means_of
from lsemrl.metrics.scorer import Scorer
from lsemrl.modules.adapters.merging import adapted_weights
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.rewards.guards import guarded
from lsemrl.types import Completion, Example, PromptBatch, Sequences


@dataclass(frozen=True, kw_only=True)
class Battery:
    """The rows that every arm is measured on.

    Attributes:
        target: The new task.
        general: What the base can do and might forget; none where the gain alone is asked.
        text: Plain text in a language it knows, as a first sentence and what follows it; likewise.
        scored_by: What `general` is scored by (see `Task`).
        general_name: What reports call it.
    """

    target: tuple[Example, ...]
    general: tuple[Example, ...] = ()
    text: tuple[Example, ...] = ()
    scored_by: ScoredBy = "answers"
    general_name: str = ""

    @property
    def parts(self) -> dict[str, tuple[Example, ...]]:
        """Those that there are, by name."""
        parts = {"target": self.target, "general": self.general, "text": self.text}
        return {name: rows for name, rows in parts.items() if rows}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one policy scored on a battery.

    Attributes:
        target: Scores on the new task.
        target_rows: The same row by row, where a score has such values.
        target_counts: What each row adds to a score that is made of sums.
        general: Scores of general ability (see `general`), the share of answers in the new task's language as leak, and
            the mean NLL of the gold answers.
        general_rows: The same of each question, nll in nats per token.
        general_signatures: How they were computed.
        divergence: Along the gold outputs of "target" and "general", along "text", and along "own": outputs on the new
            task that the policy draws itself, at temperature 1 and from one seed.
        weight_change: See `weight_change`.
        outputs: What it says on the new task, greedily or by beams.
        answers: What it answers to the questions, likewise.
    """

    target: dict[str, float]
    target_rows: dict[str, tuple[float, ...]]
    target_counts: dict[str, tuple[tuple[float, ...], ...]]
    general: dict[str, float]
    general_rows: dict[str, tuple[float, ...]]
    general_signatures: dict[str, str]
    divergence: dict[str, Divergence]
    weight_change: float
    outputs: tuple[Completion, ...]
    answers: tuple[Completion, ...]

    @property
    def kl(self) -> dict[str, float]:
        """KL(policy || base) by text."""
        return {name: each.to_base for name, each in self.divergence.items()}


def scores(
    policy: Policy, battery: Battery, scorer: Scorer, sampling: Sampling
) -> tuple[dict[str, float], dict[str, float]]:
    """What outputs alone can tell: scores on `target` and scores on `general`."""
    batches = Batches()
    outputs = answer(policy, battery.target, sampling, batches)
    return scorer(outputs), means_of(_general(policy, battery, sampling, batches)[0])


def measure(
    policy: Policy,
    battery: Battery,
    scorer: Scorer,
    sampling: Sampling,
    batches: Batches | None = None,
    *,
    divergence_rows: int | None = None,
) -> Measurement:
    """Measure the policy as it stands; the base is the same policy with its training switched off.

    Args:
        policy: What is measured.
        battery: On what.
        scorer: Scores outputs on the new task.
        sampling: How it answers: greedily, or by beams.
        batches: How rows are gone through; with a large model each part takes minutes.
        divergence_rows: How many rows of the new task divergence is measured along, at even distances; None is all.
    """
    batches = batches or Batches()
    batches.begin(f"measuring: outputs on the new task, {len(battery.target):,} rows")
    outputs = answer(policy, battery.target, sampling, batches)
    target = scorer.score(outputs)
    if battery.general:
        batches.begin(f"measuring: {battery.general_name or 'general ability'}, {len(battery.general):,} questions")
    general, answers = _general(policy, battery, sampling, batches)
    nll = gold_nll(policy, battery.general, batches)
    general |= score_leaks(answers, battery.target, scorer.language) | ({"nll": nll} if nll else {})
    change = weight_change(policy)
    along = battery.parts | {"target": tuple(evenly(battery.target, divergence_rows or len(battery.target)))}
    if policy.adapted and policy.adapter is None and change == 0:  # it is the base
        counts = {name: len(examples) for name, examples in along.items()} | {"own": len(along["target"])}
        apart = {name: Divergence.none(count) for name, count in counts.items()}
    else:
        apart = _apart(policy, along, sampling, batches)
    return Measurement(
        target=target.corpus,
        target_rows=target.rows,
        target_counts=target.counts,
        general=means_of(general),
        general_rows=general,
        general_signatures=signatures(battery.scored_by, battery.general, battery.target, scorer.language),
        divergence=apart,
        weight_change=change,
        outputs=tuple(outputs),
        answers=tuple(answers),
    )


def _apart(
    policy: Policy, parts: Mapping[str, Sequence[Example]], sampling: Sampling, batches: Batches
) -> dict[str, Divergence]:
    """Divergences along each part, and along what the policy says itself."""
    own = replace(sampling, temperature=1.0, num_beams=1, num_generations=1)
    found = {}
    for name in (*parts, "own"):
        batches.begin(f"measuring: divergence from the base along {name}")
        drawn = own if name == "own" else None
        found[name] = divergence(policy, parts["target" if drawn else name], batches, drawn)
    return found


def _general(
    policy: Policy, battery: Battery, sampling: Sampling, batches: Batches
) -> tuple[dict[str, tuple[float, ...]], list[Completion]]:
    """What the policy scores in general ability, and its answers; none where it only chooses."""
    if battery.scored_by == "choices":
        return score_choices(policy, battery.general, batches), []
    answers = answer(policy, battery.general, sampling, batches)
    return score_answers(answers, battery.scored_by), answers


def answer(policy: Policy, examples: Sequence[Example], sampling: Sampling, batches: Batches) -> list[Completion]:
    """One output for each example, in order; beams as many rows at a time as there are without.

    Of several that beams find the first that is sound, see `guarded`.
    """
    group = sampling.num_generations

    def said(rows: Sequence[Example], number: int) -> list[tuple[str, bool]]:
        parts = min(sampling.num_beams, len(rows))
        completions = sample(policy, _prompts(policy, rows), sampling, seed=0, parts=parts).completions
        chosen = guarded([completions[at : at + group] for at in range(0, len(completions), group)])
        return [(completion.text, completion.ended) for completion in chosen]

    # A batch takes as long as its longest output, so that rows which are alike go together.
    longest_first = sorted(range(len(examples)), key=lambda row: len(examples[row].prompt), reverse=True)
    found = dict(zip(longest_first, batches.each([examples[row] for row in longest_first], said), strict=True))
    return [
        Completion(text=found[row][0], ended=found[row][1], example=example) for row, example in enumerate(examples)
    ]


def gold_nll(policy: Policy, examples: Sequence[Example], batches: Batches) -> tuple[float, ...]:
    """Negative log-likelihood of each first reference with its EOS, in nats for each token that the base has for it."""
    return tuple(batches.each(examples, partial(_nll, policy)))


def _nll(policy: Policy, rows: Sequence[Example], number: int) -> list[float]:
    # An adapter may bring words of its own: a text then has fewer tokens, each less likely, and is no less likely.
    tokens = map(len, target_ids(policy.base_tokenizer, [row.reference for row in rows]))
    nats: list[float] = nll_of(policy, _prompts(policy, rows).sequences).sum(dim=1).tolist()
    return [own / count for own, count in zip(nats, tokens, strict=True)]


def divergence(
    policy: Policy, examples: Sequence[Example], batches: Batches, drawn: Sampling | None = None
) -> Divergence:
    """KL between policy and base: RL's Razor (arXiv 2509.04259) ties it to the tax.

    Args:
        policy: As it stands.
        examples: Along their first references; with `drawn`, along what the policy answers.
        batches: How they are gone through.
        drawn: How it answers: at temperature 1, from its own distribution, a mean over it is an expectation.
    """

    def apart(rows: Sequence[Example], number: int) -> list[list[float]]:
        prompts = _prompts(policy, rows)
        return _kl(policy, sample(policy, prompts, drawn, seed=number).sequences if drawn else prompts.sequences)

    to_base_N, from_base_N, tokens_N = torch.tensor(batches.each(examples, apart), dtype=torch.float64).T
    return Divergence(
        to_base=float(to_base_N.sum() / tokens_N.sum()),
        from_base=float(from_base_N.sum() / tokens_N.sum()),
        to_base_rows=tuple((to_base_N / tokens_N).tolist()),
        from_base_rows=tuple((from_base_N / tokens_N).tolist()),
    )


def _kl(policy: Policy, sequences: Sequences) -> list[list[float]]:
    """Of each completion: KL(policy || base), KL(base || policy), as sums over its tokens, and how many those are."""
    with policy.inference():
        now = policy.predictions(sequences)
    with policy.base():
        then = policy.predictions(sequences)
    mask_NT = sequences.completion_mask_NT
    row_M = torch.arange(len(mask_NT), device=mask_NT.device)[:, None].expand_as(mask_NT)[mask_NT]
    sums_3N = torch.zeros(3, len(mask_NT), dtype=torch.float64, device=mask_NT.device)
    with torch.no_grad():
        for at in range(0, len(row_M), CHUNK):
            chunk = slice(at, at + CHUNK)
            now_CV, then_CV = now(chunk).log_softmax(dim=-1), then(chunk).log_softmax(dim=-1)
            apart_CV = now_CV - then_CV
            kl_3C = torch.stack(
                [
                    (now_CV.exp() * apart_CV).sum(dim=-1),
                    -(then_CV.exp() * apart_CV).sum(dim=-1),
                    torch.ones_like(apart_CV[:, 0]),
                ]
            )
            sums_3N.index_add_(1, row_M[chunk], kl_3C.double())
    return sums_3N.T.tolist()


def weight_change(policy: Policy) -> float:
    """||trained - base|| / ||base||, Frobenius norms: over the weights that adapters adapt, else over all weights."""
    if policy.adapted:
        pairs = adapted_weights(policy.model)
    else:
        with policy.base():
            base = dict(policy.model.named_parameters())
        pairs = ((base[name], weight) for name, weight in policy.model.named_parameters())
    change = size = 0.0
    with torch.no_grad():
        for published, weight in pairs:
            change += float((weight.float() - published.float()).pow(2).sum())
            size += float(published.float().pow(2).sum())
    return math.sqrt(change / size)


def _prompts(policy: Policy, rows: Sequence[Example]) -> PromptBatch:
    return encode(policy.tokenizer, rows).to(next(policy.parameters()).device)
