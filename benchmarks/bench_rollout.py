"""Sampling alone: completion tokens per second of every way of decoding, beside transformers' generate.

    python benchmarks/bench_rollout.py
    python benchmarks/bench_rollout.py --model qwen3-0.6b-random --rows 8 64 128   # on a GPU

One policy with an adapter that has learnt something draws for the same prompts in every way, all in one process and in
turn. A way is timed only after its log-probs were compared with what training scores, see `lsemrl.modules.engines`.
Writes a row for each number of completions and each way to benchmarks/results/rollout_<device>_<model>.csv: medians and
quartiles of tokens per second, the ratio to generate's time beside it, and the peak memory above what the policy takes
(CUDA only).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness  # first: it takes the libraries offline
import torch
from harness import ALPHA, RANK
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Engine, Sampling
from lsemrl.types import Example, PromptBatch

UPDATE = 0.002
"""As a share of the weights."""
GROUP = 8
PACKAGES = ("lsemrl", "torch", "transformers", "peft")


def make_policy(folder: Path, device: torch.device, dtype: harness.Dtype) -> Policy:
    """With an adapter on every linear."""
    lora = LoraSettings(rank=RANK, alpha=ALPHA, dropout=0.0)
    policy = Policy(PolicySettings(model=str(folder), lora=lora, dtype=dtype))
    policy.load()
    policy.to(device).eval()
    update(policy, UPDATE)
    return policy


@torch.no_grad()
def update(policy: Policy, share: float) -> None:
    """Let the adapter change every weight it adapts by this share, as root mean squares."""
    for module in policy.model.modules():
        layer: Any = module
        if isinstance(module, LoraLayer):
            first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            second.normal_()
            size = share * float(layer.get_base_layer().weight.float().square().mean().sqrt())
            second *= size / float((second @ first).square().mean().sqrt() * layer.scaling["default"])


def make_prompts(policy: Policy, rows: int, length: int, vocabulary: int, device: torch.device) -> PromptBatch:
    """Random words for so many completions."""
    ids_BP = torch.randint(1, vocabulary - 1, (-(-rows // GROUP), length), device=device)
    mask_BP = torch.ones_like(ids_BP, dtype=torch.bool)
    examples = tuple(Example(id=str(at), prompt="", source="", references=("",)) for at in range(len(ids_BP)))
    return PromptBatch(
        examples=examples, prompt_ids_BP=ids_BP, prompt_mask_BP=mask_BP, target_ids_BT=ids_BP, target_mask_BT=mask_BP
    )


def ways(policy: Policy, prompts: PromptBatch, group: int, tokens: int) -> dict[str, Callable[[], int]]:
    """What draws `tokens` tokens for each completion and returns how many."""

    def ours(engine: Engine) -> Callable[[], int]:
        sampling = Sampling(num_generations=group, temperature=1.0, top_p=1.0, max_new_tokens=tokens, engine=engine)
        return lambda: int(sample(policy, prompts, sampling, seed=0).sequences.completion_mask_NT.sum())

    def generate() -> int:
        ids_NP = prompts.prompt_ids_BP.repeat_interleave(group, dim=0)
        drawn: Tensor = policy.model.generate(
            input_ids=ids_NP,
            attention_mask=torch.ones_like(ids_NP),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
        )
        return drawn[:, ids_NP.shape[1] :].numel()

    found = {"transformers generate": generate, "lsemrl loop": ours("loop")}
    if prompts.prompt_ids_BP.is_cuda:
        found["lsemrl graphs"] = ours("graphs")
    return found


def measure(policy: Policy, prompts: PromptBatch, group: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way."""
    device = prompts.prompt_ids_BP.device
    systems = ways(policy, prompts, group, options.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    peaks: dict[str, float | str] = {}
    drawn: dict[str, int] = {}
    for turn in range(1 + options.rounds):  # the first warms up
        for name, run in systems.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=policy.settings.dtype == "bfloat16"):
                drawn[name] = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
            if turn:
                seconds[name].append(time.perf_counter() - started)
    rows = len(prompts.examples) * group
    if wrong := {name: tokens for name, tokens in drawn.items() if tokens != rows * options.tokens}:
        raise SystemExit(f"{wrong} tokens were drawn instead of {rows * options.tokens}")
    found = []
    print(f"\n{rows} completions of {options.tokens} tokens behind {options.prompt}, {options.model}, {device.type}")
    for name, taken in seconds.items():
        speeds = [rows * options.tokens / each for each in taken]
        ratios = [theirs / own for own, theirs in zip(taken, seconds["transformers generate"], strict=True)]
        (low, high), (ratio_low, ratio_high) = harness.quartiles(speeds), harness.quartiles(ratios)
        speed, ratio = statistics.median(speeds), statistics.median(ratios)
        print(
            f"  {name:28}{speed:9,.0f} tokens/s ({low:,.0f} to {high:,.0f}), {ratio:.2f} times generate's", flush=True
        )
        found.append(
            {
                "model": options.model,
                "dtype": policy.settings.dtype,
                "rows": rows,
                "prompt": options.prompt,
                "completion": options.tokens,
                "way": name,
                "rounds": len(taken),
                "tokens_per_s": speed,
                "tokens_per_s_q1": low,
                "tokens_per_s_q3": high,
                "ratio": ratio,
                "ratio_q1": ratio_low,
                "ratio_q3": ratio_high,
                "peak_mb": peaks.get(name, ""),
            }
        )
    return found


def main() -> None:
    """Measure, print, write."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--model", choices=harness.MODELS, default="small")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="completions at a time")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a completion (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each way, after one (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")
    options = parser.parse_args()
    harness.quiet()
    model, device = harness.MODELS[options.model], torch.device(options.device)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        dtype = harness.dtype(options.device)
        harness.save_model(Path(root), model, options.device, dtype=dtype)
        policy = make_policy(Path(root), device, dtype)
        for rows in options.rows:
            prompts = make_prompts(policy, rows, options.prompt, model.vocabulary, device)
            found += measure(policy, prompts, min(GROUP, rows), options)
    path = options.results / f"rollout_{options.device}_{options.model}.csv"
    harness.write_csv(path, harness.about(PACKAGES), found)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
