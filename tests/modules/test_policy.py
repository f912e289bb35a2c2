"""The policy: what it scores, what it is held against, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from lsemrl.errors import UserError
from lsemrl.modules.adapters import merging
from lsemrl.modules.adapters.merging import merge_for_good, rounded
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.pretrained import fingerprint
from lsemrl.types import PromptBatch
from tiny import make_policy, plain_logits, save_tiny_model, stir


def test_logprobs_of_a_padded_batch_are_those_of_each_row_alone(policy: Policy, prompts: PromptBatch) -> None:
    sequences = prompts.sequences
    with policy.inference():
        logprobs_NT, entropy_NT = policy.logprobs(sequences, temperature=0.7)
        for row in range(len(sequences)):
            prompt = sequences.prompt_ids_BP[row][sequences.prompt_mask_BP[row]]
            target = sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]]
            logits = policy.model(input_ids=torch.cat([prompt, target])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
            distribution = torch.distributions.Categorical(logits=logits)
            torch.testing.assert_close(logprobs_NT[row, : len(target)], distribution.log_prob(target))
            torch.testing.assert_close(entropy_NT[row, : len(target)], distribution.entropy())
            assert not logprobs_NT[row, len(target) :].any()
            assert not entropy_NT[row, len(target) :].any()


def test_base_is_the_published_model(policy: Policy, prompts: PromptBatch, tiny_model: str) -> None:
    published = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = prompts.prompt_ids_BP[:1][:, prompts.prompt_mask_BP[0]]
    with policy.base():
        torch.testing.assert_close(policy.model(input_ids=ids).logits, published(input_ids=ids).logits)
    with policy.inference():
        assert not torch.allclose(policy.model(input_ids=ids).logits, published(input_ids=ids).logits, atol=0.1)


def test_reference_is_the_adapter_that_training_started_from(
    policy: Policy, prompts: PromptBatch, tiny_model: str, tmp_path: Path
) -> None:
    policy.save(tmp_path)
    with policy.inference():
        started, _ = policy.logprobs(prompts.sequences)
    trained = make_policy(tiny_model, adapter=str(tmp_path))
    moved = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    stir(trained)
    with trained.reference():
        reference, _ = trained.logprobs(prompts.sequences)
    torch.testing.assert_close(reference, started)
    with trained.inference():
        now, _ = trained.logprobs(prompts.sequences)
    assert not torch.allclose(now, started, atol=0.1)
    # Looking at the reference must not change what is trained.
    assert moved == [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert not any("reference" in name for name in moved)


def test_reference_base_with_an_adapter_to_start_from(policy: Policy, prompts: PromptBatch, tmp_path: Path) -> None:
    policy.save(tmp_path)
    trained = make_policy(policy.settings.model, adapter=str(tmp_path), reference="base")
    with trained.base():
        base, _ = trained.logprobs(prompts.sequences)
    with trained.reference():
        reference, _ = trained.logprobs(prompts.sequences)
    torch.testing.assert_close(reference, base)


def test_a_new_adapter_changes_nothing_yet(prompts: PromptBatch, tiny_model: str) -> None:
    policy = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=2)))
    policy.load()
    with policy.reference():
        reference, _ = policy.logprobs(prompts.sequences)
    with policy.inference():
        now, _ = policy.logprobs(prompts.sequences)
    torch.testing.assert_close(now, reference)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_lora_factor_learns(tiny_model: str, prompts: PromptBatch, checkpointing: bool) -> None:
    policy = Policy(PolicySettings(model=tiny_model, lora=LoraSettings(rank=2), gradient_checkpointing=checkpointing))
    policy.load()
    policy.train()
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_B" in name}
    for _ in range(2):
        logprobs_NT, _ = policy.logprobs(prompts.sequences)
        optimizer.zero_grad()
        (-logprobs_NT.sum()).backward()
        optimizer.step()
    after = dict(policy.named_parameters())
    assert len(before) == 2 * 7  # two layers of q, k, v, o, gate, up and down
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is not None and p.grad.any() for name, p in after.items() if "lora_A" in name)


def test_checkpointing_gives_the_same_gradients(tiny_model: str, prompts: PromptBatch) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(tiny_model, gradient_checkpointing=checkpointing)
        policy.train()
        logprobs_NT, _ = policy.logprobs(prompts.sequences)
        logprobs_NT.sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_full_fine_tuning_keeps_a_copy_of_the_base(tiny_model: str, prompts: PromptBatch) -> None:
    policy = Policy(PolicySettings(model=tiny_model, train="full"))
    policy.load()
    assert not policy.adapted
    with policy.inference():
        before, _ = policy.logprobs(prompts.sequences)
    stir(policy, scale=0.05)
    with policy.base():
        base, _ = policy.logprobs(prompts.sequences)
    with policy.reference():
        reference, _ = policy.logprobs(prompts.sequences)
    torch.testing.assert_close(base, before)
    torch.testing.assert_close(reference, before)
    with policy.inference():
        now, _ = policy.logprobs(prompts.sequences)
    assert not torch.allclose(now, before, atol=1e-2)


def test_full_fine_tuning_without_reference_has_no_base(tiny_model: str) -> None:
    policy = Policy(PolicySettings(model=tiny_model, train="full", reference="none"))
    policy.load()
    with pytest.raises(UserError, match=r"kept no copy of the base; set policy\.reference to base"), policy.base():
        pass


def test_mode_and_gradients_come_back(policy: Policy) -> None:
    policy.train()
    with policy.base():
        assert not policy.model.training
        assert not torch.is_grad_enabled()
    assert policy.model.training
    assert torch.is_grad_enabled()


def test_adapters_are_float32_on_a_bfloat16_base(tiny_model: str) -> None:
    policy = make_policy(tiny_model, dtype="bfloat16")
    dtypes = {p.requires_grad: p.dtype for p in policy.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_saved_adapter_opens_with_peft_alone(policy: Policy, prompts: PromptBatch, tmp_path: Path) -> None:
    policy.save(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy.settings.model), tmp_path).eval()
    ids = prompts.prompt_ids_BP[:1][:, prompts.prompt_mask_BP[0]]
    with policy.inference():
        torch.testing.assert_close(plain(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_fingerprint_tells_models_apart_in_any_dtype(tiny_model: str, tmp_path: Path) -> None:
    one = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path, seed=1), dtype=torch.float32)
    assert fingerprint(one) == fingerprint(one.to(torch.bfloat16))
    assert fingerprint(one) != fingerprint(other)


def test_an_adapter_of_another_base_is_refused(policy: Policy, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    policy.save(adapter)
    same_shape = save_tiny_model(tmp_path / "same_shape", seed=7)
    with pytest.raises(UserError, match="trained on another base model"):
        make_policy(str(same_shape), adapter=str(adapter))
    # An adapter from elsewhere carries no fingerprint; its shapes must tell.
    (adapter / "lsemrl.json").unlink()
    wider = save_tiny_model(tmp_path / "wider", hidden=64)
    with pytest.raises(UserError, match="belongs to another base model"):
        make_policy(str(wider), adapter=str(adapter))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "no/such-folder-or-model"}, r"policy\.model is 'no/such-folder-or-model'"),
        ({"adapter": "nowhere"}, r"policy\.adapter is 'nowhere', which is not there"),
        ({"adapter": "somewhere", "train": "full"}, r"policy\.train is full"),
    ],
)
def test_mistakes_are_told_before_weights_load(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Policy(PolicySettings(**settings))  # type: ignore[arg-type]


def test_what_full_fine_tuning_leaves_is_a_model(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"which is a whole model, .*; name it as policy\.model"):
        Policy(PolicySettings(adapter=tiny_model))


def test_lora_settings_are_checked() -> None:
    with pytest.raises(UserError, match="rank is 0"):
        LoraSettings(rank=0)
    with pytest.raises(UserError, match="dropout is 1"):
        LoraSettings(dropout=1.0)
    with pytest.raises(UserError, match=r"policy\.lora\.target_modules is \[\]; name at least one linear"):
        LoraSettings(target_modules=[], modules_to_save=["embed_tokens"])


@pytest.mark.parametrize("settings", [{}, {"train": "full"}], ids=str)
def test_merged_is_the_same_model_and_leaves_no_trace(
    tiny_model: str, prompts: PromptBatch, settings: dict[str, object]
) -> None:
    policy = make_policy(tiny_model, **settings)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    asking = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    with policy.inference():
        apart = plain_logits(policy.model, prompts.sequences)
    with policy.merged():
        together = plain_logits(policy.model, prompts.sequences)
        changed = [name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])]
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert bool(changed) == (not settings)  # full ones have nothing to merge
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert asking == [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    with policy.inference():
        assert torch.equal(plain_logits(policy.model, prompts.sequences), apart)


def updated(policy: Policy, share: float) -> Policy:
    """With updates of a share of the weights, as root mean squares."""
    generator = torch.Generator().manual_seed(0)
    for module in policy.model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer):
            first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            first.data.normal_(generator=generator)
            second.data.normal_(generator=generator)
            asked = share * layer.get_base_layer().weight.float().square().mean().sqrt()
            with torch.no_grad():
                second *= asked / layer.get_delta_weight("default").square().mean().sqrt()
    return policy


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.005])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_half_precision_loses_no_update_however_small(tiny_model: str, dtype: str, share: float) -> None:
    """The nearest bfloat16 would keep .3 of the second and .99 of the last; mixed precision would take that itself."""
    policy = updated(make_policy(tiny_model, dtype=dtype), share)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    layers: list[Any] = [module for module in policy.model.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        updates = [layer.get_delta_weight("default") for layer in layers]
        own = [layer.get_base_layer().weight.to(torch.bfloat16).float() for layer in layers]
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), policy.merged():
            found.append([layer.get_base_layer().weight.clone() for layer in layers])
        assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    merged, again = found
    assert all(map(torch.equal, merged, again))
    assert {weight.dtype for weight in merged} == {torch.bfloat16}
    off = [one.float() - weight - update for one, weight, update in zip(merged, own, updates, strict=True)]
    step = 2**-7  # between two numbers of bfloat16, at most, as a share
    for error, weight, update in zip(off, own, updates, strict=True):
        assert (error.abs() <= step * (weight + update).abs()).all()
    left = sum(float(((error + update) * update).double().sum()) for error, update in zip(off, updates, strict=True))
    whole = sum(float(update.double().square().sum()) for update in updates)
    assert left == pytest.approx(whole, rel=0.05)
    if not share:
        assert all(map(torch.equal, [weight.float() for weight in merged], own))


@pytest.mark.parametrize("settings", [{}, {"train": "full"}, {"lora": LoraSettings(target_modules=["q_proj"])}])
def test_mixed_precision_draws_from_weights_that_were_cast_before(
    settings: dict[str, Any], tiny_model: str, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model, **settings)
    before = {name: (value, value.data_ptr(), value.dtype) for name, value in policy.model.named_parameters()}

    def read() -> tuple[Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16), policy.merged(), Casts() as casts:
            return plain_logits(policy.model, prompts.sequences), casts.matrices

    found, casts = read()
    assert casts == 0
    monkeypatch.setattr(merging, "recast", lambda model: [])
    expected, casts = read()
    assert casts > 0
    assert torch.equal(found, expected)
    for name, value in policy.model.named_parameters():
        own, address, dtype = before[name]
        assert value is own and value.data_ptr() == address and value.dtype == dtype


class Casts(TorchDispatchMode):
    """Counts the matrices that are cast; activations have a dimension more."""

    matrices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As it would be without."""
        self.matrices += func is torch.ops.aten._to_copy.default and args[0].dim() == 2
        return func(*args, **(kwargs or {}))


def test_the_model_that_is_exported_is_the_one_that_was_sampled_from(tiny_model: str) -> None:
    """Of an update that the nearest bfloat16 would leave out; what no adapter changed is as it was read."""
    policy = updated(make_policy(tiny_model, dtype="bfloat16"), 0.0005)
    with policy.merged():
        drawn = {name: value.clone() for name, value in policy.model.get_base_model().state_dict().items()}
    plain = merge_for_good(policy.model.float(), torch.bfloat16).state_dict()
    assert {value.dtype for value in plain.values()} == {torch.bfloat16}
    for name, value in plain.items():
        assert torch.equal(value, drawn.get(name, drawn.get(name.replace(".weight", ".base_layer.weight")))), name


def test_chances_are_those_of_the_number() -> None:
    generator = torch.Generator().manual_seed(0)
    for number in (1 + 2**-9, -1 - 2**-9, 3e-5, 0.0, 2.0):
        drawn = rounded(torch.full((20_000,), number), torch.bfloat16, generator).double()
        low, high = float(drawn.min()), float(drawn.max())
        assert low <= number <= high and len(drawn.unique()) <= 2
        assert float(drawn.mean()) == pytest.approx(number, abs=0.02 * (high - low))
    exact = torch.randn(5)
    assert rounded(exact, torch.float32, generator) is exact


def test_merged_is_whatever_model_is_switched_on(policy: Policy, prompts: PromptBatch) -> None:
    with policy.base():
        apart = plain_logits(policy.model, prompts.sequences)
        with policy.merged():
            assert torch.equal(plain_logits(policy.model, prompts.sequences), apart)


def test_weights_come_back_after_an_error(policy: Policy) -> None:
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with pytest.raises(KeyError), policy.merged():
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_loaded_model_is_in_training_mode(tiny_model: str) -> None:
    for settings in ({}, {"train": "full"}):
        assert make_policy(tiny_model, **settings).model.training  # type: ignore[arg-type]
