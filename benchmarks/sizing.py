"""Memory of a rank: what the estimate says beside what was measured, for three models and four layouts of ranks.

    python benchmarks/sizing.py --results benchmarks/results

On a CPU. `lsemrl.modules.memory` says what is counted, and why processes are told to give back what they free; one
run is not, to show what that is. Steps are few and small: a peak is of one micro-batch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from harness import Shape, Work
from lightning.pytorch import Callback, LightningModule, Trainer

from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS

_EMBEDDED = "embedded"  # by configs/grpo.yaml
_SHAPE = Shape(prompts=2, prompt=32, completion=16, group=8)
_STREAMED = ["--model.init_args.policy.gather_for_sampling", "false"]
_LAYOUTS = {
    "one": [],
    "ddp": ["--config", str(CONFIGS / "ddp.yaml")],
    "fsdp": ["--config", str(CONFIGS / "fsdp.yaml")],
    "fsdp_streamed": ["--config", str(CONFIGS / "fsdp.yaml"), *_STREAMED],
}
_FULL = ["--model.init_args.policy.train", "full", "--model.init_args.policy.adapter", "null"]
_RUNS = (
    ("qwen3-0.6b-random", "lora", "one"),
    ("smollm2-135m-random", "lora", "one"),
    ("smollm2-135m-random", "full", "one"),
    (_EMBEDDED, "lora", "one"),
    (_EMBEDDED, "full", "one"),
    *((_EMBEDDED, "lora", layout) for layout in ("ddp", "fsdp", "fsdp_streamed")),
)


class Tell(Callback):
    """Writes what the first rank expected and took."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When the run has told it, too."""
        if trainer.is_global_zero:
            found = {"estimated_mb": pl_module.estimate.total / 1e6, "measured_mb": pl_module.held.peak / 1e6}
            self._path.write_text(json.dumps(found))


def train(model: str, train: harness.Train, layout: str, folder: Path, output: Path) -> None:
    """A few steps in this process, which may be one of two ranks."""
    if model == _EMBEDDED:
        config = ["fit", "--config", str(CONFIGS / "grpo.yaml"), *_LAYOUTS[layout], *(_FULL if train == "full" else [])]
        limits = ["--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "0"]
        where = ["--trainer.default_root_dir", str(folder / "runs"), "--checkpoints.resume", "never"]
        run_trainer([*config, *limits, *where, "--trainer.callbacks", "null"], [Tell(output)])
    else:
        work = Work(folder=folder / model, shape=_SHAPE, train=train, device="cpu", dtype="float32", steps=2)
        harness.fit(harness.grpo(work, lr=1e-5, micro_batch_tokens=512), work, Tell(output))


def main() -> None:
    """Every run in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--one", nargs=5, metavar=("MODEL", "TRAIN", "LAYOUT", "FOLDER", "OUTPUT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one:
        model, trained, layout, folder, output = options.one
        train(model, trained, layout, Path(folder), Path(output))
        return
    about_line, rows = harness.about(("lsemrl", "torch", "transformers", "peft", "lightning")), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in {model for model, _, _ in _RUNS} - {_EMBEDDED}:
            shape = harness.MODELS[model]
            (folder / model).mkdir()
            harness.save_model(folder / model, shape, "cpu")
            harness.save_prompts(folder / model, [_SHAPE.prompt] * 4, shape.vocabulary)
        for run, kept in [((_EMBEDDED, "lora", "one"), True), *((run, False) for run in _RUNS)]:
            words = [sys.executable, __file__, "--one", *run, name, str(folder / "found.json")]
            returned = {} if kept else {"MALLOC_MMAP_THRESHOLD_": "65536"}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **returned}
            subprocess.run(words, check=True, capture_output=True, env=environment)
            found = json.loads((folder / "found.json").read_text())
            about = dict(zip(("model", "train", "layout"), run, strict=True))
            about |= {"ranks": 1 if run[2] == "one" else 2, "freed_memory": "kept" if kept else "returned"}
            rows.append({**about, **found, "measured_over_estimated": found["measured_mb"] / found["estimated_mb"]})
            print(rows[-1], flush=True)
            harness.write_csv(options.results / "sizing.csv", about_line, rows)


if __name__ == "__main__":
    main()
