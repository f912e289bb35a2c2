"""An adapter at a part of its strength: base + scale * (trained - base) in every weight, or a reason why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lsemrl import micro
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import UserError


def adapter(folder: Path, **changes: object) -> Path:
    """An adapter of the embedded policy in which everything differs from the base."""
    base = AutoModelForCausalLM.from_pretrained(micro.POLICY)
    settings: dict[str, object] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(**{**settings, **changes}))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


def weights(folder: Path | None, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The plain model's weights, merged by peft where there is an adapter."""
    policy = Policy(PolicySettings(adapter=None if folder is None else str(folder), adapter_scale=scale))
    policy.load()
    return dict(policy.model.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": ["q_proj", "embed_tokens"]},
        pytest.param({"use_rslora": True, "rank_pattern": {"q_proj": 2}}, marks=pytest.mark.slow),
        {"modules_to_save": ["k_proj"]},
        {"trainable_token_indices": {"embed_tokens": [3, 5]}},
        pytest.param({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, marks=pytest.mark.slow),
    ],
    ids=["linears", "embeddings", "patterns", "modules_to_save", "tokens", "saved and kept tied"],
)
def test_every_weight_lies_between_the_base_and_what_was_trained(changes: dict[str, object], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", **changes)
    base, trained = weights(None), weights(folder)
    moved = [name for name in trained if name in base and not torch.equal(base[name], trained[name])]
    assert moved
    for scale in (0.0, 0.3):
        between = weights(folder, scale)
        assert between.keys() == trained.keys()
        for name, found in between.items():
            before = base[name] if name in base else torch.zeros_like(found)  # a bias that only the adapter has
            torch.testing.assert_close(found, before + scale * (trained[name] - before), atol=1e-6, rtol=0)


def test_biases_of_the_factors_are_scaled_with_them(tmp_path: Path) -> None:
    folder = str(adapter(tmp_path / "adapter", lora_bias=True))
    parts = []
    for scale in (1.0, 0.25):
        policy = Policy(PolicySettings(adapter=folder, adapter_scale=scale))
        policy.load()
        parts.append({name: weight for name, weight in policy.trained().items() if "lora_B" in name})
    assert any(name.endswith(".bias") for name in parts[0])
    assert all(torch.allclose(parts[1][name], 0.25 * weight) for name, weight in parts[0].items())


def test_what_is_no_plain_difference_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", use_dora=True)
    weights(folder)
    with pytest.raises(UserError, match=r"policy.adapter_scale is 0.5, but .*lora_.* is no plain difference"):
        weights(folder, 0.5)


@pytest.mark.parametrize(("scale", "says"), [(1.5, r"it must be in \[0, 1\]"), (float("nan"), "finite|in")])
def test_scales_are_between_nothing_and_all(scale: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PolicySettings(adapter="micro", adapter_scale=scale)
    with pytest.raises(UserError, match=r"policy.adapter is null"):
        PolicySettings(adapter_scale=0.5)


def test_the_reference_that_training_starts_from_is_scaled_too() -> None:
    policy = Policy(dataclasses.replace(PolicySettings(adapter="micro"), adapter_scale=0.5))
    policy.load()
    ids = torch.tensor([[5, 6, 7, 8]])
    with policy.inference():
        own = policy.model(input_ids=ids).logits
    with policy.reference():
        torch.testing.assert_close(policy.model(input_ids=ids).logits, own)
    with policy.base():
        assert not torch.allclose(policy.model(input_ids=ids).logits, own, atol=1e-3)


@pytest.mark.parametrize("field", ["lora_alpha", "use_rslora", "alpha_pattern"])
def test_the_same_weights_at_another_strength_are_another_adapter(field: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    before, path = adapter_fingerprint(folder), folder / "adapter_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**said, "revision": "main"}), encoding="utf-8")
    assert adapter_fingerprint(folder) == before
    other = {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"q_proj": 4}}[field]
    path.write_text(json.dumps({**said, field: other}), encoding="utf-8")
    assert adapter_fingerprint(folder) != before
