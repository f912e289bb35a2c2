"""Steps that go wrong: no finite gradient, or no memory."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lsemrl.data.rehearsal import read_rehearsal
from lsemrl.errors import UserError
from lsemrl.modules import base
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.best import Best, read_best
from lsemrl.modules.checkpoints import Interrupted
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy import Policy
from lsemrl.types import Sequences
from matrix import slow_but
from own_text import write_own_text
from short_runs import At, grpo, metrics, run, sft, trained


def poison(module: PolicyModule, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the first loss of some rollout steps not a number."""
    whole, left = Policy.loss, set(steps)

    def loss(self: Policy, *args: Any, **settings: Any) -> Any:
        value, found = whole(self, *args, **settings)
        if module.rollout_step in left:
            left.remove(module.rollout_step)
            return value * torch.nan, found
        return value, found

    monkeypatch.setattr(Policy, "loss", loss)


@pytest.mark.parametrize("make", slow_but([grpo, sft], [grpo]))
def test_a_step_without_a_finite_gradient_is_skipped(
    make: Any, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(tiny_model)
    poison(module, monkeypatch, {2})
    run(module, tmp_path)
    assert all(value.isfinite().all() for value in trained(module).values())
    assert [row["skipped_steps"] for row in metrics(tmp_path) if row["loss"]][-1] == "1.0"
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["rollout_step"] for row in rows} == {2}
    assert all(row["prompt"] and not row["loss_is_finite"] for row in rows)


def test_a_held_row_without_a_finite_gradient_costs_one_step_and_is_named(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_own_text(tmp_path / "own.jsonl", tiny_model)
    module = sft(tiny_model, anchor=AnchorSettings(path=str(own), rows=2))
    bad = read_rehearsal(own)[3].answer_ids
    whole = Policy.divergence

    def divergence(self: Policy, sequences: Sequences, *rest: Any) -> Any:
        loss, kl_M = whole(self, sequences, *rest)
        fed = zip(sequences.completion_ids_NT, sequences.completion_mask_NT, strict=True)
        return loss * (torch.nan if bad in [tuple(ids_T[mask_T].tolist()) for ids_T, mask_T in fed] else 1), kl_M

    monkeypatch.setattr(Policy, "divergence", divergence)
    run(module, tmp_path)
    assert module.skipped.count == 2 and module.skipped.in_a_row == 0  # of 8 steps on 2 of 7 rows each
    written = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(row["of"], row["loss_is_finite"]) for row in written} == {("anchor", False)}


def test_too_many_in_a_row_stop_the_run(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sft(tiny_model)
    module.optimizer = OptimizerSettings(max_skipped_steps=3)
    poison(module, monkeypatch, {1, 3, 4, 5})
    with pytest.raises(UserError, match=r"not finite in 3 optimizer steps running .*; look at the rows in '.*skipped"):
        run(module, tmp_path)
    assert module.rollout_step == 5
    assert module.skipped.count == 4


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", slow_but([1, 2], [1]))
def test_a_run_that_goes_astray_keeps_its_last_good_checkpoint(
    keep: int, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 4 and those behind it have no gradient; nothing shows that what stands before it is good."""
    module = sft(tiny_model)
    module.optimizer = OptimizerSettings(max_skipped_steps=99)
    poison(module, monkeypatch, {4, 5, 6, 7})
    with pytest.raises(UserError, match=r"last optimizer steps \(4\) had no .* without an adapter; the last .*step_4'"):
        run(module, tmp_path, every_n_steps=1, keep=keep)
    assert saved(tmp_path) == ["step_2", "step_3", "step_4"][-1 - keep :]
    assert not (tmp_path / "adapter").exists()


def test_what_is_due_is_saved_when_gradients_are_back(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = sft(tiny_model)
    poison(module, monkeypatch, {2, 3})
    with caplog.at_level("INFO"):
        run(module, tmp_path, every_n_steps=3, keep=9)
    assert saved(tmp_path) == ["step_5", "step_6", "step_8"]
    assert caplog.text.count("no checkpoint of step 3 is written: the last optimizer steps (1) had no") == 1


def test_a_signal_says_where_it_goes_on(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sft(tiny_model)
    poison(module, monkeypatch, {4})
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM, not saved, since .* goes on from the last checkpoint"):
        run(module, tmp_path, At(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert saved(tmp_path) == ["step_3"]


def test_weights_that_are_not_finite_are_never_saved(tiny_model: str, tmp_path: Path) -> None:
    module = sft(tiny_model)

    def spoil() -> None:
        next(iter(module.policy.trained().values())).data[0] = torch.inf

    with pytest.raises(UserError, match=r"logits are not finite|trained weights are not finite"):
        run(module, tmp_path, At(4, spoil), every_n_steps=1)
    assert "step_5" not in saved(tmp_path)
    assert all(value.isfinite().all() for value in load_file(tmp_path / "best" / "adapter_model.safetensors").values())


def test_a_score_that_is_no_number_is_never_the_best(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([math.nan, 0.5])
    module = sft(tiny_model)
    monkeypatch.setattr(type(module.scorer), "__call__", lambda *_: {"chrf": next(scores)})
    run(module, tmp_path)
    assert read_best(tmp_path / "best") == Best(metric="val/chrf", mode="max", value=0.5, step=7)


def test_a_policy_that_has_run_away_is_told(tiny_model: str, tmp_path: Path) -> None:
    module = grpo(tiny_model)
    module.optimizer = OptimizerSettings(lr=1e30, warmup_ratio=0.0)
    with pytest.raises(UserError, match=r"not finite.* lower optimizer\.lr"):
        run(module, tmp_path)
    assert not (tmp_path / "adapter").exists()


def out_of_memory(monkeypatch: pytest.MonkeyPatch, calls: set[int], what: str = "loss") -> None:
    whole, count = getattr(Policy, what), 0

    def short(self: Policy, *args: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *args, **settings)

    monkeypatch.setattr(Policy, what, short)


def test_memory_that_runs_out_halves_micro_batches(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = sft(tiny_model)
    whole.policy.adapter_config.lora_dropout = 0.0  # micro-batches of another size drop other numbers
    run(whole, tmp_path / "whole")
    module = sft(tiny_model)
    module.policy.adapter_config.lora_dropout = 0.0
    module.micro_batch_tokens = whole.micro_batch_tokens = 120
    out_of_memory(monkeypatch, {1})
    with caplog.at_level("WARNING"):
        run(module, tmp_path / "halved")
    assert "going on, with model.micro_batch_tokens at 60, which changes no gradient" in caplog.text
    assert module.micro_batch_tokens == 60
    for name, value in trained(module).items():
        torch.testing.assert_close(value, trained(whole)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_memory_that_runs_out_while_scoring_halves_micro_batches(
    beta: float, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the old log-probs, and of the reference's."""
    module = grpo(tiny_model)
    module.loss = replace(module.loss, beta=beta)
    module.num_iterations = 1 if beta else 2
    whole, scores = GRPO.score, []

    def score(self: GRPO, *args: Any) -> Any:
        monkeypatch.setattr(GRPO, "score", whole)
        out_of_memory(monkeypatch, {1}, "logprobs")
        scores.append(score)
        return whole(self, *args)

    monkeypatch.setattr(GRPO, "score", score)
    module.micro_batch_tokens = 120
    with caplog.at_level("WARNING"):
        run(module, tmp_path, rows=12, epochs=1)
    assert len(scores) == 1 and module.micro_batch_tokens == 60
    assert "going on, with model.micro_batch_tokens at 60, which changes no gradient" in caplog.text


def test_ranks_count_once_however_often_one_of_them_tries(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that tried again, and counted again, would be heard by the others as something else."""
    own_text = write_own_text(tmp_path / "own.jsonl", tiny_model)
    counted, divergence = [], Policy.divergence
    count = PolicyModule.window_counts

    def counts(self: PolicyModule, mask_NT: torch.Tensor) -> Any:
        counted.append(self.rollout_step)
        return count(self, mask_NT)

    def short(self: Policy, *args: Any) -> Any:
        if len(counted) == 2:
            monkeypatch.setattr(Policy, "divergence", divergence)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return divergence(self, *args)

    monkeypatch.setattr(PolicyModule, "window_counts", counts)
    monkeypatch.setattr(Policy, "divergence", short)
    run(sft(tiny_model, anchor=AnchorSettings(path=str(own_text), rows=3)), tmp_path / "run")
    assert Policy.divergence is divergence
    assert set(Counter(counted).values()) == {2}  # of the task, and of what is held


def test_memory_that_runs_out_again_is_told(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, {1, 2})
    with pytest.raises(UserError, match=r"memory ran out \(CUDA out of memory\); lower model\.micro_batch_tokens or "):
        run(sft(tiny_model), tmp_path)


@pytest.mark.slow
def test_memory_that_runs_out_while_sampling_is_asked_for_in_parts(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, short = base.sample, {3}
    parts = []

    def sample(*args: Any) -> Any:
        parts.append(args[-1])
        if len(parts) in short:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args)

    monkeypatch.setattr(base, "sample", sample)
    module = grpo(tiny_model)
    run(module, tmp_path)
    assert parts == [1, 1, 1, *[2] * (len(parts) - 3)]
    assert "the completions of a batch drawn in 2 parts" in caplog.text
    assert module.own_state()["sampling_parts"] == 2

    short.add(len(parts) + 1)
    short.add(len(parts) + 2)
    with pytest.raises(UserError, match=r"memory ran out .*; lower data\.batch_size, sampling\.num_generations"):
        run(grpo(tiny_model), tmp_path / "again")
