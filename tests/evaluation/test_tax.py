"""The tax against the original base: hand-checked on a tiny policy."""

from __future__ import annotations

import pytest
import torch

from lsemrl.errors import UserError
from lsemrl.evaluation.scorer import MetricSettings, Scorer
from lsemrl.evaluation.tax import Battery, answer, gold_nll, kl_to_base, measure
from lsemrl.modules.forward import logits
from lsemrl.modules.policy import LoraSettings, Policy, PolicySettings
from lsemrl.types import Completion, PromptBatch
from tiny import make_policy


def test_gold_nll_is_the_mean_over_each_answers_own_tokens(policy: Policy, prompts: PromptBatch) -> None:
    nll = gold_nll(policy, prompts.examples, batch_size=2)
    for row, example in enumerate(prompts.examples):
        prompt = policy.tokenizer(example.prompt, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        target = policy.tokenizer(example.reference, add_special_tokens=False)["input_ids"]
        target = torch.tensor([*target, policy.tokenizer.eos_token_id])
        with policy.inference():
            logits = policy.model(input_ids=torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1]
        assert nll[row].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-5)


def test_kl_is_zero_for_the_base_and_exact_otherwise(policy: Policy, prompts: PromptBatch, tiny_model: str) -> None:
    fresh = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=2)))
    fresh.load()
    assert kl_to_base(fresh, prompts.examples, batch_size=2) == pytest.approx(0, abs=1e-6)
    sequences = prompts.sequences
    with policy.inference():
        now = torch.distributions.Categorical(logits=logits(policy.model, sequences))
    with policy.base():
        then = torch.distributions.Categorical(logits=logits(policy.model, sequences))
    expected = torch.distributions.kl_divergence(now, then)[sequences.completion_mask_NT].mean()
    for batch_size in (1, 3):
        assert kl_to_base(policy, prompts.examples, batch_size) == pytest.approx(expected.item(), rel=1e-4)


def test_measuring_changes_nothing_and_repeats(prompts: PromptBatch, tiny_model: str) -> None:
    policy = make_policy(tiny_model)
    policy.train()
    battery = Battery(target=prompts.examples, general=prompts.examples, text=prompts.examples)
    scorer = Scorer(MetricSettings(names=("chrf", "language_rate")))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again = (measure(policy, battery, scorer, max_new_tokens=4) for _ in range(2))
    assert one == again
    assert torch.equal(before, torch.get_rng_state())
    assert policy.model.training
    assert set(one.target) == {"chrf", "language_rate", "ended_rate"}
    assert set(one.general) == {"em", "f1", "average", "answer_length", "nll"}
    assert "chrf" in scorer.signatures


def test_answers_come_in_order(policy: Policy, prompts: PromptBatch) -> None:
    outputs = answer(policy, prompts.examples, max_new_tokens=4, batch_size=2)
    assert [output.example.id for output in outputs] == ["0", "1", "2"]


def test_the_scorer_refuses_to_score_nothing() -> None:
    with pytest.raises(UserError, match="there is nothing to evaluate"):
        Scorer(MetricSettings(names=("chrf",)))([])


def test_meaning_is_scored_by_the_oracle(prompts: PromptBatch) -> None:
    example = prompts.examples[0]
    right = Completion(text=example.reference, ended=True, example=example)
    wrong = Completion(text="老师买了书。", ended=True, example=example)
    scores = Scorer(MetricSettings(names=("meaning",)))([right, wrong])
    assert scores["meaning_f1"] == 0.5
    assert scores["meaning_exact"] == 0.5
