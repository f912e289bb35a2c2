"""The correction between sampler and trainer: against a loop, in real runs, and never where nothing was rounded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lsemrl.errors import UserError
from lsemrl.modules.correction import correction, importance_weights
from lsemrl.modules.losses import Correction, LossSettings, WindowCounts, packed_policy_loss
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.types import PromptBatch
from short_runs import grpo, metrics, run

MODES: tuple[Correction, ...] = get_args(Correction)


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the trained policy and of the sampler, some of them unknown, and the mask."""
    generator = torch.Generator().manual_seed(0)
    old_NT = -torch.rand(5, 6, generator=generator) * 4
    sampler_NT = old_NT + 0.8 * torch.randn(5, 6, generator=generator)
    mask_NT = torch.arange(6) < torch.tensor([6, 3, 1, 0, 4])[:, None]
    sampler_NT[0, 2] = torch.nan
    return old_NT, sampler_NT.masked_fill(~mask_NT, 7.0), mask_NT  # what stands in padding is nobody's business


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip_max", [0.9, 1.5, 100.0])
def test_weights_are_those_of_a_loop(mode: Correction, clip_max: float) -> None:
    old_NT, sampler_NT, mask_NT = drawn()
    found_NT, ratios_K = importance_weights(old_NT, sampler_NT, mask_NT, mode, clip_max)
    ratios, weights, differences = [], [], []
    for row in range(len(mask_NT)):
        logs = []
        for token in range(int(mask_NT[row].sum())):
            log = float(old_NT[row, token] - sampler_NT[row, token])
            logs.append(0.0 if math.isnan(log) else log)
        differences += [abs(log) for log in logs]
        own = [math.exp(sum(logs))] if mode.startswith("sequence") else [math.exp(log) for log in logs]
        kept = [min(one, clip_max) if mode.endswith("truncate") else one * (one <= clip_max) for one in own]
        if logs:
            ratios += own
            weights += kept
        wanted = kept * len(logs) if mode.startswith("sequence") else kept
        assert found_NT[row, : len(logs)].tolist() == pytest.approx(wanted, rel=1e-5)
    assert ratios_K.tolist() == pytest.approx(ratios, rel=1e-5)
    settings = LossSettings(importance_sampling_mode=mode, importance_sampling_clip_max=clip_max)
    again_NT, told = correction(old_NT, sampler_NT, mask_NT, settings)
    assert again_NT is not None and torch.equal(again_NT, found_NT)
    squares = sum(weight**2 for weight in weights)
    size = sum(weights) ** 2 / (len(weights) * squares) if squares else 0.0
    assert {name: float(value) for name, value in told.items()} == pytest.approx(
        {
            "sampling/logp_difference/mean": sum(differences) / len(differences),
            "sampling/logp_difference/max": max(differences),
            "sampling/capped": sum(ratio > clip_max for ratio in ratios) / len(ratios),
            "sampling/effective_sample_size": size,
        },
        rel=1e-5,
    )


def test_a_word_that_the_sampler_could_not_say_is_masked_or_truncated() -> None:
    old_NT, mask_NT = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    sampler_NT = torch.tensor([[-math.inf, 0.0]])
    for mode in MODES:
        weights_NT, _ = importance_weights(old_NT, sampler_NT, mask_NT, mode, 3.0)
        assert weights_NT[0, 0] == (3 if mode.endswith("truncate") else 0)


@pytest.mark.parametrize("mode", MODES)
def test_completions_that_are_left_out_are_not_counted(mode: Correction) -> None:
    """The only one that is learned from is beyond the limit; three were cut and taught nothing."""
    old_NT, mask_NT = torch.zeros(4, 2), torch.tensor([[True], [False], [False], [False]]).expand(4, 2)
    _, told = correction(old_NT, old_NT - 2, mask_NT, LossSettings(importance_sampling_mode=mode))
    assert told["sampling/capped"] == 1
    assert told["sampling/effective_sample_size"] == (1 if mode.endswith("truncate") else 0)


def test_no_completion_at_all() -> None:
    nothing_NT = torch.zeros(2, 3)
    for mode in MODES:
        settings = LossSettings(importance_sampling_mode=mode)
        _, told = correction(nothing_NT, nothing_NT, nothing_NT.bool(), settings)
        assert all(math.isfinite(value) for value in told.values())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_slices_of_tokens_find_their_weights(level: Any) -> None:
    lengths, settings = [3, 2, 4], LossSettings(importance_sampling_level=level, beta=0.0)
    generator = torch.Generator().manual_seed(1)
    old_M, advantages_M, weights_M = torch.rand(3, 9, generator=generator)
    correction_M = torch.rand(9, generator=generator)
    mask_M = torch.ones(9, dtype=torch.bool)
    new_M = old_M + 0.05 * torch.randn(9, generator=generator)
    advantages_M = torch.cat([advantages_M[:1].expand(3), advantages_M[1:2].expand(2), advantages_M[2:3].expand(4)])

    def loss_of(correction_M: Tensor | None, weights_M: Tensor, cuts: list[slice]) -> float:
        loss_fn = packed_policy_loss(
            old_M,
            None,
            advantages_M,
            mask_M,
            weights_M,
            lengths,
            settings,
            WindowCounts(rows=3, tokens=9),
            correction_M,
        )
        return sum(float(loss_fn(cut, new_M[cut], new_M[cut])[0]) for cut in cuts)

    cuts = [slice(0, 3), slice(3, 9)]
    assert loss_of(correction_M, weights_M, cuts) == pytest.approx(
        loss_of(None, weights_M * correction_M, [slice(0, 9)])
    )


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_sampler_tells_what_scoring_finds(policy: Policy, prompts: PromptBatch, temperature: float) -> None:
    """Whatever top-p and top-k leave out."""
    for more in ({"top_p": 0.5}, {"top_p": 1.0}, {"top_p": 0.9, "top_k": 7}):
        sampling = Sampling(num_generations=3, temperature=temperature, max_new_tokens=9, **more)  # type: ignore[arg-type]
        rollouts = sample(policy, prompts, sampling, seed=2)
        with policy.inference():
            scored_NT, _ = policy.logprobs(rollouts.sequences, temperature)
        torch.testing.assert_close(rollouts.logprobs_NT, scored_NT, rtol=0, atol=1e-5)


def test_only_what_is_rounded_is_corrected(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(grpo(tiny_model), tmp_path / "whole", epochs=1)
    assert not any(name.startswith("sampling/") for row in metrics(tmp_path / "whole") for name in row)
    with monkeypatch.context() as patch:
        patch.setattr("lsemrl.modules.grpo.float32_products", lambda device: "tf32")
        run(grpo(tiny_model), tmp_path / "products", epochs=1)
    assert "sampling/logp_difference/mean" in metrics(tmp_path / "products")[0]
    run(grpo(tiny_model), tmp_path / "mixed", epochs=1, precision="bf16-mixed")
    rows = [row for row in metrics(tmp_path / "mixed") if row["reward"]]
    assert rows and all(0 < float(row["sampling/logp_difference/mean"]) < 0.5 for row in rows)
    assert all(0 < float(row["sampling/effective_sample_size"]) <= 1.0001 for row in rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_sampling_mode": "row_mask"}, r"'row_mask': choose one of token_truncate, .*sequence_mask, null"),
        ({"importance_sampling_clip_max": 0.0}, r"importance_sampling_clip_max is 0.0: set it above 0"),
        ({"importance_sampling_clip_max": math.inf}, r"importance_sampling_clip_max is inf: set it above 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossSettings(**settings)
