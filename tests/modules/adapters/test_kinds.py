"""An adapter of every kind that is accepted is what plain peft makes of it, wherever it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lsemrl.errors import UserError
from lsemrl.modules.adapters.merging import merge_for_good
from lsemrl.modules.policy import Policy
from lsemrl.modules.reference import held_against, sync_reference
from lsemrl.types import PromptBatch, Sequences
from matrix import slow_but
from modules.adapters.kinds import KINDS, logprobs, plain_peft, read, save_adapter, save_model
from tiny import stir

QUICK = {"plain", "dora", "Conv1D", "embedding and head", "saved and kept tied", "rows, untied"}
"""One of each thing that an adapter can train."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {kind: str(save_model(root / kind, kind)) for kind in ("tied", "untied", "gpt2")}


@pytest.fixture(scope="session", params=slow_but(KINDS, QUICK))
def made(
    request: pytest.FixtureRequest, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A model, and the folder of an adapter of it."""
    model, fields = KINDS[request.param]
    folder = tmp_path_factory.mktemp("adapter")
    return models[model], save_adapter(models[model], folder, **fields)


def scores(policy: Policy, sequences: Sequences) -> torch.Tensor:
    with policy.inference():
        return policy.logprobs(sequences)[0]


def test_it_is_what_plain_peft_computes(made: tuple[str, Path], prompts: PromptBatch) -> None:
    whole = prompts.sequences
    policy, truth = read(*made), logprobs(plain_peft(*made), whole)
    published = logprobs(AutoModelForCausalLM.from_pretrained(made[0], dtype=torch.float32).eval(), whole)
    close = {"rtol": 0.0, "atol": 1e-4}
    torch.testing.assert_close(scores(policy, whole), truth, **close)
    assert (truth - published).abs().max() > 0.1
    with policy.merged():
        torch.testing.assert_close(logprobs(policy.model, whole), truth, **close)
        torch.testing.assert_close(policy.logprobs(whole)[0], truth, **close)
    with policy.base():
        torch.testing.assert_close(policy.logprobs(whole)[0], published, **close)
    with policy.reference():
        torch.testing.assert_close(policy.logprobs(whole)[0], truth, **close)
    asking = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    stir(policy, scale=0.1)
    with policy.reference():
        torch.testing.assert_close(policy.logprobs(whole)[0], truth, **close)
        with policy.merged():
            torch.testing.assert_close(policy.logprobs(whole)[0], truth, **close)
    with policy.base():
        torch.testing.assert_close(policy.logprobs(whole)[0], published, **close)
    assert (scores(policy, whole) - truth).abs().max() > 0.01
    assert asking == [name for name, weight in policy.named_parameters() if weight.requires_grad]


def test_its_loss_has_autograds_gradients(made: tuple[str, Path], prompts: PromptBatch) -> None:
    whole = prompts.sequences
    policy = read(*made, reference="base")
    policy.eval()  # GPT-2 has dropout of its own
    mask = whole.completion_mask_NT
    loss, _ = policy.loss(whole, lambda tokens, logprobs, entropy: (-logprobs.sum(), {}))
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in policy.trained().items() if weight.grad is not None}
    policy.zero_grad()
    rows = []
    for row in range(len(mask)):
        prompt = whole.prompt_ids_BP[row][whole.prompt_mask_BP[row]]
        target = whole.completion_ids_NT[row][mask[row]]
        logits = policy.model(input_ids=torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.log_softmax(-1).gather(1, target[:, None]).sum())
    (-torch.stack(rows).sum()).backward()
    assert found.keys() == policy.trained().keys()
    for name, weight in policy.trained().items():
        torch.testing.assert_close(
            found[name], weight.grad, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_what_is_written_is_what_was_read(made: tuple[str, Path], prompts: PromptBatch, tmp_path: Path) -> None:
    policy = read(*made)
    stir(policy, scale=0.1)
    policy.save(tmp_path / "again")
    now = scores(policy, prompts.sequences)
    torch.testing.assert_close(
        logprobs(plain_peft(made[0], tmp_path / "again"), prompts.sequences), now, rtol=0, atol=1e-4
    )
    weights = policy.read(tmp_path / "again")
    assert weights.keys() == policy.trained().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in policy.trained().items())
    stir(policy, scale=0.1)
    policy.save(tmp_path / "as gathered", {name: weight for name, weight in weights.items()})
    for name in ("adapter_model.safetensors", "adapter_config.json", "lsemrl.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "as gathered" / name).read_bytes()


def test_merged_for_good_it_is_a_plain_model(made: tuple[str, Path], prompts: PromptBatch, tmp_path: Path) -> None:
    policy = read(*made, reference="base")
    before = scores(policy, prompts.sequences)
    if any(name.endswith("lora_B.default.bias") for name in policy.trained()):
        with pytest.raises(UserError, match=r"no plain model .*the base layer has no bias.*use the adapter instead"):
            merge_for_good(policy.model)
        return
    merge_for_good(policy.model).save_pretrained(tmp_path)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logprobs(stored, prompts.sequences), before, rtol=0, atol=1e-4)


def test_the_reference_moves_weight_by_weight(made: tuple[str, Path]) -> None:
    policy = read(*made, ref_model_sync_steps=1, ref_model_mixup_alpha=0.25)
    before = {name: weight.clone() for name, weight in held_against(policy).items()}
    stir(policy, scale=0.1)
    sync_reference(policy)
    trained = sum(float(weight.sum()) for weight in policy.trained().values())
    moved = sum(float(weight.sum()) for weight in held_against(policy).values())
    began = sum(float(weight.sum()) for weight in before.values())
    assert moved == pytest.approx(0.25 * trained + 0.75 * began, abs=1e-2)
    assert len(before) == len(policy.trained())
