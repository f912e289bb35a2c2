"""Learning rates of every arm of the demo, with the same number of tries each.

    python benchmarks/sweep.py --task translation --runs sft:1e-3 sft:2e-3 sft:4e-3 rl:2.5e-4 rl:5e-4 rl:1e-3

RL starts from the cold start of the demo, which is trained first. Writes one row a measurement to
benchmarks/results/sweep_<task>.csv, with the command, the versions and the machine in its first line.
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

from lsemrl import demo

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("task", "arm", "lr", "seed", "step", "meaning_f1", "meaning_exact", "chrf", "em", "seconds")


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("translation", "headline"), default="translation")
    parser.add_argument("--runs", nargs="+", required=True, metavar="ARM:LR", help="arms rl, sft and sft_replay")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    stages = {stage.name: stage for stage in demo.demo_stages(options.task)}
    battery = demo.make_battery(options.task)
    names = ("torch", "transformers", "peft", "lightning")
    about = ", ".join([*(f"{name} {version(name)}" for name in names), platform.platform(), f"{os.cpu_count()} cores"])
    RESULTS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        (RESULTS / f"sweep_{options.task}.csv").open("w", newline="", encoding="utf-8") as file,
        demo.progress(Console(stderr=True), 1.0) as bar,
    ):
        file.write(f"# python {' '.join(sys.argv)}; {about}\n")
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        adapters: dict[str, Path] = {}
        for arm, _, rate in (run.partition(":") for run in ("cold_start", *options.runs)):
            words = (f"--model.optimizer.lr={rate}",) if rate else ()
            stage = dataclasses.replace(stages[arm], words=(*stages[arm].words, *words))
            started = time.monotonic()
            follow = demo.Follow(stage, battery, bar, f"{arm} {rate}")
            out = Path(folder) / f"{arm}_{rate}"
            module = demo.fit(stage, follow, out, options.seed, adapters.get(stage.after or ""))
            adapters.setdefault(arm, module.folder / "adapter")
            for point in follow.trajectory:
                about_run = {"task": options.task, "arm": arm, "lr": rate, "seed": options.seed}
                table.writerow({**about_run, **point, "seconds": round(time.monotonic() - started)})
            file.flush()


if __name__ == "__main__":
    main()
