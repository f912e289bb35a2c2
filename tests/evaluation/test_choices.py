"""Multiple choice by log-probability, held against the model's own logits, one choice at a time."""

from __future__ import annotations

import math

import pytest
import torch

from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.choices import _logprobs, _sequences, score_choices
from lsemrl.evaluation.measurement import hash_rows
from lsemrl.evaluation.tax import Battery, gold_nll, measure
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampling import greedy
from lsemrl.types import Example, PromptBatch
from tiny import make_policy


def question(prompt: str, right: str, *choices: str) -> Example:
    return Example(id=prompt, prompt=prompt, source=prompt, references=(right,), choices=choices)


@pytest.fixture
def asked(prompts: PromptBatch) -> list[Example]:
    """Of different lengths and numbers of choices, one of which begins another."""
    texts, shown = [each.reference for each in prompts.examples], [each.prompt for each in prompts.examples]
    return [
        question(shown[0], texts[0], *texts),
        question(shown[1], texts[1][:2], texts[1], texts[1][:2]),
        question(shown[2], texts[0], texts[2], texts[0], "书", texts[1]),
    ]


def by_hand(policy: Policy, prompt: str, choice: str) -> tuple[float, int]:
    tokenizer = policy.tokenizer
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said = [*tokenizer(choice, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with policy.inference():
        logits = policy.model(input_ids=torch.tensor([[*start, *said]])).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1)[range(len(said)), said].sum().item(), len(said)


def test_log_probabilities_are_those_of_each_choice_alone(policy: Policy, asked: list[Example]) -> None:
    for batch_size in (1, 4, 100):
        found = list(_logprobs(policy, asked, Batches(batch_size)))
        for example, (sums_C, lengths_C) in zip(asked, found, strict=True):
            expected = [by_hand(policy, example.prompt, choice) for choice in example.choices]
            assert sums_C.tolist() == pytest.approx([value for value, _ in expected], rel=1e-4)
            assert lengths_C.tolist() == [length for _, length in expected]


def test_the_likeliest_choice_is_taken_whole_and_per_token(policy: Policy, asked: list[Example]) -> None:
    scored = score_choices(policy, asked, Batches(4))
    for at, example in enumerate(asked):
        known = [by_hand(policy, example.prompt, choice) for choice in example.choices]
        right = example.choices.index(example.reference)
        sums, means = [value for value, _ in known], [value / length for value, length in known]
        assert scored["accuracy"][at] == float(max(sums) == sums[right])
        assert scored["accuracy_per_token"][at] == float(max(means) == means[right])
        assert scored["chance"][at] == 1 / len(example.choices)
        assert gold_nll(policy, [example], Batches(1))[0] == pytest.approx(-means[right], rel=1e-4)


def test_a_policy_that_knows_every_right_choice_finds_it(policy: Policy, asked: list[Example]) -> None:
    likeliest = [
        question(example.prompt, example.choices[int(sums_C.argmax())], *example.choices)
        for example, (sums_C, _) in zip(asked, _logprobs(policy, asked, Batches(100)), strict=True)
    ]
    assert score_choices(policy, likeliest, Batches(100))["accuracy"] == (1.0,) * len(asked)
    unlikeliest = [
        question(example.prompt, example.choices[int(sums_C.argmin())], *example.choices)
        for example, (sums_C, _) in zip(asked, _logprobs(policy, asked, Batches(100)), strict=True)
    ]
    assert score_choices(policy, unlikeliest, Batches(100))["accuracy"] == (0.0,) * len(asked)


def test_adapters_switched_off_merged_and_in_bfloat16(tiny_model: str, asked: list[Example]) -> None:
    policy = make_policy(tiny_model)

    def sums(policy: Policy) -> list[float]:
        return [value for each, _ in _logprobs(policy, asked, Batches(4)) for value in each.tolist()]

    adapted = sums(policy)
    with policy.base():
        assert sums(policy) != pytest.approx(adapted, rel=1e-4)
    with policy.merged():
        assert sums(policy) == pytest.approx(adapted, rel=1e-4)
    assert sums(make_policy(tiny_model, dtype="bfloat16")) == pytest.approx(adapted, rel=2e-2)


def test_choices_do_not_count_the_rounding_of_the_head(tiny_model: str, asked: list[Example]) -> None:
    policy = make_policy(tiny_model, dtype="bfloat16")
    sequences = _sequences(policy, asked)
    policy.predictions(sequences)  # which proves the way through the model
    with policy.inference():
        states_MH, packed = policy._predictors(sequences)
    logits_MV = states_MH.float() @ policy.model.get_output_embeddings().weight.float().T
    known_M = logits_MV.log_softmax(-1).gather(1, packed.targets_M[:, None])[:, 0]
    expected = [float(part.sum()) for part in known_M.split(sequences.completion_mask_NT.sum(dim=1).tolist())]
    found = [value for sums_C, _ in _logprobs(policy, asked, Batches(100)) for value in sums_C.tolist()]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_log_probability_that_is_not_finite_is_no_answer(
    policy: Policy, asked: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = policy.predictions
    monkeypatch.setattr(policy, "predictions", lambda sequences: lambda cut: whole(sequences)(cut) * math.nan)
    scored = score_choices(policy, asked, Batches(4))
    assert all(map(math.isnan, (*scored["accuracy"], *scored["accuracy_per_token"])))


def test_what_is_only_to_be_chosen_is_never_said(policy: Policy, asked: list[Example], prompts: PromptBatch) -> None:
    battery = Battery(target=prompts.examples, general=tuple(asked), scored_by="choices")
    found = measure(policy, battery, Scorer(MetricSettings(names=("chrf",))), greedy(4))
    assert set(found.general_rows) == {"accuracy", "accuracy_per_token", "chance", "nll"} and found.answers == ()
    assert set(found.general_signatures) == {"accuracy"}
    assert set(found.divergence) == {"target", "general", "own"}


def test_rows_of_other_choices_are_other_rows(asked: list[Example]) -> None:
    first, *_ = asked
    assert hash_rows([first]) != hash_rows([question(first.prompt, first.reference, *reversed(first.choices))])
