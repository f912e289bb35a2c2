"""Our loss and advantages against those of the installed TRL, called for real on the same tensors.

TRL's trainer methods run unbound, on a stand-in that holds only what they read; the model's forward pass is replaced by
our log-probs. TRL has one KL estimator, k3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import Level, LossSettings, LossType, WindowCounts, policy_loss, token_weights
from lsemrl.modules.sampling import Sampling
from lsemrl.rewards import Reward
from lsemrl.rewards.advantages import AdvantageSettings, Scale, group_advantages
from lsemrl.types import Completion, Example

trl = pytest.importorskip("trl", minversion="1.16", reason="trl >= 1.16 is not installed; it is needed for comparison")

ROWS, LENGTH, MAX_LENGTH = 6, 5, 8
# bnpo is TRL's token mean of a micro-batch and ours of a window: they agree only where a window is one micro-batch.
INVARIANT: tuple[LossType, ...] = ("grpo", "dapo", "dr_grpo")


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Ratios beyond every clip, rows of 0 to 5 tokens; float64."""
    generator = torch.Generator().manual_seed(seed)
    old_NT, ref_NT, change_NT = torch.randn(3, ROWS, LENGTH, generator=generator, dtype=torch.float64)
    lengths_N = torch.tensor([5, 3, 0, 1, 4, 2])
    return {
        "new": old_NT + change_NT,
        "old": old_NT,
        "ref": ref_NT,
        "advantages": torch.randn(ROWS, generator=generator, dtype=torch.float64),
        "mask": torch.arange(LENGTH) < lengths_N[:, None],
    }


def theirs(
    t: dict[str, Tensor], loss: LossSettings, micro_batches: int, **arguments: Any
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """TRL's loss of a window, accumulated over micro-batches, with gradient and metrics."""
    new_NT = t["new"].clone().requires_grad_()
    trainer = SimpleNamespace(
        loss_type=loss.loss_type,
        beta=loss.beta,
        epsilon_low=loss.epsilon,
        epsilon_high=loss.epsilon if loss.epsilon_high is None else loss.epsilon_high,
        importance_sampling_level=loss.importance_sampling_level,
        max_completion_length=MAX_LENGTH,
        args=SimpleNamespace(
            delta=loss.delta, steps_per_generation=micro_batches, **{"use_bias_correction_kl": False, **arguments}
        ),
        current_gradient_accumulation_steps=micro_batches,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm="correction" in t,
        vllm_importance_sampling_correction="correction" in t,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(ROWS).chunk(micro_batches):
        nothing_NT = torch.zeros(len(rows), LENGTH, dtype=torch.long)
        forward = new_NT[rows], torch.zeros_like(t["new"][rows]), None
        trainer._get_per_token_logps_and_entropies = lambda *_, answer=forward, **__: answer
        total = total + trl.GRPOTrainer._compute_loss(
            trainer,
            None,
            {
                "prompt_ids": nothing_NT,
                "prompt_mask": nothing_NT,
                "completion_ids": nothing_NT,
                "completion_mask": t["mask"][rows].long(),
                "advantages": t["advantages"][rows],
                "old_per_token_logps": t["old"][rows],
                "ref_per_token_logps": t["ref"][rows],
                "num_items_in_batch": t["mask"].sum(),
                **({"importance_sampling_ratio": t["correction"][rows]} if "correction" in t else {}),
                **({"sampling_per_token_logps": t["old"][rows]} if "correction" in t else {}),
            },
        )
    return total.detach(), torch.autograd.grad(total, new_NT)[0], trainer._metrics["train"]


def ours(t: dict[str, Tensor], loss: LossSettings, micro_batches: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same of ours."""
    new_NT = t["new"].clone().requires_grad_()
    weights_NT = token_weights(t["mask"], loss.loss_type, MAX_LENGTH)
    total, metrics = torch.zeros((), dtype=torch.float64), defaultdict[str, Tensor](lambda: torch.zeros(()))
    for rows in torch.arange(ROWS).chunk(micro_batches):
        output = policy_loss(
            new_NT[rows],
            t["old"][rows],
            t["ref"][rows] if loss.beta else None,
            t["advantages"][rows],
            t["mask"][rows],
            weights_NT[rows],
            loss,
            WindowCounts.of(t["mask"]),
            t["correction"][rows] if "correction" in t else None,
        )
        total = total + output.loss
        for name, value in output.metrics.items():
            metrics[name] = metrics[name] + value
    return total.detach(), torch.autograd.grad(total, new_NT)[0], metrics


def assert_equal(t: dict[str, Tensor], loss: LossSettings, micro_batches: int = 1) -> None:
    our_loss, our_gradient, _ = ours(t, loss, micro_batches)
    their_loss, their_gradient, _ = theirs(t, loss, micro_batches)
    assert their_gradient.count_nonzero() > 3  # something was compared
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss_type", get_args(LossType))
@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("epsilon_high", [None, 0.5])
@pytest.mark.parametrize("delta", [None, 1.7])
def test_loss_and_gradient(
    loss_type: LossType, level: Level, beta: float, epsilon_high: float | None, delta: float | None
) -> None:
    loss = LossSettings(
        loss_type=loss_type, importance_sampling_level=level, beta=beta, epsilon_high=epsilon_high, delta=delta
    )
    for seed in range(3):
        assert_equal(tensors(seed), loss)


@pytest.mark.parametrize("level", get_args(Level))
@pytest.mark.parametrize("whole", [True, False], ids=["sequences", "tokens"])
def test_the_correction_multiplies_the_policy_term_alone(level: Level, whole: bool) -> None:
    t = tensors()
    weights_NT = 2 * torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    t["correction"] = weights_NT[:, :1].expand(-1, LENGTH) if whole else weights_NT
    assert_equal(t, LossSettings(importance_sampling_level=level, beta=0.3))


@pytest.mark.parametrize("loss_type", INVARIANT)
@pytest.mark.parametrize("level", get_args(Level))
def test_loss_and_gradient_under_accumulation(loss_type: LossType, level: Level) -> None:
    for micro_batches in (2, 3):
        assert_equal(tensors(), LossSettings(loss_type=loss_type, importance_sampling_level=level), micro_batches)


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_a_window_with_nothing_active(loss_type: LossType) -> None:
    t = tensors()
    t["mask"] = torch.zeros_like(t["mask"])
    assert ours(t, LossSettings(loss_type=loss_type), 1)[0] == theirs(t, LossSettings(loss_type=loss_type), 1)[0] == 0


@pytest.mark.parametrize("level", get_args(Level))
def test_metrics(level: Level) -> None:
    """Theirs of one micro-batch; ours added over three."""
    loss = LossSettings(importance_sampling_level=level, epsilon=0.1, epsilon_high=0.2)
    seen = dict.fromkeys(("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"), 0.0)
    for seed in range(4):
        _, _, our_metrics = ours(tensors(seed), loss, 3)
        _, _, their_metrics = theirs(tensors(seed), loss, 1)
        for name in seen:
            assert our_metrics[name].item() == pytest.approx(their_metrics[name][0], rel=1e-6)
            seen[name] += their_metrics[name][0]
    assert min(seen.values()) > 0  # each was compared on something


def test_the_kl_differs_from_trl_s_default_only_by_the_ratio() -> None:
    """Why the comparison turns use_bias_correction_kl off: TRL's default multiplies the KL by the ratio."""
    t = tensors()
    loss = LossSettings(beta=0.3)
    corrected, _, _ = theirs(t, loss, 1, use_bias_correction_kl=True)
    d_NT = t["ref"] - t["new"]
    k3_NT, ratio_NT = d_NT.exp() - d_NT - 1, (t["new"] - t["old"]).exp()
    missing = (0.3 * (ratio_NT - 1) * k3_NT)[t["mask"]].sum() / t["mask"].sum()
    torch.testing.assert_close(ours(t, loss, 1)[0] + missing, corrected, rtol=1e-6, atol=1e-6)


def their_advantages(
    rewards_BG: Tensor, scale: Scale, *more_BG: Tensor, weights: tuple[float, ...] = (1.0,)
) -> tuple[Tensor, float]:
    """Advantages [B, G] and frac_reward_zero_std out of TRL's whole scoring step, generation stubbed.

    Several rewards are normalised, then summed.
    """
    count, tokens = rewards_BG.numel(), [[1, 2]] * rewards_BG.numel()
    parts_NK = torch.stack([rewards_BG, *more_BG], dim=-1).view(count, -1)
    names = [f"part_{at}" for at in range(parts_NK.shape[1])]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), process_index=0, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            per_device_train_batch_size=count,
            gradient_checkpointing_kwargs=None,
        ),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _generate=lambda prompts: (tokens, tokens, None, ["x"] * count, None, {}, None, []),
        _calculate_rewards=lambda *_: parts_NK,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_iterations=1,
        num_generations=rewards_BG.shape[1],
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        beta=0.0,
        scale_rewards=scale,
        multi_objective_aggregation="normalize_then_sum" if more_BG else "sum_then_normalize",
        reward_weights=torch.tensor(weights),
        reward_funcs=[None] * len(names),
        reward_func_names=names,
        log_multimodal=False,
        _pending_extra_logs={},
        _pending_metrics={},
        _metrics={"train": defaultdict(list)},
        _logs={"prompt": [], "completion": [], "advantages": [], "rewards": {name: [] for name in names}, "extra": {}},
    )
    scored = trl.GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": "x"}] * count)
    return scored["advantages"].reshape(rewards_BG.shape), trainer._metrics["train"]["frac_reward_zero_std"][0]


@pytest.mark.parametrize("scale", get_args(Scale))
@pytest.mark.parametrize("unscored", [False, True])
def test_advantages(scale: Scale, unscored: bool) -> None:
    rewards_BG = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    rewards_BG[2] = 0.5  # all equal
    if unscored:
        rewards_BG[0, 1] = rewards_BG[3, :2] = rewards_BG[4] = torch.nan
    their_BG, their_share = their_advantages(rewards_BG, scale)
    our_BG, metrics = group_advantages(rewards_BG, AdvantageSettings(scale_rewards=scale, resolution=0.0))
    torch.testing.assert_close(our_BG, their_BG, rtol=1e-6, atol=1e-6)
    if scale != "batch":  # there TRL counts groups by the deviation of the batch, and misses the dead one
        assert metrics["frac_reward_zero_std"].item() == pytest.approx(their_share) == pytest.approx(0.2)


@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("unscored", [False, True])
def test_parts_that_are_normalised_then_summed(scale: Scale, unscored: bool) -> None:
    """GDPO (arXiv 2601.05242): the parts within their groups, their weighted sum over the batch."""
    parts = {name: torch.randn(5, 4, generator=torch.Generator().manual_seed(at)) for at, name in enumerate("ab")}
    parts["b"][2] = parts["a"][2] = 0.5  # all equal
    parts["b"] *= 100
    if unscored:
        parts["a"][0, 1] = parts["a"][3, :2] = parts["b"][3, 0] = torch.nan
    module = GRPO(
        {"a": Given(parts["a"], 1.5), "b": Given(parts["b"], 0.3)},
        combine="normalize_then_sum",
        sampling=Sampling(num_generations=4),
        advantages=AdvantageSettings(scale_rewards=scale, resolution=0.0),
    )
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(), barebones=False)  # type: ignore[assignment]
    example = Example(id="0", prompt="", source="", references=("",))
    completions = [Completion(text="", ended=True, example=example)] * 20
    our_N, _ = module.compare(module.reward_mix(completions, 4))
    their_BG, _ = their_advantages(parts["a"], scale, parts["b"], weights=(1.5, 0.3))
    torch.testing.assert_close(our_N.view(5, 4), their_BG, rtol=1e-6, atol=1e-6)


class Given(Reward):
    """Gives what it was given."""

    def __init__(self, scores_BG: Tensor, weight: float) -> None:
        super().__init__(weight)
        self.scores_N = scores_BG.reshape(-1)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return self.scores_N
