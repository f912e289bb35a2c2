"""Every family in the matrix: scored, trained and sampled as transformers computes it, row by row."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from lsemrl import micro
from lsemrl.errors import UserError
from lsemrl.modules.adapters.config import new_config
from lsemrl.modules.adapters.loading import adapter_tensors, new_adapter
from lsemrl.modules.families import cache_name, expert_blocks, native_positions
from lsemrl.modules.forward import prove
from lsemrl.modules.losses import likelihood_loss
from lsemrl.modules.memory import estimate_memory
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sharding import whole_tensors
from lsemrl.types import PromptBatch, Sequences
from matrix import slow_but, slow_cases_but
from short_runs import At, Stop, grpo, run, sft, stop, trained
from tiny import begun_alike, plain_logits, stir

TOKENIZER = AutoTokenizer.from_pretrained(micro.POLICY)
SMALL = {
    "vocab_size": len(TOKENIZER) + 3,  # some tokenizers add tokens of their own
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": None,
    "initializer_range": 0.3,  # far from uniform, so that mistakes show
}
NO_WIDTH = {key: value for key, value in SMALL.items() if key != "head_dim"}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
VISION = {
    **{"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False},
}
LINEAR = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4},
}


def config(kind: str, **fields: Any) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.for_model(kind, **fields)
    return found


FAMILIES = {
    "llama": lambda: config("llama", **SMALL),
    "gemma": lambda: config("gemma", **SMALL),
    "qwen2": lambda: config("qwen2", **SMALL),
    "qwen2 sliding": lambda: config("qwen2", **SMALL, **SLIDING, use_sliding_window=True),
    "qwen3": lambda: config("qwen3", **SMALL),
    "qwen3 sliding": lambda: config("qwen3", **SMALL, **SLIDING, use_sliding_window=True),
    "qwen3 moe": lambda: config("qwen3_moe", **SMALL, **EXPERTS, mlp_only_layers=[1]),
    "qwen2 moe": lambda: config("qwen2_moe", **SMALL, **EXPERTS, shared_expert_intermediate_size=24),
    "mixtral": lambda: config("mixtral", **SMALL, num_local_experts=4, router_jitter_noise=0.1),
    "mixtral that logs its router": lambda: config("mixtral", **SMALL, num_local_experts=4, output_router_logits=True),
    "mistral": lambda: config("mistral", **SMALL, sliding_window=None),
    "mistral sliding": lambda: config("mistral", **SMALL, sliding_window=6),
    "phi3": lambda: config("phi3", **SMALL, sliding_window=6),
    "gpt2": lambda: config(
        "gpt2",
        **{key: SMALL[key] for key in ("vocab_size", "eos_token_id", "pad_token_id", "bos_token_id")},
        **{"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3},
    ),
    "gemma3 text": lambda: config("gemma3_text", **SMALL, **SLIDING),
    "gemma3": lambda: config("gemma3", text_config={**SMALL, **SLIDING}, vision_config=VISION, mm_tokens_per_image=4),
    "gemma2": lambda: config("gemma2", **SMALL, **SLIDING, final_logit_softcapping=2.0),
    "gemma4": lambda: config(  # the last layer has the keys and values of the one before
        "gemma4_text", **{**SMALL, "num_hidden_layers": 3}, sliding_window=6, num_kv_shared_layers=1,
        layer_types=["sliding_attention", "full_attention", "full_attention"], global_head_dim=24,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=SMALL["vocab_size"],
    ),
    "qwen3.5": lambda: config("qwen3_5_text", **SMALL, **LINEAR),
    "qwen3-next": lambda: config("qwen3_next", **SMALL, **LINEAR, **EXPERTS, shared_expert_intermediate_size=24),
    "smollm3": lambda: config("smollm3", **SMALL, **SLIDING, use_sliding_window=True, no_rope_layers=[1, 0]),
    "olmo3": lambda: config("olmo3", **NO_WIDTH, **SLIDING),
    "apertus": lambda: config("apertus", **NO_WIDTH),
    "deepseek v3": lambda: config(
        "deepseek_v3", **{**NO_WIDTH, "num_key_value_heads": 2}, kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=16,
        qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        n_group=1, topk_group=1, first_k_dense_replace=1,
    ),
    "granite": lambda: config("granite", **NO_WIDTH, logits_scaling=3.0),
    "cohere": lambda: config("cohere", **NO_WIDTH, logit_scale=0.3),
    "gpt-oss": lambda: config(
        "gpt_oss", **SMALL, **SLIDING, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "bloom": lambda: config(
        "bloom", **{key: SMALL[key] for key in ("vocab_size", "hidden_size", "eos_token_id", "pad_token_id")},
        n_layer=2, n_head=2,
    ),
}  # fmt: skip
QUICK = {"qwen3", "mistral sliding", "gpt2", "gemma3", "gemma4", "mixtral", "qwen3.5"}
"""One of each way to be computed."""
PLAIN = {"gemma2", "gemma4", "qwen3.5", "qwen3-next", "granite", "cohere", "bloom"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the model of a family, written once."""
    folders: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("family")
            save(FAMILIES[family](), folders[family])
        return folders[family]

    return write


def save(made: PretrainedConfig, folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(0.1 * torch.randn(weight.shape))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.generation_config.pad_token_id = TOKENIZER.pad_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def load(folder: Path, **settings: Any) -> Policy:
    settings = {"lora": LoraSettings(rank=4, alpha=8.0, dropout=0.0), **settings}
    policy = Policy(PolicySettings(model=str(folder), **settings))
    torch.manual_seed(1)
    policy.load()
    stir(policy, 0.1)
    return policy


def completions(prompts: PromptBatch) -> Sequences:
    """Two behind each prompt, of many lengths, some longer than the windows."""
    generator = torch.Generator().manual_seed(3)
    count = 2 * len(prompts.examples)
    lengths = torch.tensor([9, 4, 1, 7, 12, 2])[:count]
    return Sequences(
        prompt_ids_BP=prompts.prompt_ids_BP,
        prompt_mask_BP=prompts.prompt_mask_BP,
        prompt_of_N=torch.arange(count) // 2,
        completion_ids_NT=torch.randint(10, 900, (count, 12), generator=generator),
        completion_mask_NT=torch.arange(12) < lengths[:, None],
    )


def alike(whole: Sequences) -> Sequences:
    """A prompt for each, which begins as all do; the shortest goes no further."""
    own = whole.repeated
    prefix = int(own.prompt_mask_BP.sum(dim=1).min())
    place_BP = own.prompt_mask_BP.cumsum(dim=1)
    begins_BP = own.prompt_mask_BP & (place_BP <= prefix)
    return replace(own, prompt_ids_BP=torch.where(begins_BP, 40 + place_BP, own.prompt_ids_BP), prefix=prefix)


def truth(model: Any, whole: Sequences) -> Tensor:
    """Log-probs [M] of completion tokens, each row by itself."""
    logits_MV = plain_logits(model, whole)[whole.completion_mask_NT]
    targets_M = whole.completion_ids_NT[whole.completion_mask_NT]
    return logits_MV.log_softmax(-1).gather(1, targets_M[:, None])[:, 0]


@pytest.mark.parametrize("family", slow_but(FAMILIES, QUICK))
def test_a_family_is_scored_and_learns_as_row_by_row(
    family: str, saved: Any, prompts: PromptBatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy, whole = load(saved(family)), completions(prompts)
    policy.model.eval()  # experts that are jittered in training are not what this is about
    with caplog.at_level(logging.WARNING, logger="lsemrl"):
        loss, _ = policy.loss(whole, likelihood_loss(torch.linspace(-1, 1, int(whole.completion_mask_NT.sum()))))
    assert policy.shares_prompts == (family not in PLAIN)
    assert ("computes its prompt anew" in caplog.text) == (family in PLAIN)
    found_NT, _ = policy.logprobs(whole)
    true_M = truth(policy.model, whole)
    torch.testing.assert_close(found_NT[whole.completion_mask_NT], true_M, rtol=1e-4, atol=1e-4)
    behind = alike(whole)
    behind_NT, _ = policy.logprobs(behind)
    found_M = behind_NT[whole.completion_mask_NT]
    torch.testing.assert_close(found_M, truth(policy.model, behind), rtol=1e-4, atol=1e-4)
    trained = list(policy.trained().values())
    own = torch.autograd.grad(loss, trained, allow_unused=True)
    plain = torch.autograd.grad(-(true_M * torch.linspace(-1, 1, len(true_M))).sum(), trained, allow_unused=True)
    off = sum(float((a - b).square().sum()) for a, b in zip(own, plain, strict=True) if a is not None and b is not None)
    size = sum(float(b.square().sum()) for b in plain if b is not None)
    assert size > 0 and (off / size) ** 0.5 < 1e-4
    assert [one is None for one in own] == [one is None for one in plain]


@pytest.mark.parametrize("family", slow_but(FAMILIES, QUICK))
def test_a_family_is_sampled_as_transformers_generates(family: str, saved: Any, prompts: PromptBatch) -> None:
    policy = load(saved(family))
    shortest = int(prompts.prompt_mask_BP.sum(dim=1).min())
    ends = replace(
        prompts,
        prompt_ids_BP=prompts.prompt_ids_BP[:, -shortest:],
        prompt_mask_BP=prompts.prompt_mask_BP[:, -shortest:],
    )
    for batch in (prompts, begun_alike(prompts), begun_alike(ends)):  # the last without padding
        rollouts = sample(policy, batch, Sampling(num_generations=2, temperature=0.0, max_new_tokens=10), seed=0)
        ids_NT, mask_NT = rollouts.sequences.completion_ids_NT, rollouts.sequences.completion_mask_NT
        policy.model.eval()
        for row, prompt in enumerate(rollouts.sequences.prompt_of_N.tolist()):
            alone = batch.prompt_ids_BP[prompt][batch.prompt_mask_BP[prompt]][None]
            written = policy.model.generate(
                input_ids=alone, attention_mask=torch.ones_like(alone), do_sample=False, max_new_tokens=10,
                eos_token_id=policy.eos_ids(),
            )[0, alone.shape[1] :]  # fmt: skip
            assert ids_NT[row][mask_NT[row]].tolist() == written.tolist()
    drawn = sample(policy, prompts, Sampling(num_generations=2, temperature=1.0, max_new_tokens=6), seed=0)
    assert len(drawn.completions) == 6


def test_keys_and_values_go_by_the_name_that_a_model_has_for_them() -> None:
    class Newer:
        def forward(self, input_ids: Tensor, cache: Any = None, **others: Any) -> None: ...

    class Older:
        def forward(self, input_ids: Tensor, past_key_values: Any = None) -> None: ...

    class States:
        def forward(self, input_ids: Tensor, cache_params: Any = None) -> None: ...

    assert [cache_name(model) for model in (Newer(), Older, States)] == ["cache", "past_key_values", None]
    tiny: Any = AutoModelForCausalLM.from_pretrained(micro.POLICY)
    kept = tiny(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)[str(cache_name(tiny))]
    assert kept.get_seq_length() == 2


@pytest.mark.parametrize("family", slow_but(FAMILIES, QUICK))
def test_memory_of_a_family_is_estimated(family: str, saved: Any, prompts: PromptBatch) -> None:
    policy = load(saved(family), lora=LoraSettings(rank=2))  # with dropout, as by default
    whole = completions(prompts)
    batches = micro_batches(whole, torch.arange(len(whole)), 64, share=policy.shares_prompts)
    estimate = estimate_memory(policy.model, whole, batches, checkpointing=False, chunk_tokens=32)
    assert estimate.sampling > 0 and estimate.updating > 0


def test_experts_that_are_one_parameter_keep_to_themselves(saved: Any) -> None:
    for family in ("mixtral", "qwen3 moe", "qwen2 moe"):
        policy = load(saved(family), lora=LoraSettings(rank=2))
        assert {name.rpartition(".")[2] for name in expert_blocks(policy.model.get_decoder())} == {"mlp"}
        ends = {name.split(".lora_")[0].rpartition(".")[2] for name in policy.trained()}
        assert ends == {"q_proj", "k_proj", "v_proj", "o_proj"}


def adapted(kind: str, **fields: Any) -> set[str]:
    """The modules that a new adapter is for, of a model without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(kind, **fields))
    settings = LoraSettings(rank=2)
    names = adapter_tensors(new_adapter(model, new_config(settings), settings))
    return {name.removeprefix("base_model.model.model.").partition(".lora_")[0] for name in names}


def test_experts_are_told_from_other_layers_that_call_their_part_alike() -> None:
    layers = {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "n_routed_experts": 4, "mlp_bias": False}
    found = adapted("nemotron_h", **SMALL, **layers)
    assert found == {
        "layers.0.mixer.in_proj",  # out_proj is read without being called
        *(f"layers.2.mixer.{name}_proj" for name in "qkvo"),
        *(f"layers.3.mixer.{name}_proj" for name in ("up", "down")),  # the experts' shared ones end alike
    }


def test_where_experts_leave_no_linear_the_user_is_asked_which() -> None:
    with pytest.raises(UserError, match="set it to the linears to adapt"):
        adapted("jetmoe", **{**NO_WIDTH, "num_key_value_heads": 2}, num_local_experts=2, kv_channels=8)


def test_a_scan_that_reads_past_adapters_is_left_alone() -> None:
    fields = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_d_state": 8}
    ends = {name.rpartition(".")[2] for name in adapted("falcon_h1", **SMALL, **fields)}
    assert ends == {"in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_layer_whose_weight_is_taken_without_calling_it_is_refused_an_adapter(
    tmp_path: Path, prompts: PromptBatch
) -> None:
    """It would learn nothing, and completions would be drawn from the sum of it and the weight."""
    mamba = {"use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
    save(config("jamba", **NO_WIDTH, **mamba, mamba_d_state=4, mamba_dt_rank=4), tmp_path)
    own = load(tmp_path)  # by default it is left alone
    assert not any("dt_proj" in name for name in own.trained())
    drawn = sample(own, prompts, Sampling(num_generations=2, temperature=1.0, max_new_tokens=6), seed=0)
    mask_NT = drawn.sequences.completion_mask_NT
    torch.testing.assert_close(
        own.logprobs(drawn.sequences)[0][mask_NT], drawn.logprobs_NT[mask_NT], rtol=1e-4, atol=1e-4
    )
    asked = load(tmp_path, lora=LoraSettings(rank=2, target_modules=["q_proj", "dt_proj"]))
    with pytest.raises(UserError, match=r"layers.0.mamba.dt_proj.*leave dt_proj out of policy.lora.target_modules"):
        asked.logprobs(completions(prompts))


def test_adapters_leave_the_tower_for_pictures_alone(saved: Any) -> None:
    for lora in (LoraSettings(rank=2), LoraSettings(rank=2, target_modules=["q_proj", "v_proj"])):
        names = load(saved("gemma3"), lora=lora).trained()
        assert names and all("language_model" in name for name in names)


def test_a_soft_cap_is_no_rounding(saved: Any, prompts: PromptBatch) -> None:
    """R4: in bfloat16 the cap moved log-probs by less than is lost in the layers; the head is compared to the bit."""
    made = config("llama", **SMALL)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made).to(torch.bfloat16).eval()
    with torch.no_grad():
        assert prove(model, completions(prompts), "it") == "shared"
        plain = model.forward

        def capped(*args: Any, **inputs: Any) -> Any:
            output = plain(*args, **inputs)
            output.logits = 300 * torch.tanh(output.logits / 300)
            return output

        model.forward = capped
        assert prove(model, completions(prompts), "it") == "plain"


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_beyond_the_native_positions_are_refused(kind: str, tmp_path: Path, prompts: PromptBatch) -> None:
    """R6: there a short row's log-probs would depend on its companions."""
    scaling: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 24}
    fields = {**SMALL, "max_position_embeddings": 96 if kind == "longrope" else 24}
    save(config("llama", **fields, rope_parameters=scaling), tmp_path)
    policy, whole = load(tmp_path), completions(prompts)
    assert native_positions(policy.model.config) == 24
    policy.model.eval()
    longest = int(prompts.prompt_mask_BP.sum(dim=1).max())
    short = whole.select([[0, 1], [2, 3]])
    if longest + 9 <= 25:
        torch.testing.assert_close(
            policy.logprobs(short)[0][short.completion_mask_NT], truth(policy.model, short), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(UserError, match="longer than the 24 from which"):
        sample(policy, prompts, Sampling(num_generations=2, max_new_tokens=40), seed=0)
    wide = Sequences(**{**vars(whole), "completion_ids_NT": whole.completion_ids_NT.repeat(1, 4),
                        "completion_mask_NT": torch.ones(6, 48, dtype=torch.bool)})  # fmt: skip
    with pytest.raises(UserError, match="longer than the 24"):
        policy.logprobs(wide)


def test_a_model_that_sees_its_companions_is_refused(prompts: PromptBatch) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config("granite", **NO_WIDTH)).eval()
    plain = model.forward

    def mixed(*args: Any, **inputs: Any) -> Any:
        output = plain(*args, **inputs)
        output.logits = output.logits + output.logits.mean(dim=0, keepdim=True)
        return output

    model.forward = mixed
    with torch.no_grad(), pytest.raises(UserError, match="the same numbers in any company"):
        prove(model, completions(prompts), "it")


def test_a_model_whose_layers_all_lack_attention_is_refused(prompts: PromptBatch, tmp_path: Path) -> None:
    """Transformers asks attention how much was read, and has no answer."""
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
    save(config("bamba", **NO_WIDTH, **mamba, attn_layer_indices=[]), tmp_path)
    with pytest.raises(UserError, match="cannot be sampled from"):
        sample(load(tmp_path), prompts, Sampling(num_generations=2, max_new_tokens=4), seed=0)


@pytest.mark.parametrize("error", [UserError("weights have run away"), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_has_reasons_of_its_own_is_not_laid_to_the_model(error: Exception, prompts: PromptBatch) -> None:
    model = AutoModelForCausalLM.from_config(config("granite", **NO_WIDTH)).eval()

    def failing(*args: Any, **inputs: Any) -> Any:
        raise error

    model.forward = failing
    with torch.no_grad(), pytest.raises(type(error), match=str(error)):
        prove(model, completions(prompts), "it")


def test_a_model_that_looks_ahead_is_refused(prompts: PromptBatch) -> None:
    fields = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "initializer_range")}
    model = transformers.BertLMHeadModel(config("bert", **fields, num_hidden_layers=2, num_attention_heads=2)).eval()
    with torch.no_grad(), pytest.raises(UserError, match="from what stands before it alone"):
        prove(model, completions(prompts), "it")


@pytest.mark.parametrize("family", slow_but(FAMILIES, ["qwen3 moe", "gemma3"]))
def test_whole_models_are_read_back_by_the_names_they_have_in_memory(family: str, saved: Any, tmp_path: Path) -> None:
    policy = Policy(PolicySettings(model=str(saved(family)), train="full", reference="none"))
    policy.load()
    stir(policy, scale=0.1)
    policy.save(tmp_path / "checkpoint", whole_tensors(policy.trained()))
    found = policy.read(tmp_path / "checkpoint")
    assert found.keys() == policy.trained().keys()
    assert all(torch.equal(found[name], weight) for name, weight in policy.trained().items())


def test_a_whole_model_goes_on_with_what_its_base_has_besides_weights(tmp_path: Path) -> None:
    """Here the bias that deals tokens to experts, which is a buffer."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}
    save(config("glm4_moe", **SMALL, **experts, first_k_dense_replace=1), tmp_path / "base")
    policy = Policy(PolicySettings(model=str(tmp_path / "base"), train="full", reference="none"))
    policy.load()
    (bias,) = (value for name, value in policy.model.named_buffers() if name.endswith("e_score_correction_bias"))
    bias.copy_(torch.tensor([0.4, 0.1, 0.0, 0.7]))
    policy.save(tmp_path / "run", whole_tensors(policy.trained()))
    assert policy.read(tmp_path / "run").keys() == policy.trained().keys()
    written = Policy(PolicySettings(model=str(tmp_path / "run"), train="full", reference="none"))
    written.load()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(written.model(ids).logits, policy.model(ids).logits)


def test_padding_is_dealt_where_prompts_are_not_shared(saved: Any, prompts: PromptBatch) -> None:
    policy, whole = load(saved("qwen3.5")), completions(prompts)
    dealt = micro_batches(whole, torch.arange(6), 64, share=policy.shares_prompts)
    assert sum(len(batch.sequences) for batch in dealt) == 6


@pytest.mark.parametrize(
    ("family", "make"),
    slow_cases_but([("mixtral", grpo), ("qwen3 moe", sft), ("qwen3.5", grpo), ("gemma3", sft)], [("qwen3 moe", sft)]),
)
def test_a_family_is_trained_validated_and_resumed(family: str, make: Any, saved: Any, tmp_path: Path) -> None:
    """With dropout, as by default; to the same bits."""
    model = str(saved(family))
    whole = trained(run(make(model), tmp_path / "whole", epochs=1))
    with pytest.raises(Stop):
        run(make(model), tmp_path / "cut", At(3, stop), epochs=1)
    resumed = trained(run(make(model), tmp_path / "cut", epochs=1))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert any(value.any() for name, value in whole.items() if "lora_B" in name)
