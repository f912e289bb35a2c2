"""What a policy that has not moved logs: nothing. Its log-probs in the update are those of sampling and scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lsemrl import micro
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sft import SFT
from lsemrl.rewards import Chrf
from lsemrl.types import Sequences
from matrix import slow_but
from short_runs import At, metrics, policy_settings, run, trained
from tiny import make_policy


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with dropout of its own, in attention."""
    folder, tokenizer = tmp_path_factory.mktemp("noisy"), AutoTokenizer.from_pretrained(micro.POLICY)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, attention_dropout=0.3, initializer_range=0.2, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def untouched(model: str, folder: Path, *, loss: LossSettings, policy: dict[str, Any], **settings: Any) -> GRPO:
    """GRPO from an adapter with dropout .3, whose rate is too small to move a weight; two passes over two windows."""
    adapter = folder / "adapter"
    make_policy(model, lora=LoraSettings(rank=4, alpha=8.0, dropout=0.3)).save(adapter)
    torch.manual_seed(5)
    return GRPO(
        rewards={"chrf": Chrf()},
        policy=policy_settings(model, adapter=str(adapter), **policy),
        sampling=Sampling(num_generations=4, temperature=1.0, max_new_tokens=6),
        optimizer=OptimizerSettings(lr=1e-30),
        loss=loss,
        num_iterations=2,
        optimizer_batch_size=8,
        samples_every=0,
        **settings,
    )


LOSSES = {
    "token": LossSettings(beta=0.1),
    "sequence": LossSettings(
        beta=0.1, importance_sampling_level="sequence", loss_type="grpo", epsilon=3e-4, epsilon_high=4e-4
    ),
}  # the small range is GSPO's


@pytest.mark.parametrize("level", slow_but(LOSSES, ["sequence"]))
@pytest.mark.parametrize("route", ["shared", "plain"])
@pytest.mark.parametrize("checkpointing", slow_but([False, True], [False]))
def test_an_untouched_policy_logs_no_kl_and_clips_nothing(
    noisy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, route: str, checkpointing: bool
) -> None:
    monkeypatch.setattr("lsemrl.modules.policy.prove", lambda *_: route)
    module = untouched(noisy, tmp_path, loss=LOSSES[level], policy={"gradient_checkpointing": checkpointing})
    run(module, tmp_path, resume="never", epochs=1)
    rows = [row for row in metrics(tmp_path) if row["kl"]]
    assert len(rows) == 4 and all(float(row["grad_norm"]) > 0 for row in rows)
    for row in rows:
        assert abs(float(row["kl"])) < 1e-9
        assert {float(row[f"clip_ratio/{side}_mean"]) for side in ("low", "high", "region")} == {0.0}


def test_rows_are_scored_in_the_company_that_they_step_in(
    noisy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded in other company, log-probs are others, and a policy that has not moved would log a KL."""
    module = untouched(noisy, tmp_path, loss=LossSettings(beta=0.1, mask_truncated_completions=True), policy={})
    module.policy.eos_ids = lambda: list(range(0, 2000, 4))  # type: ignore[method-assign]  # some end in time
    passed: dict[str, list[torch.Tensor]] = {"logprobs": [], "loss": []}
    for name, seen in passed.items():

        def spy(
            sequences: Sequences, *args: Any, own: Any = getattr(module.policy, name), seen: Any = seen, **on: Any
        ) -> Any:
            seen.append(sequences.completion_ids_NT)
            return own(sequences, *args, **on)

        monkeypatch.setattr(module.policy, name, spy)
    run(module, tmp_path, resume="never", rows=4, epochs=1)
    first, *scored = passed["logprobs"]  # by which sampling is proven; then the old ones and the reference's
    stepped = passed["loss"]  # in two passes
    assert len(first) and len(scored) == len(stepped) and all(map(torch.equal, scored, stepped))
    assert 0 < sum(map(len, scored)) < 2 * 16


def test_dropout_can_be_asked_for_in_updates(noisy: str, tmp_path: Path) -> None:
    module = untouched(noisy, tmp_path, loss=LOSSES["sequence"], policy={}, dropout_in_updates=True)
    run(module, tmp_path, resume="never", epochs=1)
    first = metrics(tmp_path)[0]  # before anything was validated
    assert float(first["kl"]) > 1e-4 and float(first["clip_ratio/region_mean"]) > 0.1


def test_old_log_probs_are_scored_without_dropout(noisy: str, tmp_path: Path) -> None:
    """Also where updates have it: scored twice, they are the same."""
    module = untouched(noisy, tmp_path, loss=LOSSES["token"], policy={}, dropout_in_updates=True)
    scored: list[torch.Tensor] = []

    def score() -> None:
        assert module.policy.model.training
        sequences = next(iter(module.trainer.datamodule.val_dataloader())).sequences
        scored.extend(module.score(sequences, [torch.arange(len(sequences))]) for _ in range(2))
        with module.policy.inference():
            scored.append(module.policy.logprobs(sequences, 1.0)[0])

    run(module, tmp_path, At(2, score), resume="never", epochs=1)
    assert torch.equal(scored[0], scored[1])
    torch.testing.assert_close(scored[0], scored[2], rtol=0, atol=1e-5)


def test_sft_keeps_its_dropout(tiny_model: str, tmp_path: Path) -> None:
    """Without it the same run ends elsewhere; computed again, what was dropped is the same."""
    ends = []
    for at, (dropout, checkpointing) in enumerate(((0.5, False), (0.5, True), (0.0, False))):
        torch.manual_seed(5)
        lora = LoraSettings(rank=4, alpha=8.0, dropout=dropout)
        policy = PolicySettings(model=tiny_model, lora=lora, gradient_checkpointing=checkpointing)
        module = SFT(policy, OptimizerSettings(lr=1e-2), MetricSettings(names=("chrf",)), max_new_tokens=6)
        run(module, tmp_path / str(at), resume="never", epochs=1)
        ends.append(torch.cat([value.flatten() for value in trained(module).values()]))
    kept, again, without = ends
    torch.testing.assert_close(kept, again, rtol=0, atol=1e-6)
    assert (kept - without).abs().max() > 1e-3
