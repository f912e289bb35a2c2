"""A base in 4 bits: what it computes is what the plain model does that is exported of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lsemrl.cli.main import main
from lsemrl.errors import UserError
from lsemrl.evaluation.measurement import FILE, Measured
from lsemrl.modules.adapters.loading import check_shardable
from lsemrl.modules.memory import estimate_memory
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.quantization import is_quantized, plain_weight
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.types import PromptBatch, Sequences
from tiny import make_policy, save_tiny_model

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of at least a block of 64 numbers, as those of real models."""
    return str(save_tiny_model(tmp_path_factory.mktemp("wide"), hidden=64))


@pytest.fixture
def small(wide_model: str) -> Policy:
    return make_policy(wide_model, quantization="nf4")


@contextmanager
def plain_twin(policy: Policy, folder: Path) -> Iterator[Policy]:
    """The same adapter on the plain model of what 4 bits left."""
    policy.save(folder)
    twin = Policy(dataclasses.replace(policy.settings, adapter=str(folder), reference="base"))
    twin.load(plain=True)
    yield twin


def four_bit_linears(policy: Policy) -> list[nn.Module]:
    return [module for module in policy.modules() if is_quantized(module._parameters.get("weight"))]


def gradients(policy: Policy, sequences: Sequences) -> dict[str, Tensor]:
    policy.zero_grad()
    policy.logprobs(sequences)[0].sum().backward()
    return {
        name.replace(".base_layer", ""): weight.grad
        for name, weight in policy.trained().items()
        if weight.grad is not None
    }


def test_it_computes_as_the_plain_model_that_is_exported(
    small: Policy, wide_model: str, prompts: PromptBatch, tmp_path: Path
) -> None:
    held = [name for name, weight in small.named_parameters() if is_quantized(weight)]
    assert len(held) == 2 * 7  # every linear of both layers, and no head
    sequences = prompts.sequences
    with plain_twin(small, tmp_path) as twin:
        assert not any(is_quantized(weight) for weight in twin.parameters())
        assert small.fingerprint == twin.fingerprint != make_policy(wide_model).fingerprint
        torch.testing.assert_close(small.logprobs(sequences)[0], twin.logprobs(sequences)[0], atol=1e-5, rtol=1e-5)
        with small.base(), twin.base():
            torch.testing.assert_close(small.logprobs(sequences)[0], twin.logprobs(sequences)[0], atol=1e-5, rtol=1e-5)
        found, expected = gradients(small, sequences), gradients(twin, sequences)
        assert len(found) == len(expected) == 2 * 7 * 2
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4)


def test_it_is_not_the_model_before_rounding(small: Policy, wide_model: str, prompts: PromptBatch) -> None:
    with small.base():
        rounded = small.logprobs(prompts.sequences)[0]
    whole = make_policy(wide_model)
    with whole.base():
        assert (whole.logprobs(prompts.sequences)[0] - rounded).abs().max() > 0.01


def test_completions_are_drawn_from_what_learns(small: Policy, prompts: PromptBatch) -> None:
    before = {name: weight.clone() for name, weight in small.named_parameters()}
    linears = four_bit_linears(small)
    options = Sampling(num_generations=2, max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0)
    drawn = sample(small, prompts, options, seed=0)
    with small.inference():
        scored_NT, _ = small.logprobs(drawn.sequences)
    assert drawn.logprobs_NT is not None
    torch.testing.assert_close(drawn.logprobs_NT, scored_NT, atol=1e-5, rtol=1e-5)
    with small.merged():
        assert not four_bit_linears(small)
    assert four_bit_linears(small) == linears
    assert all(torch.equal(weight, before[name]) for name, weight in small.named_parameters())


def test_activations_may_be_computed_again(small: Policy, wide_model: str, prompts: PromptBatch) -> None:
    again = make_policy(wide_model, quantization="nf4", gradient_checkpointing=True)
    found, expected = gradients(again, prompts.sequences), gradients(small, prompts.sequences)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_memory_is_counted_as_it_is_held(small: Policy, wide_model: str, prompts: PromptBatch) -> None:
    def estimate(policy: Policy) -> tuple[int, int]:
        whole = prompts.sequences
        batches = micro_batches(whole, torch.arange(len(whole)), 100, share=True)
        found = estimate_memory(policy.model, whole, batches, checkpointing=False, chunk_tokens=1)
        return found.weights, found.sampling

    linears = [weight for weight in small.parameters() if is_quantized(weight)]
    numbers = sum(plain_weight(weight).numel() for weight in linears)
    (weights, sampling), (more, same) = estimate(small), estimate(make_policy(wide_model))
    assert more - weights == 4 * numbers - numbers // 2
    assert sampling == same  # where they are written out


def test_an_adapter_is_of_the_base_that_it_was_trained_on(small: Policy, wide_model: str, tmp_path: Path) -> None:
    small.save(tmp_path)
    with pytest.raises(UserError, match=r"with the policy\.quantization it had"):
        Policy(PolicySettings(model=wide_model, adapter=str(tmp_path))).load()
    Policy(PolicySettings(model=wide_model, adapter=str(tmp_path), quantization="nf4")).load()


def test_it_cannot_be_spread_over_ranks(small: Policy) -> None:
    with pytest.raises(UserError, match=r"4 bits are not spread over ranks; train with configs/ddp\.yaml"):
        check_shardable(small.model)


def test_transposed_linears_are_refused(wide_model: str, tmp_path: Path) -> None:
    """They would be exported as what they are not."""
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    tokenizer = AutoTokenizer.from_pretrained(wide_model)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), eos_token_id=1, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="stored transposed"):
        Policy(PolicySettings(model=str(tmp_path), quantization="nf4")).load()


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"policy\.quantization is nf4, but policy.train is full"):
        PolicySettings(quantization="nf4", train="full")
    monkeypatch.setattr("lsemrl.modules.policy_settings.find_spec", lambda name: None)
    PolicySettings().check_files()
    with pytest.raises(UserError, match=r"pip install 'lsemrl\[nf4\]'"):
        PolicySettings(quantization="nf4").check_files()


@pytest.mark.slow
def test_trained_measured_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from the command line; what is exported is what was trained, with peft and transformers alone."""
    monkeypatch.chdir(tmp_path)
    few = ("--data.init_args.micro.train=24", "--data.init_args.micro.validation=2", "--data.init_args.micro.test=2")
    small = (
        "--data.init_args.splits.cold_start_count=8",
        "--data.init_args.batch_size=2",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=0",
    )
    nf4 = ("--trainer.accelerator=cpu", "--model.policy.quantization=nf4", "--model.policy.adapter=null")
    main(["fit", "--config", "grpo.yaml", *few, *small, *nf4, "--model.sampling.max_new_tokens=4"])
    main(["export", "newest", "--merged", "--output", "out"])
    run = next(Path("runs").rglob("adapter_config.json")).parent
    policy = Policy(PolicySettings(adapter=str(run), quantization="nf4"))
    policy.load()
    ids = policy.tokenizer("老师买了书。", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained("out/base")
    assert not hasattr(base.config, "quantization_config")
    merged = AutoModelForCausalLM.from_pretrained("out/merged")
    adapted = PeftModel.from_pretrained(base, "out/adapter")
    with torch.no_grad(), policy.inference():
        expected = policy.model(input_ids=ids).logits
        for model in (merged, adapted):
            torch.testing.assert_close(model.eval()(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    Path("in.txt").write_text("老师买了书。\n", encoding="utf-8")
    alone = shutil.copytree(run, Path("alone"))  # within its run it is asked as the run was
    for named in (alone, Path("out")):  # by the passport of the one, and the base beside the other
        main(["generate", str(named), "--input", "in.txt", "--output", f"{named.name}.txt", "--max-new-tokens", "4"])
    assert Path("alone.txt").read_text() == Path("out.txt").read_text()
    words = ("--target.init_args.micro.test=2", "--general=null", "--text.rows=2", "--max_new_tokens=4", "--device=cpu")
    arm = ("--arm=rl", f"--policy.adapter={run}", "--policy.quantization=nf4")
    main(["measure", "--config", "measure/translation.yaml", *words, *arm, "--output", "measured"])
    measured = Measured.read(Path("measured") / FILE)
    assert measured.base_fingerprint == policy.fingerprint and measured.weight_change > 0
