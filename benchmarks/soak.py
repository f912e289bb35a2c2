"""A long run on the embedded world, watched: memory, open files and seconds of every step, and a plot of them.

python benchmarks/soak.py --steps 2000 --results benchmarks/results
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import harness
from lightning.pytorch.callbacks import Callback
from matplotlib import pyplot
from scipy.stats import theilslopes

from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS

_EVERY = 20  # steps in a row of the results
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch(Callback):
    """Notes what the process holds after every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._began = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """Look at the process."""
        seconds = time.perf_counter() - self._began
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 1e6
        handles, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        self.rows.append({"step_s": seconds, "resident_mb": resident, "open_files": handles, "threads": threads})


def summary(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Medians of every so many steps."""
    return [
        {"step": at, **{name: median(row[name] for row in rows[at : at + _EVERY]) for name in rows[0]}}
        for at in range(0, len(rows), _EVERY)
    ]


def drift(rows: list[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """What the second nine tenths of a run add to a figure, as a share of its median, with its 95% interval."""
    kept = rows[len(rows) // 10 :]
    values = [row[name] for row in kept]
    slope, _, low, high = theilslopes(values, [row["step"] for row in kept])
    span = (kept[-1]["step"] - kept[0]["step"]) / median(values)
    return slope * span, low * span, high * span


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Three curves over the steps."""
    figure, axes = pyplot.subplots(3, 1, figsize=(7, 6), sharex=True, layout="constrained")
    names = {"step_s": "seconds a step", "resident_mb": "resident memory, MB", "open_files": "open files"}
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], lw=1)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("rollout step")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, write soak.csv and soak.png, and print what drifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run_trainer(
            [
                *("fit", "--config", str(CONFIGS / "grpo.yaml")),
                f"--trainer.default_root_dir={folder}",
                f"--trainer.max_steps={options.steps}",
                "--trainer.max_epochs=-1",
                "--trainer.callbacks=null",
                "--trainer.enable_progress_bar=false",
                "--trainer.val_check_interval=100",
                "--data.batch_size=8",
            ],
            callbacks=[watch],
        )
        with next(Path(folder).glob("version_0/metrics.csv")).open(newline="") as file:
            steps = sum(bool(row["reward"]) for row in csv.DictReader(file))
    assert steps == options.steps, f"{steps} steps were logged"
    rows = summary(watch.rows)
    packages = ("lsemrl", "torch", "transformers", "peft", "lightning")
    harness.write_csv(options.results / "soak.csv", harness.about(packages), rows)
    plot(rows, options.results / "soak.png")
    for name in ("step_s", "resident_mb", "open_files", "threads"):
        share, low, high = drift(rows, name)
        print(f"{name}: {share:+.1%} [{low:+.1%}, {high:+.1%}] over the last nine tenths")


if __name__ == "__main__":
    main()
