"""The tax against the original base: hand-checked on a tiny policy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lsemrl.errors import UserError
from lsemrl.evaluation import tax
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.tax import Battery, answer, divergence, gold_nll, measure, weight_change
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import greedy
from lsemrl.types import Completion, Example, PromptBatch
from lsemrl.unfinished import Unfinished
from tiny import make_policy, plain_logits


def test_gold_nll_is_the_mean_over_each_answers_own_tokens(policy: Policy, prompts: PromptBatch) -> None:
    nll = gold_nll(policy, prompts.examples, Batches(2))
    for row, example in enumerate(prompts.examples):
        prompt = policy.tokenizer(example.prompt, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        target = policy.tokenizer(example.reference, add_special_tokens=False)["input_ids"]
        target = torch.tensor([*target, policy.tokenizer.eos_token_id])
        with policy.inference():
            logits = policy.model(input_ids=torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1]
        assert nll[row] == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-5)


def test_divergence_is_zero_for_the_base_and_exact_both_ways(
    policy: Policy, prompts: PromptBatch, tiny_model: str
) -> None:
    fresh = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=2)))
    fresh.load()
    none = divergence(fresh, prompts.examples, Batches())
    assert (none.to_base, none.from_base) == pytest.approx((0, 0), abs=1e-6)
    sequences = prompts.sequences
    with policy.inference():
        now = torch.distributions.Categorical(logits=plain_logits(policy.model, sequences))
    with policy.base():
        then = torch.distributions.Categorical(logits=plain_logits(policy.model, sequences))
    mask_NT = sequences.completion_mask_NT
    there_NT, back_NT = torch.distributions.kl_divergence(now, then), torch.distributions.kl_divergence(then, now)
    for size in (3, 1):
        found = divergence(policy, prompts.examples, Batches(size))
        assert found.to_base == pytest.approx(there_NT[mask_NT].mean().item(), rel=1e-4)
        assert found.from_base == pytest.approx(back_NT[mask_NT].mean().item(), rel=1e-4)
        for row, mask_T in enumerate(mask_NT):
            assert found.to_base_rows[row] == pytest.approx(there_NT[row][mask_T].mean().item(), rel=1e-4)
            assert found.from_base_rows[row] == pytest.approx(back_NT[row][mask_T].mean().item(), rel=1e-4)
    assert found.to_base_rows != pytest.approx(found.from_base_rows, rel=5e-3)


def test_weight_change_is_what_merging_would_add(policy: Policy, tiny_model: str) -> None:
    change = size = 0.0
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    merged = make_policy(tiny_model).model.merge_and_unload()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    for (name, after), then in zip(merged.named_parameters(), base.parameters(), strict=True):
        if "_proj" in name:  # every linear but the head is adapted
            change += (after - then).pow(2).sum().item()
            size += then.pow(2).sum().item()
    assert weight_change(policy) == pytest.approx(math.sqrt(change / size), rel=1e-4)
    assert all(torch.equal(before[name], weight) for name, weight in policy.model.named_parameters())


def test_weight_change_of_full_fine_tuning_is_over_all_weights(tiny_model: str) -> None:
    policy = Policy(PolicySettings(model=tiny_model, train="full", reference="base"))
    policy.load()
    assert weight_change(policy) == 0
    size = math.sqrt(sum(weight.pow(2).sum().item() for weight in policy.model.parameters()))
    with torch.no_grad():
        next(policy.model.parameters())[0, 0] += 3.0
    assert weight_change(policy) == pytest.approx(3.0 / size, rel=1e-5)


def test_measuring_changes_nothing_and_repeats(prompts: PromptBatch, tiny_model: str) -> None:
    policy = make_policy(tiny_model)
    policy.train()
    battery = Battery(target=prompts.examples, general=prompts.examples, text=prompts.examples)
    scorer = Scorer(MetricSettings(names=("chrf", "language_rate")))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    told: list[str] = []
    one, again = (measure(policy, battery, scorer, greedy(4), Batches(say=told.append)) for _ in range(2))
    assert told[:2] == ["measuring: outputs on the new task, 3 rows", "measuring: general ability, 3 questions"]
    assert told[2:6] == [f"measuring: divergence from the base along {name}" for name in one.divergence]
    assert one == again
    assert torch.equal(before, torch.get_rng_state())
    assert policy.model.training
    assert set(one.target) == {"chrf", "language_rate", "ended_rate"}
    scores = ("em", "f1", "average", "contained", "asked_back", "answer_length", "ended_rate", "leak", "nll")
    assert set(one.general) == {*scores}
    assert set(one.target_rows) == {"chrf", "language_rate", "ended_rate"}
    assert set(one.general_rows) == set(one.general) - {"average"}
    assert all(len(rows) == 3 for rows in (one.target_rows | one.general_rows).values())
    assert set(one.divergence) == {"target", "general", "text", "own"}
    assert one.divergence["target"] == one.divergence["text"] != one.divergence["own"]
    assert all(each.to_base > 0 and len(each.to_base_rows) == 3 for each in one.divergence.values())
    assert "chrf" in scorer.signatures


def test_what_is_the_base_is_not_held_against_itself(
    prompts: PromptBatch, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    battery = Battery(target=prompts.examples, general=prompts.examples[:2], text=prompts.examples[:1])
    scorer = Scorer(MetricSettings(names=("chrf",)))
    fresh = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=2)))
    fresh.load()
    monkeypatch.setattr("lsemrl.evaluation.tax.divergence", lambda *args: pytest.fail("it was computed"))
    found = measure(fresh, battery, scorer, greedy(2))
    assert found.weight_change == 0.0
    assert {(each.to_base, each.from_base) for each in found.divergence.values()} == {(0.0, 0.0)}
    counts = {name: len(each.to_base_rows) for name, each in found.divergence.items()}
    assert counts == {"target": 3, "general": 2, "text": 1, "own": 3}
    found = measure(fresh, battery, scorer, greedy(2), divergence_rows=2)
    counts = {name: len(each.to_base_rows) for name, each in found.divergence.items()}
    assert counts == {"target": 2, "general": 2, "text": 1, "own": 2}


def test_divergence_along_fewer_rows(policy: Policy, prompts: PromptBatch) -> None:
    battery = Battery(target=prompts.examples, general=prompts.examples)
    scorer = Scorer(MetricSettings(names=("chrf",)))
    found, fewer, more = (measure(policy, battery, scorer, greedy(4), divergence_rows=rows) for rows in (None, 2, 9))
    assert more == found
    assert (fewer.target_rows, fewer.outputs) == (found.target_rows, found.outputs)
    rows = {name: each.to_base_rows for name, each in found.divergence.items()}
    kept = {name: each.to_base_rows for name, each in fewer.divergence.items()}
    assert kept["target"] == pytest.approx(rows["target"][:2], rel=1e-4) and len(kept["own"]) == 2
    assert kept["general"] == rows["general"]


def test_whoever_waits_is_told_how_far_it_is(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsemrl.durations._EVERY", 0.0)
    told: list[str] = []
    answer(policy, prompts.examples, greedy(2), Batches(1, told.append))
    gold_nll(policy, prompts.examples, Batches(2, told.append))
    assert [line.partition(";")[0] for line in told] == [f"measuring: {at} of 3 rows" for at in (1, 2, 2)]
    assert all(re.fullmatch(r".*; about \d+ s left", line) for line in told)


def test_what_was_kept_says_nothing_of_the_pace(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr("lsemrl.durations.time.monotonic", lambda: now)

    def slowly(rows: Sequence[Example], number: int) -> list[int]:
        nonlocal now
        now += 60
        if stop == number:
            raise KeyboardInterrupt
        return [number]

    rows, stop = prompts.examples * 2, 3
    with pytest.raises(UserError, match="interrupted; what was done is in"), Unfinished(tmp_path / "x") as part:
        part.take_up({})
        Batches(1, part=part).each(rows, slowly)
    told, stop = [], -1
    with Unfinished(tmp_path / "x") as part:
        part.take_up({})
        assert Batches(1, told.append, part).each(rows, slowly) == [0, 1, 2, 3, 4, 5]
    assert told == [f"measuring: {at} of 6 rows; about {left} left" for at, left in ((4, "2 min"), (5, "60 s"))]


def test_answers_come_in_order(policy: Policy, prompts: PromptBatch) -> None:
    outputs = answer(policy, prompts.examples, greedy(4), Batches(2))
    assert [output.example.id for output in outputs] == ["0", "1", "2"]


def test_what_is_alike_is_answered_together(
    policy: Policy, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [3, 9, 1, 8, 2]
    rows = [replace(prompts.examples[0], id=str(at), prompt="师" * length) for at, length in enumerate(lengths)]
    batches: list[list[int]] = []

    def said(policy: Policy, asked: PromptBatch, *settings: Any, **more: Any) -> Any:
        batches.append([len(example.prompt) for example in asked.examples])
        return SimpleNamespace(
            completions=[Completion(text=example.prompt, ended=True, example=example) for example in asked.examples]
        )

    monkeypatch.setattr(tax, "sample", said)
    outputs = answer(policy, rows, greedy(2), Batches(2))
    assert batches == [[9, 8], [3, 2], [1]]
    assert [(len(output.text), output.example) for output in outputs] == list(zip(lengths, rows, strict=True))


def test_the_scorer_refuses_to_score_nothing() -> None:
    with pytest.raises(UserError, match="there is nothing to evaluate"):
        Scorer(MetricSettings(names=("chrf",)))([])


def test_meaning_is_scored_by_the_oracle(prompts: PromptBatch) -> None:
    example = prompts.examples[0]
    right = Completion(text=example.reference, ended=True, example=example)
    wrong = Completion(text="老师买了书。", ended=True, example=example)
    scores = Scorer(MetricSettings(names=("meaning",)))([right, wrong])
    assert scores["meaning_f1"] == 0.5
    rows = Scorer(MetricSettings(names=("chrf", "bleu", "rouge_l", "meaning"))).score([right, wrong]).rows
    assert rows["meaning_exact"] == (1.0, 0.0)
    assert rows["chrf"] == pytest.approx((1.0, 0.0), abs=0.02)
    assert rows["rouge_l"] == (1.0, 0.0)
    assert "bleu" not in rows
    assert scores["meaning_exact"] == 0.5


def test_a_divergence_does_not_count_the_rounding_of_the_head(tiny_model: str, prompts: PromptBatch) -> None:
    policy = make_policy(tiny_model, dtype="bfloat16")
    with torch.no_grad():
        logits_CV = policy.predictions(prompts.sequences)(slice(None))
        states_MH, _ = policy._predictors(prompts.sequences)
    weight_VH = policy.model.get_output_embeddings().weight
    assert weight_VH.dtype == torch.bfloat16 and logits_CV.dtype == torch.float32
    torch.testing.assert_close(logits_CV, states_MH.float() @ weight_VH.float().T)
    assert not torch.equal(logits_CV, logits_CV.bfloat16().float())


def test_the_nll_of_an_answer_does_not_count_the_rounding_of_the_head(tiny_model: str, prompts: PromptBatch) -> None:
    policy = make_policy(tiny_model, dtype="bfloat16")
    with torch.no_grad():
        states_MH, packed = policy._predictors(prompts.sequences)
    logits_MV = states_MH.float() @ policy.model.get_output_embeddings().weight.float().T
    nll_M = -logits_MV.log_softmax(-1).gather(1, packed.targets_M[:, None])[:, 0]
    parts = nll_M.split(prompts.sequences.completion_mask_NT.sum(dim=1).tolist())
    expected_N = torch.stack([part.mean() for part in parts])
    assert gold_nll(policy, prompts.examples, Batches(3)) == pytest.approx(expected_N.tolist(), rel=1e-5)
