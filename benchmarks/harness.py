"""What the benchmarks of whole steps share: models, prompts, our run, and processes that take steps in turn.

Every system lives in a process of its own, so that its peak memory is its own, and takes one step when it is told to.
All are alive in one run and take turns, so that whatever else the machine does, it does to all of them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import multiprocessing
import os
import platform
import random
import signal
import statistics
import sys
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: nothing here is on a hub

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from lsemrl.data.limits import Limits
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.translation import TranslationData
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.memory import peak_memory
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import Engine, Sampling
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.rewards import Reward
from lsemrl.types import Completion

START = "spawn"
"""How a process of its own is started; a test that looks at no memory forks."""
BETA = 0.04
RANK, ALPHA = 32, 64
PARTS = ("rollout", "reward", "reference", "update")
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Train = Literal["lora", "full"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model with random weights.

    Attributes:
        family: Which one, as transformers names it; one whose configuration reads as Qwen3's does.
    """

    family: Literal["qwen3", "llama"] = "qwen3"
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """How many weights it has, those of the norms left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.key_value_heads)
        return self.vocabulary * self.hidden + self.layers * (attention + 3 * self.hidden * self.intermediate)


def small_model(hidden: int = 192) -> Model:
    """Four layers, built as the embedded policy is."""
    return Model(
        hidden=hidden,
        intermediate=hidden * 8 // 3,
        layers=4,
        heads=hidden // 32,
        key_value_heads=hidden // 64,
        head_dim=32,
        vocabulary=2000,
    )


def large_model(hidden: int = 1024) -> Model:
    """28 layers and the whole vocabulary; Qwen3-0.6B at 1024."""
    return Model(
        hidden=hidden,
        intermediate=3 * hidden,
        layers=28,
        heads=hidden // 64,
        key_value_heads=hidden // 128,
        head_dim=128,
        vocabulary=151_936,
    )


MODELS = {
    "small": small_model(),
    "smollm2-135m-random": Model(
        family="llama",
        hidden=576,
        intermediate=1536,
        layers=30,
        heads=9,
        key_value_heads=3,
        head_dim=64,
        vocabulary=49_152,
    ),
    "qwen3-0.6b-random": large_model(),
    "qwen3-4b-random": Model(
        hidden=2560,
        intermediate=9728,
        layers=36,
        heads=32,
        key_value_heads=8,
        head_dim=128,
        vocabulary=151_936,
    ),
}
"""By what they are shaped as: speed does not ask what weights have learnt."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One step: B prompts of P tokens, G completions of T tokens for each."""

    prompts: int
    prompt: int
    completion: int
    group: int

    @property
    def tokens(self) -> int:
        """Completion tokens of a step."""
        return self.prompts * self.group * self.completion

    def __str__(self) -> str:
        return f"{self.prompts} x {self.prompt}/{self.completion}/{self.group}"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a system is to do.

    Attributes:
        folder: Holds the model, its tokenizer and prompts.jsonl; the system may write below it.
        shape: Of every step.
        train: Adapters on a frozen model, or every weight.
        device: Where.
        dtype: Of the weights; with bfloat16 a step runs under autocast, as either system's users would have it.
        steps: How many.
    """

    folder: Path
    shape: Shape
    train: Train
    device: Device
    dtype: Dtype
    steps: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step as it was taken.

    Attributes:
        seconds: From one end of a step to the next: data, sampling, rewards, update and logging.
        peak_mb: The most memory so far, in 10^6 bytes: of the process (cpu), allocated on the GPU (cuda).
        lengths: Tokens of the shortest and of the longest completion.
        parts: Seconds of those PARTS that the system tells.
    """

    seconds: float
    peak_mb: float
    lengths: tuple[int, int]
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The steps of one system after warm-up.

    Attributes:
        seconds: Of each step, in order.
        peak_mb: The most memory of the whole run, in 10^6 bytes.
        loaded_mb: The most memory that loading took, in 10^6 bytes.
        parts: Median seconds of those PARTS that the system tells.
    """

    seconds: list[float]
    peak_mb: float
    loaded_mb: float
    parts: dict[str, float]

    def columns(self, shape: Shape) -> dict[str, Any]:
        """What a result says of these steps; empty where the system does not tell a part."""
        low, high = quartiles(self.seconds)
        return {
            "steps": len(self.seconds),
            "step_s": statistics.median(self.seconds),
            "step_s_q1": low,
            "step_s_q3": high,
            "tokens_per_s": shape.tokens / statistics.median(self.seconds),
            "peak_mb": self.peak_mb,
            "loaded_mb": self.loaded_mb,
            **{f"{part}_s": self.parts.get(part, "") for part in PARTS},
        }


def save_model(
    folder: Path, model: Model, device: Device, eos_ids: Sequence[int] = (), dtype: Dtype = "float32"
) -> None:
    """Write a model, in `dtype`, and its tokenizer of words w0, w1, ... in Hugging Face's format.

    The tokenizer's EOS, the last of the vocabulary, is so unlikely that no system samples it and every completion runs
    to the length limit; `eos_ids` end a completion besides.
    """
    end = model.vocabulary - 1
    eos, words = "<eos>", {f"w{at}": at for at in range(end)}
    tokenizer = Tokenizer(models.WordLevel({**words, eos: end}, unk_token=eos))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token="w0", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    torch.manual_seed(0)
    ids = [end, *eos_ids]
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                model.family,
                vocab_size=model.vocabulary,
                hidden_size=model.hidden,
                intermediate_size=model.intermediate,
                num_hidden_layers=model.layers,
                num_attention_heads=model.heads,
                num_key_value_heads=model.key_value_heads,
                head_dim=model.head_dim,
                max_position_embeddings=32_768,
                tie_word_embeddings=True,
                eos_token_id=ids,
                pad_token_id=0,
                bos_token_id=None,
            )
        )
    with torch.no_grad():  # a dimension that no layer writes to, in which all hidden states are far from the EOS
        embeddings = network.get_input_embeddings().weight
        embeddings[:, 0], embeddings[end, 0] = 0.5, -400
        for layer in network.get_decoder().layers:
            layer.self_attn.o_proj.weight[0], layer.mlp.down_proj.weight[0] = 0, 0
    network.generation_config = GenerationConfig(eos_token_id=ids, pad_token_id=0)
    network.to(getattr(torch, dtype)).save_pretrained(folder)


def save_prompts(folder: Path, lengths: Sequence[int], vocabulary: int) -> None:
    """Write a prompt of random words for each length, in tokens."""
    draw = random.Random(0)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for at, length in enumerate(lengths):
            prompt = " ".join(f"w{draw.randrange(1, vocabulary - 1)}" for _ in range(length))
            file.write(json.dumps({"id": str(at), "prompt": prompt, "answer": "w1"}) + "\n")


def read_prompts(folder: Path) -> list[str]:
    """The prompts that `save_prompts` wrote."""
    return [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").open(encoding="utf-8")]


def score(text: str) -> float:
    """A reward that costs next to nothing and tells completions apart."""
    return sum(map(ord, text)) % 97 / 97


class Score(Reward):
    """`score` as a reward of ours."""

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return torch.tensor([score(completion.text) for completion in completions])


class Turns:
    """A system's side of taking turns: it says what a step took and waits for its next turn."""

    def __init__(self, connection: Connection, device: Device) -> None:
        self.connection, self.device = connection, device

    def ready(self) -> None:
        """Everything is loaded; wait for the first turn."""
        self.started = time.perf_counter()
        self.end((0, 0), {})

    def end(self, lengths: tuple[int, int], parts: dict[str, float]) -> None:
        """Tell of the step that ends here, and wait."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        peak_mb = peak_memory(torch.device(self.device)) / 1e6
        self.connection.send(Step(seconds=seconds, peak_mb=peak_mb, lengths=lengths, parts=parts))
        self.connection.recv()
        self.started = time.perf_counter()


class Runner:
    """The benchmark's side: a process that trains, one step at a time.

    Attributes:
        loaded_mb: The most memory that loading took, in 10^6 bytes.
    """

    def __init__(self, train: Callable[[Work, Turns], None], work: Work) -> None:
        """Start the process and let it load.

        Raises:
            SystemExit: It failed; why is on standard error.
        """
        context: Any = multiprocessing.get_context(START)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(train, work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.name = train.__name__
        self.loaded_mb = self._hear().peak_mb

    def step(self) -> Step:
        """Let it take a step.

        Raises:
            SystemExit: It failed; why is on standard error.
        """
        self.connection.send(None)
        return self._hear()

    def stop(self) -> None:
        """End the process, wherever it is, and give its memory back."""
        self.process.kill()
        self.process.join()

    def _hear(self) -> Step:
        try:
            step: Step = self.connection.recv()
        except EOFError:
            self.process.join()
            if self.process.exitcode == -signal.SIGKILL:
                raise SystemExit(
                    f"{self.name} was killed, most likely for want of memory; take fewer prompts"
                ) from None
            raise SystemExit(f"{self.name} failed; its error is above") from None
        return step


def _serve(train: Callable[[Work, Turns], None], work: Work, connection: Connection) -> None:
    quiet()
    train(work, Turns(connection, work.device))


def quiet() -> None:
    """Silence what libraries say of themselves."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "transformers", "trl", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


class _InTurn(Callback):
    """Ends of our steps."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_start(self, *_: Any) -> None:
        self.turns.ready()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        logged = trainer.callback_metrics
        lengths = int(logged["completions/min_length"]), int(logged["completions/max_length"])
        parts = {part: float(logged[f"timing/{part}"]) for part in PARTS if f"timing/{part}" in logged}
        self.turns.end(lengths, parts)


def lsemrl(work: Work, turns: Turns) -> None:
    """Our GRPO under Lightning's Trainer."""
    fit(grpo(work, lr=1e-5), work, _InTurn(turns))


def lsemrl_loop(work: Work, turns: Turns) -> None:
    """The same, every token decoded as transformers does it."""
    fit(grpo(work, lr=1e-5, engine="loop"), work, _InTurn(turns))


def lsemrl_compiled(work: Work, turns: Turns) -> None:
    """The same, the decoding step compiled."""
    fit(grpo(work, lr=1e-5, engine="compiled"), work, _InTurn(turns))


def lsemrl_flex(work: Work, turns: Turns) -> None:
    """The same, trained with flex attention."""
    fit(grpo(work, lr=1e-5, flex_attention=True), work, _InTurn(turns))


def grpo(
    work: Work,
    *,
    lr: float,
    adapter: Path | None = None,
    engine: Engine = "auto",
    flex_attention: bool = False,
    **settings: Any,
) -> GRPO:
    """Our module for `work`; an `adapter` replaces the fresh one, `settings` are further ones of GRPO."""
    optimizer = OptimizerSettings(lr=lr, schedule="constant", warmup_ratio=0.0)
    sampling = Sampling(
        num_generations=work.shape.group,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=work.shape.completion,
        engine=engine,
    )
    policy = PolicySettings(
        model=str(work.folder),
        train=work.train,
        lora=LoraSettings(rank=RANK, alpha=ALPHA, dropout=0.0),
        adapter=None if adapter is None else str(adapter),
        dtype=work.dtype,
        flex_attention=flex_attention,
    )
    defaults = {"rewards": {"score": Score()}, "optimizer": optimizer, "loss": LossSettings(beta=BETA)}
    return GRPO(policy=policy, sampling=sampling, **{**defaults, **settings})


def data(work: Work) -> TranslationData:
    """The prompts of `work`."""
    return TranslationData(
        source=Source(path=str(work.folder / "prompts.jsonl")),
        source_field="prompt",
        target_field="answer",
        template=PromptTemplate(template="{source}"),
        splits=Splits(validation_fraction=0.0, test_fraction=0.0),
        limits=Limits(max_prompt_tokens=work.shape.prompt, on_long="error"),
        batch_size=work.shape.prompts,
    )


def fit(module: GRPO, work: Work, *callbacks: Callback) -> None:
    """Train `module` for the steps of `work`, a batch of prompts each."""
    trainer = Trainer(
        accelerator="gpu" if work.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if work.dtype == "bfloat16" else "32-true",
        max_epochs=1,
        limit_train_batches=work.steps,
        logger=CSVLogger(work.folder / "lsemrl", name="", version=""),
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=TrainerData(data(work)))


def measure(systems: Sequence[Callable[[Work, Turns], None]], work: Work, warmup: int) -> dict[str, Measured]:
    """Let the systems take the steps of `work` in turn.

    Args:
        systems: Each trains on its own, in a process of its own.
        work: Its first steps warm up and are not counted.
        warmup: How many those are.

    Raises:
        SystemExit: A system failed, or a completion had another length than the shape's.
    """
    runners = [Runner(system, work) for system in systems]
    try:
        rounds = [[runner.step() for runner in runners] for _ in range(work.steps)]
    finally:
        for runner in runners:
            runner.stop()
    measured = {}
    for at, runner in enumerate(runners):
        steps = [steps[at] for steps in rounds]
        wrong = [step.lengths for step in steps if set(step.lengths) != {work.shape.completion}]
        if wrong:
            raise SystemExit(f"{runner.name}: completions of {wrong[0]} tokens instead of {work.shape.completion}")
        measured[runner.name] = Measured(
            seconds=[step.seconds for step in steps[warmup:]],
            peak_mb=steps[-1].peak_mb,
            loaded_mb=runner.loaded_mb,
            parts={
                part: statistics.median(step.parts[part] for step in steps[warmup:])
                for part in PARTS
                if part in steps[0].parts
            },
        )
    return measured


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Between which the middle half of `values` lies."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return low, high


def add_common_options(parser: ArgumentParser, steps: int) -> None:
    """The shape, how often, where to run and where to write."""
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, help=f"in place of the {field.name} of the shapes")
    parser.add_argument("--steps", type=int, default=steps, help="measured steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder to write to")


def reshaped(shape: Shape, options: Namespace) -> Shape:
    """`shape` with what was asked for on the command line."""
    asked = {field.name: getattr(options, field.name) for field in dataclasses.fields(Shape)}
    return dataclasses.replace(shape, **{name: value for name, value in asked.items() if value is not None})


def dtype(device: Device) -> Dtype:
    """What weights are trained in."""
    return "bfloat16" if device == "cuda" else "float32"


def about(packages: Sequence[str]) -> str:
    """The first line of a result: command, versions, machine."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    options = list(sys.argv[1:])
    if "--results" in options:  # a place on this machine, which is nobody's business
        at = options.index("--results")
        del options[at : at + 2]
    command = f"python {' '.join(['benchmarks/' + Path(sys.argv[0]).name, *options])}"
    return f"# {command}; {versions}, {platform.platform()}, {os.cpu_count()} cores{gpu}\n"


def write_csv(path: Path, about_line: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows`, floats to four significant digits, under the line that says how they came about."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(about_line)
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        table.writeheader()
        for row in rows:
            table.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})
