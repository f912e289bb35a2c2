"""Memory of a rank by how a run is laid out: what the estimate says beside what was measured.

    python benchmarks/sizing.py --results benchmarks/results

On CPU ranks (gloo), whose resident memory is what a GPU's would be but for libraries; its peak is counted from the
moment at which the weights lie where they will stay.
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
from harness import Model, Shape, Work
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

_MODEL = Model(hidden=768, intermediate=2048, layers=12, heads=12, key_value_heads=4, head_dim=64, vocabulary=16_000)
_SHAPE = Shape(prompts=2, prompt=128, completion=32, group=4)
_LAYOUTS = ("one", "ddp", "fsdp", "fsdp_streamed")


class Forget(Callback):
    """Lets the peak begin anew: reading a model holds more than keeping it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the high-water mark of this process, once files that are mapped have been read."""
        for parameter in pl_module.parameters():
            parameter.detach().sum()
        Path("/proc/self/clear_refs").write_text("5")


def train(work: Work, layout: str, output: Path) -> None:
    """Two steps in this process, which may be one of two ranks."""
    import dataclasses

    module = harness.grpo(work, lr=1e-5, micro_batch_tokens=512)
    settings = dataclasses.replace(module.policy.settings, gather_for_sampling=layout != "fsdp_streamed")
    module.policy.settings = settings
    sharded = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    strategy = {"one": "auto", "ddp": "ddp"}.get(layout, sharded)
    trainer = Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=1 if layout == "one" else 2,
        max_epochs=1,
        limit_train_batches=2,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Forget()],
        default_root_dir=work.folder,
    )
    trainer.fit(module, datamodule=harness.data(work))
    if trainer.is_global_zero:
        from lsemrl.modules.memory import peak_memory

        measured = peak_memory(module.device) - module.held_by_others
        output.write_text(json.dumps({"estimated_mb": module.estimate.total / 1e6, "measured_mb": measured / 1e6}))


def main() -> None:
    """Every layout in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--one", nargs=4, metavar=("FOLDER", "LAYOUT", "TRAIN", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, layout, trained, output = options.one
        work = Work(folder=Path(folder), shape=_SHAPE, train=trained, device="cpu", dtype="float32", steps=2)
        train(work, layout, Path(output))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        harness.save_model(folder, _MODEL, "cpu")
        harness.save_prompts(folder, [_SHAPE.prompt] * 16, _MODEL.vocabulary)
        for trained in ("lora", "full"):
            for layout in _LAYOUTS:
                output = folder / "found.json"
                words = [sys.executable, __file__, "--one", name, layout, trained, str(output)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
                subprocess.run(words, check=True, capture_output=True, env=environment)
                found = json.loads(output.read_text())
                row = {"train": trained, "layout": layout, "ranks": 1 if layout == "one" else 2, **found}
                rows.append({**row, "measured_over_estimated": found["measured_mb"] / found["estimated_mb"]})
                print(rows[-1])
    about = harness.about(("lsemrl", "torch", "transformers", "peft", "lightning"))
    harness.write_csv(options.results / "sizing.csv", about, rows)


if __name__ == "__main__":
    main()
