"""Learning rates of every arm of the demo, with the same number of tries each.

    python benchmarks/sweep.py --task translation --runs sft:1e-3 sft:2e-3 sft:1e-3:320 rl:2e-4 rl:4e-4

A run is an arm, its learning rate and, where they are not the demo's, its optimizer steps. RL starts from the cold
start of the demo, which is trained first. Adds one row a measurement to benchmarks/results/sweep_<task>.csv, behind a
line with the command, the versions and the machine.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from lsemrl.commands import arms as demo

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("task", "arm", "lr", "seed", "step", "meaning_f1", "meaning_exact", "chrf", "em", "seconds")


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("translation", "headline"), default="translation")
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="ARM:LR[:STEPS]", help="arms rl, sft and sft_replay"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    stages = {stage.name: stage for stage in demo.demo_stages(options.task)}
    battery = demo.make_battery(options.task)
    names = ("torch", "transformers", "peft", "lightning")
    about = ", ".join([*(f"{name} {version(name)}" for name in names), platform.platform(), f"{os.cpu_count()} cores"])
    RESULTS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        (RESULTS / f"sweep_{options.task}.csv").open("a", newline="", encoding="utf-8") as file,
        demo.progress(Console(stderr=True), 1.0) as bar,
    ):
        new = not file.tell()
        file.write(f"# python {' '.join(sys.argv)}; {about}\n")
        table = csv.DictWriter(file, COLUMNS)
        if new:
            table.writeheader()
        adapters: dict[str, Path] = {}
        needed = ("cold_start",) if any(stages[run.partition(":")[0]].after for run in options.runs) else ()
        for run in (*needed, *options.runs):
            arm, rate, steps = (*run.split(":"), "", "")[:3]
            words = (f"--model.optimizer.lr={rate}",) if rate else ()
            stage = stages[arm]
            stage = dataclasses.replace(stage, words=(*stage.words, *words), steps=int(steps or stage.steps))
            started = time.monotonic()
            follow = demo.Follow(stage, battery, bar, f"{arm} {rate}")
            out = Path(folder) / f"{arm}_{rate}_{stage.steps}"
            module = demo.fit(stage, follow, out, options.seed, adapters.get(stage.after or ""))
            adapters.setdefault(arm, module.folder / "adapter")
            for point in follow.trajectory:
                about_run = {"task": options.task, "arm": arm, "lr": rate, "seed": options.seed}
                table.writerow({**about_run, **point, "seconds": round(time.monotonic() - started)})
            file.flush()


if __name__ == "__main__":
    main()
