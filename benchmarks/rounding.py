"""What rounding an adapted weight to bfloat16 does to log-probs: to the nearest, and by chance as sampling does.

    python benchmarks/rounding.py --model pidgin/smollm2 --adapter runs/pidgin/sft/version_0/adapter \
        --text pidgin/mafand/test.jsonl --column translation.pcm

The adapter's update is taken whole and in parts, as it would be early in training. Everything is computed in float32,
with base weights that are bfloat16's, so that the rounding of the sum is all there is; beside it stands what
arithmetic in bfloat16 does by itself. Writes benchmarks/results/rounding.csv: mean absolute differences of log-probs,
in nats a token, to the policy whose weights are not rounded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness  # first: it takes the libraries offline
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsemrl.data.text import read_texts
from lsemrl.modules.adapters.merging import rounded

PARTS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the update."""


@torch.no_grad()
def logprobs(model: Any, texts: list[Tensor]) -> Tensor:
    """Of every token but the first of each text [1, L]."""
    found = []
    for ids_1L in texts:
        logits_LV = model(ids_1L).logits[0, :-1].float()
        found.append(logits_LV.log_softmax(-1).gather(1, ids_1L[0, 1:, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each part of the update."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = read_texts(options.text, options.column)[: options.rows]
    texts = [tokenizer(text, return_tensors="pt").input_ids for _, text in rows]
    halved = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    base = halved.float()
    exact = logprobs(base, texts)
    arithmetic = logprobs(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval(), texts)
    adapted: Any = PeftModel.from_pretrained(base, options.adapter)
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    own = [weight.detach().clone() for weight in weights]
    updates = [layer.get_delta_weight("default") for layer in layers]
    size = sum(float(update.square().sum()) for update in updates) / sum(float(one.square().sum()) for one in own)

    def scored(made: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        for weight, one, update in zip(weights, own, updates, strict=True):
            weight.data = made(one, update)
        with adapted.disable_adapter():
            return logprobs(adapted, texts)

    found = []
    for part in PARTS:
        generator = torch.Generator().manual_seed(0)
        policy = scored(lambda one, update, part=part: one + part * update)
        nearest = scored(lambda one, update, part=part: (one + part * update).to(torch.bfloat16).float())
        chance = scored(
            lambda one, update, part=part, generator=generator: rounded(
                one + part * update, torch.bfloat16, generator
            ).float()
        )
        found.append(
            {
                "part": part,
                "relative_update": part * size**0.5,
                "policy_from_base": float((policy - exact).abs().mean()),
                "nearest": float((nearest - policy).abs().mean()),
                "by_chance": float((chance - policy).abs().mean()),
                "bfloat16_arithmetic": float((arithmetic - exact).abs().mean()),
                "tokens": len(policy),
            }
        )
        print(", ".join(f"{name} {value:.2g}" for name, value in found[-1].items()), flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id")
    parser.add_argument("--adapter", required=True, help="a folder: what the model has learnt")
    parser.add_argument("--text", required=True, help="a file of texts")
    parser.add_argument("--column", required=True, help="where in it they are")
    parser.add_argument("--rows", type=int, default=50, help="texts (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")
    options = parser.parse_args()
    harness.quiet()
    path = options.results / "rounding.csv"
    harness.write_csv(path, harness.about(("lsemrl", "torch", "transformers", "peft")), measure(options))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
