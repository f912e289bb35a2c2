"""Runs that start from adapters of other kinds: trained, stopped, resumed to the same bits, exported, measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lsemrl.errors import UserError
from lsemrl.modules.adapters.config import check_placement, new_config, read_config, without_effect
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.types import PromptBatch
from matrix import slow_but
from modules.adapters.kinds import KINDS, plain_peft, read, save_adapter, save_model
from short_runs import At, Stop, grpo, run, sft, stop, trained
from tiny import plain_logits


@pytest.mark.parametrize(
    ("make", "kind", "settings"),
    [
        pytest.param(grpo, "dora", {}, marks=pytest.mark.slow),
        pytest.param(grpo, "rows", {"ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.6}, marks=pytest.mark.slow),
        pytest.param(sft, "saved and kept tied", {}, marks=pytest.mark.slow),
        (sft, "Conv1D dora", {}),
    ],
    ids=["rl dora", "rl rows", "sft saved and kept tied", "sft Conv1D dora"],
)
def test_it_ends_as_if_nothing_had_happened(make: Any, kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    name, fields = KINDS[kind]
    model = str(save_model(tmp_path / "model", name))
    settings = settings | {"adapter": str(save_adapter(model, tmp_path / "adapter", lora_dropout=0.1, **fields))}
    whole = run(make(model, **settings), tmp_path / "whole", epochs=1)
    with pytest.raises(Stop):
        run(make(model, **settings), tmp_path / "stopped", At(3, stop), every_n_steps=2, epochs=1)
    newest = tmp_path / "stopped" / "checkpoints" / "step_2"
    resumed = run(make(model, **settings), tmp_path / "stopped", resume=str(newest), epochs=1)
    one, other = trained(whole), trained(resumed)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    began = trained(make_loaded(make(model, **settings)))
    assert all(not torch.equal(one[name], began[name]) for name in one)
    ids = torch.arange(12)[None]
    with torch.no_grad(), whole.policy.inference():
        found = whole.policy.model(ids).logits
        torch.testing.assert_close(found, plain_peft(model, tmp_path / "whole" / "adapter")(ids).logits)


def make_loaded(module: Any) -> Any:
    module.policy.load()
    return module


@pytest.mark.parametrize("kind", slow_but(["dora", "saved", "rows", "embedding and head", "biased"], ["dora", "rows"]))
def test_layers_computed_anew_give_the_same_gradients(kind: str, prompts: PromptBatch, tmp_path: Path) -> None:
    name, fields = KINDS[kind]
    model = str(save_model(tmp_path / "model", name))
    adapter = save_adapter(model, tmp_path / "adapter", **fields)
    found = []
    for anew in (False, True):
        policy = read(model, adapter, gradient_checkpointing=anew, reference="base")
        policy.logprobs(prompts.sequences)[0].sum().backward()
        found.append({name: weight.grad for name, weight in policy.trained().items()})
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("kind", slow_but(["plain", "dora", "rows", "saved", "embedding and head"], ["plain", "dora"]))
def test_a_base_in_bfloat16_is_what_plain_peft_computes(kind: str, prompts: PromptBatch, tmp_path: Path) -> None:
    name, fields = KINDS[kind]
    model = str(save_model(tmp_path / "model", name))
    adapter = save_adapter(model, tmp_path / "adapter", **fields)
    policy = read(model, adapter, dtype="bfloat16")
    plain = plain_peft(model, adapter, dtype=torch.bfloat16)
    logits = plain_logits(plain, prompts.sequences).detach()
    found = []
    for mode in (policy.inference, policy.merged):
        with mode():
            found.append((plain_logits(policy.model, prompts.sequences) - logits).float().abs().mean())
    assert max(found) < 0.05 * logits.float().std()
    assert (found[0] == 0) == (kind == "dora")  # which has no linear whose sums are rounded once


SHARDED, HALVED = {"sharded": True, "halved": False}, {"sharded": False, "halved": True}


@pytest.mark.parametrize(
    ("settings", "placed", "reason"),
    [
        (
            {"modules_to_save": ["embed_tokens"]},
            SHARDED,
            r"has modules_to_save \['embed_tokens'\], which is not proven",
        ),
        ({"trainable_token_indices": [3]}, SHARDED, r"has trainable_token_indices \[3\], which is not proven"),
        ({"modules_to_save": ["embed_tokens"]}, HALVED, "rounded away; set policy.dtype to float32"),
    ],
)
def test_what_is_not_proven_there_is_refused(settings: dict[str, Any], placed: dict[str, bool], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_placement(new_config(LoraSettings(**settings)), **placed)
    check_placement(new_config(LoraSettings()), sharded=True, halved=True)


def test_what_an_adapter_to_start_from_does_not_take_on_is_told_or_refused(tmp_path: Path) -> None:
    own = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["k_proj", "q_proj"], "modules_to_save": ["norm"]}
    new_config(LoraSettings(**own)).save_pretrained(tmp_path)  # type: ignore[arg-type]
    config = read_config(tmp_path)
    backwards = {**own, "target_modules": ["q_proj", "k_proj"]}
    for settings in ({}, own, backwards):
        assert not without_effect(LoraSettings(**settings), config)  # type: ignore[arg-type]
    said = without_effect(LoraSettings(rank=32, alpha=8, dropout=0.3), config)
    assert said.endswith("of policy.lora: rank 32, as policy.adapter has 4; dropout 0.3, as policy.adapter has 0")
    for name, value in (
        ("target_modules", ["q_proj"]),
        ("modules_to_save", ["embed_tokens"]),
        ("trainable_token_indices", [5, 9]),
    ):
        with pytest.raises(UserError, match=rf"policy\.lora\.{name} is .*, and policy\.adapter was made with others"):
            without_effect(LoraSettings(**{name: value}), config)  # type: ignore[arg-type]


def test_it_is_told_at_the_start_of_training(tiny_model: str, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    module = sft(tiny_model, adapter=str(adapter))
    module.policy.settings = replace(module.policy.settings, lora=LoraSettings(modules_to_save=["norm"]))
    with pytest.raises(UserError, match=r"policy\.lora\.modules_to_save is \['norm'\]"):
        run(module, tmp_path / "run")


def test_new_adapters_train_rows_and_modules(tiny_model: str, prompts: PromptBatch, tmp_path: Path) -> None:
    for settings, count in (
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, 2),
        ({"trainable_token_indices": [3]}, 1),
    ):
        lora = LoraSettings(rank=2, target_modules=["q_proj"], **settings)  # type: ignore[arg-type]
        policy = Policy(PolicySettings(model=tiny_model, lora=lora))
        policy.load()
        assert len(policy.trained()) == 4 + count
        with policy.inference():
            before, _ = policy.logprobs(prompts.sequences)
        with policy.base():
            torch.testing.assert_close(policy.logprobs(prompts.sequences)[0], before)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        policy.save(tmp_path / "new")
        assert read(tiny_model, tmp_path / "new").trained().keys() == policy.trained().keys()
