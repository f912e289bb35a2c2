"""The whole GRPO step against TRL's GRPOTrainer: same model, prompts, group, lengths, KL penalty and reward.

    python benchmarks/bench_step.py
    python benchmarks/bench_step.py --shape headline --train full
    python benchmarks/bench_step.py --model qwen3-0.6b-random --shape headline --prompt 1024 --completion 64  # on a GPU
    python benchmarks/bench_step.py --also loop compiled flex  # ours once more with other settings
    python benchmarks/bench_step.py --halves  # TRL updates by halves, where memory is too small for a whole step

First both systems take two updates on the same completions in float32; only if their losses and gradients agree are
speeds measured and printed. Both then train in processes of their own that take steps in turn. Writes a row for each
system to benchmarks/results/step_<device>_<model>_<train>.csv; a ratio is the time of TRL's step over that of ours
beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness  # first: it takes the libraries offline
import torch
from datasets import Dataset
from harness import ALPHA, BETA, RANK, Model, Shape, Turns, Work, lsemrl, lsemrl_compiled, lsemrl_flex, lsemrl_loop
from lightning.pytorch import Callback
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]  # exported lazily

from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.types import Rollouts

SHAPES = {
    "translation": Shape(prompts=4, prompt=64, completion=32, group=8),
    "headline": Shape(prompts=2, prompt=512, completion=32, group=8),
}
ALSO: dict[str, tuple[Any, dict[str, Any]]] = {
    "loop": (lsemrl_loop, {"engine": "loop"}),
    "compiled": (lsemrl_compiled, {"engine": "compiled"}),
    "flex": (lsemrl_flex, {"flex_attention": True}),
}
"""Ours with other settings."""
PACKAGES = ("lsemrl", "trl", "torch", "transformers", "peft", "lightning")
TOLERANCE = 1e-4
"""Of the check, relative."""


class Theirs(GRPOTrainer):
    """TRL's trainer, which keeps what it would only send to a tracker: seconds of its parts, lengths, losses."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.parts = dict.fromkeys(harness.PARTS, 0.0)
        self.lengths = (0, 0)
        self.losses: list[Tensor] = []
        super().__init__(*args, **settings)

    def _generate(self, prompts: list[Any]) -> Any:
        with self._timed("rollout"):
            output = super()._generate(prompts)
        lengths = [len(ids) for ids in output[1]]
        self.lengths = min(lengths), max(lengths)
        return output

    def _calculate_rewards(self, *args: Any) -> Any:
        with self._timed("reward"):
            return super()._calculate_rewards(*args)

    def _get_per_token_logps_and_entropies(self, *args: Any, **settings: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **settings)
        with self._timed("reference"):
            return super()._get_per_token_logps_and_entropies(*args, **settings)

    def _compute_loss(self, *args: Any) -> Any:
        loss = super()._compute_loss(*args)
        self.losses.append(loss.detach())
        return loss

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = _now(self.args.device)
        yield
        self.parts[part] += _now(self.args.device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def their_trainer(work: Work, model: Any, callback: TrainerCallback, *, lr: float, **settings: Any) -> Theirs:
    """TRL set up as ours is, and at its fastest: the whole step is one micro-batch.

    Args:
        work: See there.
        model: A folder, or a model with its adapter.
        callback: Told of its steps.
        lr: Learning rate.
        settings: A rollout_func, which tokens end a text (`ends`), and fields of GRPOConfig.
    """
    shape = work.shape
    rollout_func, ends = settings.pop("rollout_func", None), settings.pop("ends", ())
    config = {
        "output_dir": str(work.folder / "trl"),
        "model_init_kwargs": {"dtype": work.dtype} if isinstance(model, str) else None,
        "use_cpu": work.device == "cpu",
        "bf16": work.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": shape.prompts * shape.group,
        "num_generations": shape.group,
        "max_completion_length": shape.completion,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "beta": BETA,
        "use_bias_correction_kl": False,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": work.steps,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    tokenizer = AutoTokenizer.from_pretrained(work.folder, padding_side="left")

    def scores(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        # Theirs are texts with the token that ended them, where it is no special one.
        said = (ids[:-1] if ids[-1] in ends else ids for ids in completion_ids)
        return [harness.score(text) for text in tokenizer.batch_decode([*said], skip_special_tokens=True)]

    trainer = Theirs(
        model=model,
        reward_funcs=scores,
        args=GRPOConfig(**{**config, **settings}),
        train_dataset=Dataset.from_dict({"prompt": harness.read_prompts(work.folder)}),
        processing_class=tokenizer,
        callbacks=[callback],
        peft_config=_lora() if work.train == "lora" and isinstance(model, str) else None,
        rollout_func=rollout_func,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _InTurn(TrainerCallback):
    """Ends of their steps."""

    trainer: Theirs

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.turns.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        parts = dict(self.trainer.parts)
        parts["update"] = _now(self.trainer.args.device) - self.turns.started - sum(parts.values())
        self.trainer.parts = dict.fromkeys(harness.PARTS, 0.0)
        self.turns.end(self.trainer.lengths, parts)


def trl(work: Work, turns: Turns, **settings: Any) -> None:
    """TRL's GRPOTrainer."""
    callback = _InTurn(turns)
    callback.trainer = their_trainer(work, str(work.folder), callback, lr=1e-5, **settings)
    callback.trainer.train()


def trl_halves(work: Work, turns: Turns) -> None:
    """The same, which draws a step's completions at once, too, and learns from them by halves."""
    completions = work.shape.prompts * work.shape.group
    trl(work, turns, per_device_train_batch_size=completions // 2, gradient_accumulation_steps=2)


class _OurGradients(Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.steps.append(_gradients(module.policy.model))


class _TheirGradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        self.steps.append(_gradients(about["model"]))


def _gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def check(folder: Path, model: Model, work: Work, **settings: Any) -> str:
    """Compare two updates of ours with two of TRL's on the completions that ours sampled.

    Rewards, advantages, old and reference log-probs, loss, gradients and the optimizer in between are each system's
    own. Prompts and completions are of several lengths. The second update is off-policy and away from the reference.

    Args:
        folder: To write to.
        model: What to check with.
        work: What is to be measured, of which the group, `train` and `device` are kept.
        settings: Of `harness.grpo`.

    Returns:
        A line that says what was found.

    Raises:
        SystemExit: They differ by more than the tolerance.
    """
    lengths = (1, 30, 17, 8)
    shape = Shape(prompts=len(lengths), prompt=max(lengths), completion=16, group=work.shape.group)
    work = dataclasses.replace(work, folder=folder, shape=shape, dtype="float32", steps=1)
    ends = range(0, model.vocabulary, 16)
    harness.save_model(folder, model, work.device, ends)
    harness.save_prompts(folder, lengths, model.vocabulary)
    start: Any = str(folder)
    adapter = None
    if work.train == "lora":
        adapter = folder / "adapter"
        _save_adapter(folder, adapter)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        start = PeftModel.from_pretrained(base, adapter, is_trainable=True)

    lr = 3e-4  # far enough to clip a part of the tokens, near enough that AdamW does not blow up rounding
    ours, drawn = _OurGradients(), list[Rollouts]()
    optimizer = OptimizerSettings(lr=lr, schedule="constant", warmup_ratio=0.0, max_grad_norm=1e9)
    module = harness.grpo(
        work,
        lr=lr,
        adapter=adapter,
        rewards={"score": harness.Score()},
        optimizer=optimizer,
        num_iterations=2,
        **settings,
    )
    draw = module.draw
    module.draw = lambda *of: drawn.append(draw(*of)) or drawn[-1]  # type: ignore[method-assign]
    harness.fit(module, work, ours)

    ids: dict[str, list[list[int]]] = {}
    [rollouts] = drawn
    rows = zip(rollouts.sequences.completion_ids_NT, rollouts.sequences.completion_mask_NT, strict=True)
    for completion, (ids_T, mask_T) in zip(rollouts.completions, rows, strict=True):
        ids.setdefault(completion.example.prompt, []).append(ids_T[mask_T].tolist())

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        completions = {prompt: iter(rows) for prompt, rows in ids.items()}
        return {
            "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [next(completions[prompt]) for prompt in prompts],
            "logprobs": None,
        }

    theirs = _TheirGradients()
    config = {"num_iterations": 2, "max_steps": 2, "max_grad_norm": 0.0}
    trainer = their_trainer(work, start, theirs, lr=lr, rollout_func=rollout, ends=ends, **config)
    trainer.train()

    gradients = max(_difference(*steps) for steps in zip(ours.steps, theirs.steps, strict=True))
    their_losses = torch.stack(trainer.losses)
    our_loss = module.trainer.callback_metrics["loss"].to(their_losses.device)  # the mean of both updates
    loss = ((our_loss - their_losses.mean()).abs() / their_losses.abs().mean()).item()
    clipped = next(log for log in reversed(trainer.state.log_history) if "kl" in log)["clip_ratio/region_mean"]
    found = f"loss within {loss:.1e} and gradients within {gradients:.1e} of TRL's"
    if not max(gradients, loss) <= TOLERANCE:
        raise SystemExit(f"check failed, no speed is measured: {found}, and not within {TOLERANCE:.0e}")
    return f"check passed: {found} over two updates, {clipped:.0%} of tokens clipped in the second"


def _save_adapter(folder: Path, adapter: Path) -> None:
    """Write an adapter of the model in `folder` that changes what it says."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), _lora())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(adapter))


def _lora() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of a parameter's gradients, relative to their norm."""
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours)


def compare(
    name: str, model_name: str, work: Work, warmup: int, also: Sequence[str] = (), theirs: Any = trl
) -> list[dict[str, Any]]:
    """Measure the systems on `work`, print what came out, and return a row for each."""
    systems = (lsemrl, *(ALSO[way][0] for way in also), theirs)
    measured = harness.measure(systems, work, warmup)
    width = max(map(len, measured))
    print(f"\n{name}: {work.shape} (prompts x prompt/completion/group), {model_name}, {work.train}, {work.device}")
    rows: list[dict[str, Any]] = []
    for system, result in measured.items():
        rows.append(
            {
                "shape": name,
                **dataclasses.asdict(work.shape),
                "model": model_name,
                "train": work.train,
                "device": work.device,
                "dtype": work.dtype,
                "system": system,
                **result.columns(work.shape),
            }
        )
        low, high = harness.quartiles(result.seconds)
        beside = ""
        if system != theirs.__name__:
            beside_it = measured[theirs.__name__].seconds
            ratios = [other / own for own, other in zip(result.seconds, beside_it, strict=True)]
            ratio, (ratio_q1, ratio_q3) = statistics.median(ratios), harness.quartiles(ratios)
            rows[-1].update(ratio=ratio, ratio_q1=ratio_q1, ratio_q3=ratio_q3)
            beside = f", TRL's {ratio:.2f} times that ({ratio_q1:.2f} to {ratio_q3:.2f})"
        parts = ", ".join(f"{part} {seconds:.3g}" for part, seconds in result.parts.items())
        memory = f"peak {result.peak_mb:,.0f} MB, {result.peak_mb - result.loaded_mb:,.0f} above loading"
        typical = statistics.median(result.seconds)
        print(
            f"  {system:{width}}  {typical:.3g} s a step ({low:.3g} to {high:.3g}){beside}; {memory}; "
            f"{parts or 'no parts'}"
        )
    return rows


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--model", choices=harness.MODELS, default="small")
    parser.add_argument("--train", choices=("lora", "full"), default="lora")
    parser.add_argument("--also", nargs="+", choices=ALSO, default=[], help="ours once more, with other settings")
    parser.add_argument("--halves", action="store_true", help="TRL updates by halves")
    harness.add_common_options(parser, steps=20)
    options = parser.parse_args()
    harness.quiet()

    model = harness.MODELS[options.model]
    shapes = {name: harness.reshaped(SHAPES[name], options) for name in options.shape}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        for name, shape in shapes.items():
            work = Work(
                folder=Path(root) / name,
                shape=shape,
                train=options.train,
                device=options.device,
                dtype=harness.dtype(options.device),
                steps=options.warmup + options.steps,
            )
            for way in (None, *options.also):
                found = check(Path(root) / f"check_{name}_{way}", model, work, **(ALSO[way][1] if way else {}))
                print(f"{way}: {found}" if way else found, flush=True)
            harness.save_model(work.folder, model, work.device, dtype=work.dtype)
            harness.save_prompts(work.folder, [shape.prompt] * shape.prompts * work.steps, model.vocabulary)
            theirs = trl_halves if options.halves else trl
            rows += compare(name, options.model, work, options.warmup, options.also, theirs)
    path = options.results / f"step_{options.device}_{options.model}_{options.train}.csv"
    harness.write_csv(path, harness.about(PACKAGES), rows)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
