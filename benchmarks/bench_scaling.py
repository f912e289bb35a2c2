"""How the time and the memory of a GRPO step grow with prompt, group, completion and model.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --sweep prompt --values 64 256 1024 --group 16

Each point trains in a process of its own, so that its peak memory is its own. Writes a table and a plot for each sweep
to benchmarks/results/scaling_<sweep>_<device>.{csv,png}.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness  # first: it takes the libraries offline
import matplotlib
from harness import Device, Measured, Model, Shape, Work
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

PACKAGES = ("lsemrl", "torch", "transformers", "peft", "lightning")
BASE = {
    "cpu": Shape(prompts=2, prompt=128, completion=16, group=8),
    "cuda": Shape(prompts=2, prompt=1024, completion=64, group=8),
}
"""What stands still while one thing grows; so does the width."""
MODEL = {"cpu": harness.small_model, "cuda": harness.large_model}
WIDTH = {"cpu": 192, "cuda": 1024}
SWEEPS: dict[Device, dict[str, tuple[int, ...]]] = {
    "cpu": {
        "prompt": (32, 128, 512, 1024),
        "group": (2, 4, 8, 16),
        "completion": (8, 16, 32, 64),
        "model": (64, 192, 384, 768),
    },
    "cuda": {
        "prompt": (256, 1024, 4096),
        "group": (4, 8, 16, 32),
        "completion": (32, 64, 128),
        "model": (512, 1024, 2048),
    },
}
AXES = {
    "prompt": "prompt, tokens",
    "group": "completions per prompt",
    "completion": "completion, tokens",
    "model": "model, million parameters",
}
COLOURS = {"step": "#1c1c1c", "rollout": "#0072b2", "reward": "#b87900", "reference": "#00875f", "update": "#d55e00"}
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebebeb",
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured at one place of a sweep."""

    model: Model
    shape: Shape


def points(sweep: str, values: Sequence[int], base: Shape, device: Device) -> list[Point]:
    """The places of a sweep; values of the sweep `model` are widths."""
    if sweep == "model":
        return [Point(model=MODEL[device](width), shape=base) for width in values]
    model = MODEL[device](WIDTH[device])
    return [Point(model=model, shape=dataclasses.replace(base, **{sweep: value})) for value in values]


def measure(point: Point, device: Device, steps: int, warmup: int) -> Measured:
    """Train at `point` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            folder=Path(folder),
            shape=point.shape,
            train="lora",
            device=device,
            dtype=harness.dtype(device),
            steps=warmup + steps,
        )
        harness.save_model(work.folder, point.model, device)
        harness.save_prompts(
            work.folder, [point.shape.prompt] * point.shape.prompts * work.steps, point.model.vocabulary
        )
        return harness.measure((harness.lsemrl,), work, warmup)["lsemrl"]


def draw(sweep: str, sizes: Sequence[float], results: Sequence[Measured], title: str) -> Figure:
    """Seconds of a step and of its parts, and memory, over what grows; equal growth is a straight slope of one."""
    seconds = {"step": [statistics.median(result.seconds) for result in results]}
    seconds |= {part: [result.parts.get(part, 0.0) for result in results] for part in harness.PARTS}
    bands = zip(*(harness.quartiles(result.seconds) for result in results), strict=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 4.0), layout="constrained")
        time, memory = figure.subplots(1, 2)
        for part, line in seconds.items():
            if min(line) >= 1e-3:  # the reward here costs nothing, and a system may not tell its parts
                width = 2 if part == "step" else 1.4
                time.plot(sizes, line, color=COLOURS[part], label=part, marker="o", linewidth=width)
        time.fill_between(sizes, *bands, color=COLOURS["step"], alpha=0.12, linewidth=0)
        time.set_title("Seconds per step (band: middle half)")
        above = [result.peak_mb - result.loaded_mb for result in results]
        peak = [result.peak_mb for result in results]
        memory.plot(sizes, peak, color="#1c1c1c", label="peak", marker="o", linewidth=2)
        memory.plot(sizes, above, color="#7b4ea3", label="peak above loading", marker="o", linewidth=1.4)
        memory.set_title("Memory, MB")
        for ax in (time, memory):
            _logarithmic(ax, sizes)
            ax.set_xlabel(AXES[sweep])
            ax.legend()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _logarithmic(ax: Axes, sizes: Sequence[float]) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sizes)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_locator(NullLocator())


def still(sweep: str, point: Point) -> str:
    """What does not grow in a sweep through `point`, in words."""
    shape = point.shape
    words = {
        "prompts": f"{shape.prompts} prompts a step",
        "prompt": f"{shape.prompt:,} prompt tokens",
        "completion": f"{shape.completion:,} completion tokens",
        "group": f"{shape.group} completions per prompt",
        "model": f"{point.model.parameters / 1e6:,.3g} million parameters",
    }
    return ", ".join(text for name, text in words.items() if name != sweep)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--values", nargs="+", type=int, help="in place of the sweeps' own; of model, widths")
    harness.add_common_options(parser, steps=3)
    options = parser.parse_args()
    if options.values and len(options.sweep) > 1:
        parser.error("--values are those of one --sweep")
    harness.quiet()
    device: Device = options.device
    base = harness.reshaped(BASE[device], options)
    about = harness.about(PACKAGES)
    known: dict[Point, Measured] = {}  # the sweeps cross where nothing has grown
    for sweep in options.sweep:
        places = points(sweep, options.values or SWEEPS[device][sweep], base, device)
        for point in places:
            if point not in known:
                known[point] = measure(point, device, options.steps, options.warmup)
                typical = known[point].columns(point.shape)
                size = f"{point.model.parameters / 1e6:,.1f} M parameters"
                print(
                    f"{sweep}: {point.shape}, {size}: {typical['step_s']:.3g} s, {typical['peak_mb']:,.0f} MB",
                    flush=True,
                )
        results = [known[point] for point in places]
        path = options.results / f"scaling_{sweep}_{device}"
        rows = [
            {
                "sweep": sweep,
                **dataclasses.asdict(point.shape),
                **dataclasses.asdict(point.model),
                "parameters": point.model.parameters,
                "device": device,
                **result.columns(point.shape),
            }
            for point, result in zip(places, results, strict=True)
        ]
        harness.write_csv(path.with_suffix(".csv"), about, rows)
        sizes = [point.model.parameters / 1e6 if sweep == "model" else getattr(point.shape, sweep) for point in places]
        title = f"A GRPO step with LoRA on {device}: {still(sweep, places[0])}"
        draw(sweep, sizes, results, title).savefig(path.with_suffix(".png"), dpi=200)
        print(path.with_suffix(".png"), flush=True)


if __name__ == "__main__":
    main()
