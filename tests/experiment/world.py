"""An experiment on two small files, run by a stand-in for the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lsemrl.experiment.dry_run import print_plan
from lsemrl.experiment.plan import Experiment
from lsemrl.experiment.read import read_experiment
from lsemrl.experiment.run import run_experiment

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake.py")))
STAGES: list[dict[str, Any]] = [
    {"name": "rl", "verb": "fit", "configs": ["rl.yaml"], "after": "cold"},
    {"name": "cold", "verb": "fit", "configs": ["base.yaml"], "overrides": {"data.part": "cold"}},
    {"name": "rl_test", "verb": "test", "configs": ["base.yaml"], "after": "rl"},
    {"name": "other", "verb": "fit", "configs": ["base.yaml", "rl.yaml"]},
]


@dataclass
class World:
    """A folder with configurations, an experiment's file and its output."""

    folder: Path

    @property
    def configs(self) -> Path:
        return self.folder / "configs"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def file(self) -> Path:
        return self.folder / "trial.yaml"

    def write(self, **fields: Any) -> Path:
        """Write the experiment's file, with `fields` in place of its own."""
        content = {"output": str(self.output), "seeds": [1], "stages": STAGES, **fields}
        self.file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return self.file

    def read(self, **fields: Any) -> Experiment:
        return read_experiment(self.write(**fields), self.configs)

    def run(self, *, parallel: int = 1, **fields: Any) -> tuple[int, str]:
        """Run it; the exit status, and what was printed."""
        return self._printed(
            lambda console: run_experiment(self.read(**fields), parallel=parallel, prefix=FAKE, console=console)
        )

    def plan(self, *, parallel: int = 1, **fields: Any) -> str:
        plan = self.read(**fields)
        return self._printed(lambda console: print_plan(plan, parallel=parallel, console=console) or 0)[1]

    def journal(self) -> list[dict[str, Any]]:
        """What the stand-in was called with, in order."""
        path = self.folder / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def started(self) -> list[str]:
        """The stages run since the last call, with their seeds."""
        folders = [Path(entry["folder"]) for entry in self.journal()]
        (self.folder / "journal.jsonl").unlink(missing_ok=True)
        return [f"{folder.parent.name} {folder.name.removeprefix('seed_')}" for folder in folders]

    @staticmethod
    def _printed(act: Callable[[Console], int]) -> tuple[int, str]:
        text = io.StringIO()
        return act(Console(file=text, width=200)), text.getvalue()
