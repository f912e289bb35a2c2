"""What is told of a batch of rollouts is of the whole batch, on whatever number of ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lsemrl.modules import rollout_report
from lsemrl.modules.rollout_report import completion_metrics, likeness
from lsemrl.types import Completion, Rollouts, Sequences
from made_up import completions


def rollouts(said: list[Completion]) -> Rollouts:
    """Two completions of one token for each prompt."""
    nothing_N1 = torch.ones(len(said), 1, dtype=torch.long)
    return Rollouts(
        completions=tuple(said),
        sequences=Sequences(
            prompt_ids_BP=nothing_N1[::2],
            prompt_mask_BP=nothing_N1[::2].bool(),
            prompt_of_N=torch.arange(len(said)) // 2,
            completion_ids_NT=nothing_N1,
            completion_mask_NT=nothing_N1.bool(),
        ),
        ended_N=nothing_N1[:, 0].bool(),
        logprobs_NT=nothing_N1.float(),
        num_generations=2,
        slots=len(said),
    )


def test_what_prompts_have_in_common_is_counted_beyond_references() -> None:
    rows = [("one", "a b c", "x y c"), ("one", "a b c", "x y d"), ("two", "e b c", "x y c"), ("two", "e b c", "e b c")]
    found = likeness(completions(*rows))
    assert found["completions/template"] == 0.5  # x y, in no reference and half of what the other prompt got
    assert found["completions/shared"] == 0.5  # x y c
    assert likeness(completions(("one", "a", "a"), ("two", "a", "a")))["completions/shared"] == 0  # and right


def test_what_has_no_reference_has_no_template_beyond_it() -> None:
    answered = completions(("one", "a b c", "x y c"), ("two", "e b c", "x y d"))
    bare = [replace(each, example=replace(each.example, references=())) for each in answered]
    assert likeness(answered)["completions/template"] > 0
    assert math.isnan(likeness(bare)["completions/template"])


def test_of_a_single_prompt_nothing_is_said_to_be_in_common() -> None:
    found = likeness(completions(("one", "a", "b c d"), ("one", "a", "b c d")))
    assert math.isnan(found["completions/shared"]) and math.isnan(found["completions/template"])


def test_copies_are_counted_where_they_are_none_of_the_answers() -> None:
    rows = [("the old man", "di man", "the old man"), ("the old man", "di man", "di man")]
    assert completion_metrics(rollouts(completions(*rows)))["completions/copied"] == 0.5
    assert math.isnan(completion_metrics(rollouts(completions(*rows, pair=False)))["completions/copied"])


def test_what_completions_have_in_common_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a prompt a rank, none of which has another one to be held against."""
    rows = [("one", "a b c", "x y c"), ("one", "a b c", "x y d"), ("two", "e b c", "x y c"), ("two", "e b c", "x y c")]
    said = [*completions(*rows), *completions(("three", "three", "three"), ("three", "three", "f"))]  # nothing to copy
    ranks = [rollouts(said[at : at + 2]) for at in (0, 2, 4)]
    given: list[Any] = []

    def give(own: Any) -> list[Any]:
        given.append(own)
        return [own]

    monkeypatch.setattr(rollout_report, "every_rank", give)
    for each in ranks:
        completion_metrics(each)
    monkeypatch.setattr(rollout_report, "every_rank", lambda own: given[:3])
    found = [completion_metrics(each) for each in ranks]
    monkeypatch.setattr(rollout_report, "every_rank", give)
    alone = completion_metrics(rollouts(said))
    for name in ("shared", "template", "duplicates", "copied"):
        assert [float(each[f"completions/{name}"]) for each in found] == [float(alone[f"completions/{name}"])] * 3
        assert not math.isnan(alone[f"completions/{name}"])
    assert found[0]["completions/template"] == 0.5  # x y, of the other two prompts' half
