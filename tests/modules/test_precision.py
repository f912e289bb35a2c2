"""What is trained is float32, and mixed precision casts the weights there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lsemrl.types import UserError
from short_runs import grpo, run, sft, trained


def test_mixed_precision_trains_the_weights_there_are(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Lightning that caches casts (2.5.0 to 2.5.4) gives gradients of weights before they moved, or none."""
    expected = trained(run(grpo(tiny_model), tmp_path / "expected", epochs=1, precision="bf16-mixed"))
    monkeypatch.setattr(
        MixedPrecision, "autocast_context_manager", lambda _: torch.autocast("cpu", torch.bfloat16, cache_enabled=True)
    )
    found = trained(run(grpo(tiny_model), tmp_path / "found", epochs=1, precision="bf16-mixed"))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name


@pytest.mark.parametrize("kind", [sft, grpo])
def test_full_fine_tuning_of_half_precision_weights_is_refused(tiny_model: str, tmp_path: Path, kind: type) -> None:
    """In bfloat16 a step of 5e-7 moves a weight in five hundred."""
    module = kind(tiny_model, train="full", dtype="bfloat16")
    with pytest.raises(UserError, match=r"policy.dtype is bfloat16, .*set policy.dtype to float32"):
        run(module, tmp_path)
    assert module.policy.model is None  # told before weights are read


def test_an_adapter_with_whole_layers_in_half_precision_is_refused(tiny_model: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    module = sft(tiny_model, adapter=str(tmp_path / "adapter"), dtype="bfloat16")
    with pytest.raises(UserError, match=r"embed_tokens.* in bfloat16, where small .* policy.dtype to float32"):
        run(module, tmp_path / "run")
