"""`lsemrl demo`: the main job on the embedded world."""

from __future__ import annotations

from pathlib import Path

from lsemrl.commands.demo_stages import Task


def demo(*, task: Task = "translation", output: Path = Path("runs/demo"), seed: int = 1) -> None:
    """Train and measure every arm, and write the report.

    Args:
        task: What the policy is taught.
        output: Folder for adapters, logs and report.
        seed: Of every stage.
    """
    from lsemrl.commands.arms import run_demo  # torch, for which words that cannot be do not wait

    run_demo(task, output, seed)
