"""The arms of `lsemrl demo`: what each way of training gains on the embedded world, and what it costs.

Every stage is an ordinary `lsemrl fit` with the shipped configurations; this file strings them together, measures all
arms on the same held-out rows, and writes the report.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console
from transformers import AutoTokenizer

from lsemrl import __version__, micro
from lsemrl.commands.arm_records import arm_of, curve_of, drifts_of
from lsemrl.commands.beside import side_by_side
from lsemrl.commands.demo_progress import Shown, progress
from lsemrl.commands.demo_stages import Stage, Task, demo_stages
from lsemrl.commands.quiet import quiet
from lsemrl.commands.rehearse import rehearse
from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.headline import HeadlineData
from lsemrl.data.task import MicroRows
from lsemrl.data.text import PlainText
from lsemrl.data.translation import TranslationData
from lsemrl.evaluation.measure import read_battery
from lsemrl.evaluation.measurement import machine, timestamp, versions
from lsemrl.evaluation.tax import Battery, Measurement, measure, scores
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.alarm_log import read_alarms
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.report.records import Report
from lsemrl.report.rows import alarms_of
from lsemrl.report.write import table, write_report
from lsemrl.rewards import LanguageConsistency, SemanticSimilarity
from lsemrl.runs import ALARMS, new_folder

_MEASURING = 12.0
"""What one measurement costs, in optimizer steps of SFT; for the time left only."""
_REHEARSING = 60.0
"""What writing by itself costs, likewise."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How much is measured.

    Attributes:
        target: Rows of the new task.
        general: Questions.
        text: Plain texts.
        own: What the base writes by itself.
        points: Measurements of an arm after the one at its start.
    """

    target: int = 200
    general: int = 200
    text: int = 100
    own: int = 2000
    points: int = 5


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """An arm, trained and measured.

    Attributes:
        stage: How it was trained.
        folder: Of its run.
        measured: At its end.
        trajectory: Scores on the way.
        signatures: How they were computed.
        seconds: It took.
    """

    stage: Stage
    folder: Path
    measured: Measurement
    trajectory: tuple[dict[str, float], ...]
    signatures: dict[str, str]
    seconds: float


def run_demo(
    task: Task, folder: Path, seed: int, stages: Sequence[Stage] | None = None, rows: Rows | None = None
) -> Report:
    """Train and measure every arm, print the table, and write the report.

    Args:
        task: What the policy is taught.
        folder: A new folder in it takes the arms' runs and the report.
        seed: Of every stage.
        stages: The arms; None takes those of the demo.
        rows: How much is measured.

    Raises:
        UserError: `folder` cannot be written to.
    """
    begun, console, rows = time.monotonic(), Console(), rows or Rows()
    plan = demo_stages(task) if stages is None else stages
    folder = new_folder(folder, field="--output")
    own = [stage for stage in plan if stage.anchored]
    lanes = [own, [stage for stage in plan if not stage.anchored]] if own and (os.cpu_count() or 1) > 1 else [plan]
    with progress(console, [_cost(lane, rows) for lane in lanes]) as shown:
        works = [partial(train, task, lane, folder, seed, rows) for lane in lanes]
        done = side_by_side(works, shown)
    trained = [arm for lane, _ in done for arm in lane]
    [base] = [measured for _, measured in done if measured]
    quiet()
    rewards = {"similarity": SemanticSimilarity(threshold=0.0), "language": LanguageConsistency()}
    arms = [arm_of("base", "Base", "The policy as shipped, never trained on the task.", base, rewards)]
    arms += [
        arm_of(
            arm.stage.name,
            arm.stage.label,
            arm.stage.trained_by,
            arm.measured,
            rewards,
            seconds=arm.seconds,
            steps=arm.stage.steps,
            nll_drifts=drifts_of(arm.measured, base),
            trajectory=arm.trajectory,
            curve=curve_of(arm.folder),
            alarms=alarms_of(read_alarms(arm.folder / ALARMS)),
            adapters=(adapter_fingerprint(arm.folder / "adapter"),),
        )
        for arm in trained
    ]
    report = Report(
        lsemrl=__version__,
        created=timestamp(),
        task={"translation": "translation zh→bo", "headline": "Tibetan headlines"}[task],
        seed=seed,
        command=f"lsemrl demo --task {task} --seed {seed}",
        machine=machine(),
        versions=versions(),
        signatures={name: text for arm in trained for name, text in arm.signatures.items()},
        seconds=time.monotonic() - begun,
        arms=tuple(arms),
        general_name=make_battery(task, rows).general_name,
    )
    page = write_report(report, folder)
    console.print(table(report))
    console.print(f"Report: {page}", markup=False, soft_wrap=True)
    return report


def _cost(lane: Sequence[Stage], rows: Rows) -> float:
    """What the arms of a lane cost, in optimizer steps of SFT."""
    arms = sum(stage.steps * stage.cost + (rows.points + 1) * _MEASURING for stage in lane)
    return arms + _REHEARSING * any(stage.anchored for stage in lane)


def train(
    task: Task, lane: Sequence[Stage], folder: Path, seed: int, rows: Rows, shown: Shown
) -> tuple[list[TrainedArm], Measurement | None]:
    """Train and measure arms one after the other, and the base beside those that are not anchored.

    Args:
        task: What the policy is taught.
        lane: The arms.
        folder: Takes their runs.
        seed: Of every stage.
        rows: How much is measured.
        shown: Who is told how far it is.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # the bar says it all
    battery = make_battery(task, rows)
    own = folder / "own.jsonl"
    if any(stage.anchored for stage in lane):
        shown.say("what the base writes by itself")
        rehearse(output=own, rows=rows.own, max_prompt_tokens=96, max_new_tokens=48, top_k=0, seed=seed)
        shown.advance(_REHEARSING)
    trained: list[TrainedArm] = []
    base = None
    for at, stage in enumerate(lane, start=1):
        started = time.monotonic()
        follow = Follow(stage, battery, shown, f"{stage.label} ({at} of {len(lane)})", rows.points)
        before = [arm.folder / "adapter" for arm in trained if arm.stage.name == stage.after]
        module = fit(
            stage, follow, folder / stage.name, seed, next(iter(before), None), own if stage.anchored else None
        )
        measured = follow.last
        assert measured is not None and module.folder
        trained.append(
            TrainedArm(
                stage=stage,
                folder=module.folder,
                measured=measured,
                trajectory=tuple(follow.trajectory),
                signatures=module.scorer.signatures | measured.general_signatures,
                seconds=time.monotonic() - started,
            )
        )
        if not stage.anchored and base is None:
            base = measure_base(module, battery)
    return trained, base


def fit(stage: Stage, follow: Follow, folder: Path, seed: int, adapter: Path | None, own: Path | None) -> PolicyModule:
    """Run `lsemrl fit` for one stage; the module it trained."""
    words = ["fit", *(word for name in stage.configs for word in ("--config", str(CONFIGS / name)))]
    words += [
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.max_steps={stage.steps}",
        "--trainer.max_epochs=-1",
        "--trainer.callbacks=null",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=0",
        *stage.words,
    ]
    if adapter:
        words.append(f"--model.policy.adapter={adapter}")
    if own:
        words.append(f"--model.anchor.path={own}")
    module: PolicyModule = run_trainer(words, callbacks=[follow]).model
    return module


class Follow(Callback):
    """Says how far the arm has come, scores it at its start and a few times on the way, and measures it at its end."""

    def __init__(self, stage: Stage, battery: Battery, bar: Shown, title: str, points: int) -> None:
        self.stage, self.battery, self.bar, self.title = stage, battery, bar, title
        self.points = {round(stage.steps * point / points) for point in range(points)}
        self.trajectory: list[dict[str, float]] = []
        self.last: Measurement | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Score the point of departure."""
        self._score(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Advance, and score when it is time."""
        self.bar.advance(self.stage.cost)
        self.bar.say(f"{self.title}: step {pl_module.global_step} of {self.stage.steps}")
        if pl_module.global_step in self.points:
            self._score(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure what came of it."""
        self.bar.say(f"{self.title}: measuring")
        self.last = measure(pl_module.policy, self.battery, pl_module.scorer, pl_module.greedy)
        self._keep(pl_module, self.last.target, self.last.general)

    def _score(self, module: PolicyModule) -> None:
        self.bar.say(f"{self.title}: measuring")
        target, general = scores(module.policy, self.battery, module.scorer, module.greedy)
        self._keep(module, target, general)

    def _keep(self, module: PolicyModule, target: dict[str, float], general: dict[str, float]) -> None:
        shown = {name: target[name] for name in ("meaning_f1", "meaning_exact", "chrf")}
        self.trajectory.append({"step": float(module.global_step), **shown, "em": general["em"]})
        self.bar.advance(_MEASURING)


def make_battery(task: Task, rows: Rows) -> Battery:
    """The held-out rows of the embedded world that every arm is measured on."""
    target: Callable[..., Any] = TranslationData if task == "translation" else HeadlineData
    return read_battery(
        target(micro=MicroRows(train=1, validation=0, test=rows.target)),
        ComprehensionData(micro=MicroRows(train=1, validation=0, test=rows.general)),
        PlainText(rows=rows.text),
        AutoTokenizer.from_pretrained(micro.POLICY),
        target_rows=rows.target,
        general_rows=rows.general,
        say=lambda line: None,  # of rows that are the same each time
    )


def measure_base(module: PolicyModule, battery: Battery) -> Measurement:
    """Measure the model that `module` trains, as it was published."""
    policy = Policy(PolicySettings(model=module.policy.settings.model))  # its new adapter changes nothing yet
    policy.load()
    return measure(policy, battery, module.scorer, module.greedy)
