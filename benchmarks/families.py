"""Every causal language model of transformers, tiny and with random weights: what lsemrl makes of it.

    python benchmarks/families.py              # all of them, under an hour of one core
    python benchmarks/families.py qwen3 mamba  # some

Each is written as a hub would have it and read as `policy.model`, and everything is held against transformers alone, a
row at a time without padding, all in float32. Writes benchmarks/results/families.csv, a row for each `model_type`:

- `way`: how completions are scored; "refused" with the reason that a user is told; "traceback", a fault of lsemrl's;
  "not made", where no small configuration was found here.
- `scored`, `drawn`: the largest differences in nats of log-probs that were scored, and that were drawn with.
- `gradient`: how far the adapter's is off, as a share of its size. `recomputed`: the same with gradient checkpointing.
- `greedy`: rows that are written as transformers generates, of 6.
- `peft`, `merged`, `full`: nats by which the saved adapter read by peft, the merged model and a fully fine-tuned one,
  both read by transformers, are off.
- `moved`: nats that the adapter moves at most, beside which all of that stands.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import multiprocessing
import tempfile
import traceback
from itertools import product
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

import harness  # first: it takes the libraries offline
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lsemrl import micro
from lsemrl.data.collate import encode
from lsemrl.errors import UserError, reason_of
from lsemrl.modules.adapters.merging import merge_for_good
from lsemrl.modules.losses import likelihood_loss
from lsemrl.modules.memory import estimate_memory
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sharding import whole_tensors
from lsemrl.modules.whole_models import write_model
from lsemrl.types import Example, Sequences

SECONDS = 240
"""After which a family is given up."""
MEASURED = ("scored", "gradient", "recomputed", "drawn", "greedy", "peft", "merged", "full", "moved")
_MOST = 30e6  # weights
_PROMPTS = ("翻译成藏文：老师买了书。", "早上好", "学生在学校读了新的信。")
TOKENIZER = AutoTokenizer.from_pretrained(micro.POLICY)
_ENDS = {"eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "bos_token_id": None}
_SIZES: dict[str, Any] = {
    **_ENDS,
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), len(TOKENIZER) + 3),
    **{"initializer_range": 0.3, "init_std": 0.3, "hidden_act": "silu"},  # far from uniform, so that mistakes show
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 2),
    **{"encoder_attention_heads": 2, "num_key_value_heads": 1},
    **dict.fromkeys(("head_dim", "global_head_dim", "d_kv", "v_head_dim", "qk_rope_head_dim", "q_lora_rank"), 16),
    **{"qk_nope_head_dim": 8, "kv_lora_rank": 8, "rotary_dim": 8, "hidden_size_per_layer_input": 8},
    **{"n_positions": 128, "max_position_embeddings": 128},
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    **{"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    **{"mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_ssm": 64},
    **{"mamba_d_state": 8, "state_size": 8, "ssm_state_size": 8, "n_groups": 1},
    **{"conv_kernel": 4, "time_step_rank": 4, "expand": 2},
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_GATED = {
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_conv_kernel_dim": 4},
}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _MIXED,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cwm": {"bos_token_id": 1},
    "gemma3n_text": {
        **{"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
        **{"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": _MIXED,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4},
    "minimax": {**_MIXED, "block_size": 4},
    "modernbert-decoder": {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"), _MIXED | _GATED),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _MIXED | _GATED),
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 64},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs besides to be whole and small: some layers of each kind, and sizes that fit each other."""


def configured(family: str) -> PretrainedConfig:
    """The first small configuration of which transformers makes a model.

    Raises:
        ValueError: There is none, with what the last one failed on.
    """
    kind: Any = CONFIG_MAPPING[family]
    try:
        known = set(kind().to_dict())
    except Exception:  # some cannot be without words of their own
        known = set()
    known |= {*inspect.signature(kind.__init__).parameters, *getattr(kind, "__dataclass_fields__", {})}
    reason = ""
    # Of those whose keys are latent all heads have keys; what fails both times alone is lsemrl's to tell.
    for left_out, heads in product(("", "hidden_act", "layer_types"), (1, 2)):
        sizes = {**_SIZES, "num_key_value_heads": heads, **_OWN.get(family, {})}
        own = {name: value for name, value in sizes.items() if name in known or name in ("vocab_size", *_ENDS)}
        fields = {"text_config": sizes} if {"text_config", "vision_config"} <= known else own
        try:
            config: PretrainedConfig = kind(**{name: value for name, value in fields.items() if name != left_out})
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            weights = sum(weight.numel() for weight in model.parameters())
            if weights > _MOST:
                raise ValueError(f"{weights / 1e6:.0f} million weights")
            if heads == 1:
                _read_alone(config)
            return config
        except Exception as error:  # whatever a family raises
            reason = f"{type(error).__name__}: {reason_of(error)}"
    raise ValueError(reason)


def _read_alone(config: PretrainedConfig) -> None:
    """Let transformers compute with it, which sizes that do not fit each other do not outlive."""
    ids_1L = torch.arange(10, 20)[None]
    AutoModelForCausalLM.from_config(config).eval()(input_ids=ids_1L, use_cache=False)


def save(config: PretrainedConfig, folder: Path) -> None:
    """Write a model of `config`, with the embedded tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:  # norms, which are all alike, and biases, which are 0
                weight.add_(0.1 * torch.randn(weight.shape))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = _ENDS["eos_token_id"], None
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)


def rows() -> Sequences:
    """Two completions of many lengths behind each of three prompts."""
    examples = [Example(id=text, prompt=text, source=text, references=("书",)) for text in _PROMPTS]
    prompts, generator = encode(TOKENIZER, examples), torch.Generator().manual_seed(3)
    return Sequences(
        prompt_ids_BP=prompts.prompt_ids_BP,
        prompt_mask_BP=prompts.prompt_mask_BP,
        prompt_of_N=torch.arange(6) // 2,
        completion_ids_NT=torch.randint(10, 900, (6, 12), generator=generator),
        completion_mask_NT=torch.arange(12) < torch.tensor([9, 4, 1, 7, 12, 2])[:, None],
    )


def truth(model: Any, whole: Sequences) -> Tensor:
    """Log-probs [M] of completion tokens by the model's own logits, each row by itself."""
    found = []
    for row, prompt in enumerate(whole.prompt_of_N.tolist()):
        prompt_P = whole.prompt_ids_BP[prompt][whole.prompt_mask_BP[prompt]]
        own_T = whole.completion_ids_NT[row][whole.completion_mask_NT[row]]
        logits_LV = model(input_ids=torch.cat([prompt_P, own_T])[None], use_cache=False).logits[0].float()
        found.append(logits_LV[len(prompt_P) - 1 : -1].log_softmax(-1).gather(1, own_T[:, None])[:, 0])
    return torch.cat(found)


def loaded(folder: Path, **settings: Any) -> Policy:
    """In eval mode: what some experts draw in training is not what this is about."""
    torch.manual_seed(1)
    policy = Policy(PolicySettings(model=str(folder), **settings))
    policy.load()
    policy.model.eval()
    return policy


def stirred(policy: Policy, scale: float) -> Policy:
    """With everything that is trained a little beside itself."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in policy.trained().values():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return policy


def scored(policy: Policy, whole: Sequences) -> Tensor:
    """Log-probs [M] of completion tokens as lsemrl scores them."""
    with torch.no_grad():
        return policy.logprobs(whole)[0][whole.completion_mask_NT]


def gradient(policy: Policy, whole: Sequences) -> list[Tensor | None]:
    """Of the completions' weighed likelihood, for everything that is trained."""
    loss, _ = policy.loss(whole, likelihood_loss(_weights(whole)))
    return list(torch.autograd.grad(loss, list(policy.trained().values()), allow_unused=True))


def _weights(whole: Sequences) -> Tensor:
    return torch.linspace(-1, 1, int(whole.completion_mask_NT.sum()))


def beside(found: list[Tensor | None], true: list[Tensor | None]) -> float:
    """How far a gradient is off, as a share of the true one."""
    pairs = [
        (a if a is not None else torch.zeros_like(b), b) for a, b in zip(found, true, strict=True) if b is not None
    ]
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (sum(float((a - b).square().sum()) for a, b in pairs) / size) ** 0.5


def furthest(found: Tensor, true: Tensor) -> float:
    """In nats."""
    return float((found - true).detach().abs().max())


def tried(config: PretrainedConfig, folder: Path, found: dict[str, Any]) -> None:
    """Put into `found` what is found, as it is.

    Raises:
        UserError: It is refused.
    """
    whole, lora = rows(), LoraSettings(rank=4, alpha=8.0, dropout=0.0)
    save(config, folder / "base")
    policy = stirred(loaded(folder / "base", lora=lora), 0.1)
    own = gradient(policy, whole)
    found["way"] = "shared" if policy.shares_prompts else "plain"
    true_M = truth(policy.model, whole)
    trained = list(policy.trained().values())
    true = torch.autograd.grad((-true_M * _weights(whole)).sum(), trained, allow_unused=True)
    found |= {"scored": furthest(scored(policy, whole), true_M), "gradient": beside(own, list(true))}
    draw(policy, whole, found)
    batches = micro_batches(whole, torch.arange(len(whole)), 64, share=policy.shares_prompts)
    estimate_memory(policy.model, whole, batches, checkpointing=False, chunk_tokens=32)
    with torch.no_grad():
        policy.save(folder / "adapter")
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
        found["moved"] = furthest(truth(base, whole), true_M)
        plain = PeftModel.from_pretrained(base, folder / "adapter").eval()
        found["peft"] = furthest(truth(plain, whole), true_M)
        read = loaded(folder / "base", adapter=str(folder / "adapter"))
        write_model(merge_for_good(read.model), read.tokenizer, folder / "merged")
        merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
        found["merged"] = furthest(truth(merged, whole), true_M)
        full = stirred(loaded(folder / "base", train="full", reference="none"), 0.02)
        full.save(folder / "full", whole_tensors(full.trained()))
        stored = AutoModelForCausalLM.from_pretrained(folder / "full", dtype=torch.float32).eval()
        found["full"] = furthest(truth(stored, whole), scored(full, whole))
    try:
        again = loaded(folder / "base", adapter=str(folder / "adapter"), gradient_checkpointing=True)
        found["recomputed"] = beside(gradient(again, whole), own)
    except UserError:  # which no more than asks for it to be switched off
        found["recomputed"] = "refused"


def draw(policy: Policy, whole: Sequences, found: dict[str, Any]) -> None:
    """Draw completions, and write some as transformers does."""
    examples = [Example(id=text, prompt=text, source=text, references=("书",)) for text in _PROMPTS]
    prompts = encode(TOKENIZER, examples)
    drawn = sample(policy, prompts, Sampling(num_generations=2, temperature=1.0, max_new_tokens=8), seed=0)
    mask_NT = drawn.sequences.completion_mask_NT
    found["drawn"] = furthest(drawn.logprobs_NT[mask_NT], scored(policy, drawn.sequences))
    asked = Sampling(num_generations=2, temperature=0.0, max_new_tokens=8)
    written = sample(policy, prompts, asked, seed=0).sequences
    same = 0
    for row, prompt in enumerate(whole.prompt_of_N.tolist()):
        alone_1P = prompts.prompt_ids_BP[prompt][prompts.prompt_mask_BP[prompt]][None]
        try:
            theirs = policy.model.generate(
                input_ids=alone_1P, attention_mask=torch.ones_like(alone_1P), do_sample=False, max_new_tokens=8,
                eos_token_id=policy.eos_ids(),
            )[0, alone_1P.shape[1] :]  # fmt: skip
        except Exception:  # transformers cannot, with what it wrote itself
            found["greedy"] = "transformers cannot"
            return
        same += written.completion_ids_NT[row][written.completion_mask_NT[row]].tolist() == theirs.tolist()
    found["greedy"] = same


def look(family: str, answers: Queue[dict[str, Any]]) -> None:
    """Answer with a family's row, from a process of its own."""
    torch.set_num_threads(1)
    logging.getLogger("lsemrl").setLevel(logging.ERROR)  # by which way it goes stands in the table
    found: dict[str, Any] = {"family": family, "way": "not made"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = configured(family)
        except ValueError as error:
            answers.put(found | {"reason": str(error)})
            return
        try:
            tried(config, Path(folder), found)
        except UserError as error:
            found |= {"way": "refused", "reason": str(error).replace(folder, "")}
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            found |= {"way": "traceback", "reason": f"{type(error).__name__} at {where}: {reason_of(error)}"}
    answers.put(found)


def main() -> None:
    """Try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="model types (default: all)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")
    options = parser.parse_args()
    harness.quiet()
    context, table = multiprocessing.get_context("fork"), []
    for family in options.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        answers = context.Queue()
        process = context.Process(target=look, args=(family, answers))
        process.start()
        try:
            found = answers.get(timeout=SECONDS)
        except Empty:
            found = {"family": family, "way": "not made", "reason": f"not done after {SECONDS} seconds"}
        process.kill()
        process.join()
        table.append({column: found.get(column, "") for column in ("family", "way", *MEASURED, "reason")})
        print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
        about = harness.about(("lsemrl", "torch", "transformers", "peft"))
        harness.write_csv(options.results / "families.csv", about, table)
    print(f"\n{options.results / 'families.csv'}")


if __name__ == "__main__":
    main()
