"""The arms of `lsemrl demo`: what each way of training gains on the embedded world, and what it costs.

Every stage is an ordinary `lsemrl fit` with the shipped configurations; this file strings them together, measures all
arms on the same held-out rows, and writes the report.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback
from rich.console import Console
from transformers import AutoTokenizer

from lsemrl import __version__, micro
from lsemrl.commands.arm_records import arm_of, curve_of, drifts_of
from lsemrl.commands.demo_progress import Shown, progress
from lsemrl.commands.rehearse import rehearse
from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.headline import HeadlineData
from lsemrl.data.task import MicroRows
from lsemrl.data.text import PlainText
from lsemrl.data.translation import TranslationData
from lsemrl.evaluation.measure import read_battery
from lsemrl.evaluation.measurement import machine, versions
from lsemrl.evaluation.tax import Battery, Measurement, measure, scores
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.alarm_log import read_alarms
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.report.records import Arm, Report
from lsemrl.report.rows import alarms_of
from lsemrl.report.write import table, write_report
from lsemrl.runs import ALARMS, new_folder

Task = Literal["translation", "headline"]

OWN_ROWS = 2000
TARGET_ROWS, GENERAL_ROWS, TEXT_ROWS = 200, 200, 100
POINTS = 5
"""Measurements of an arm after the one at its start."""
_MEASURING = 12.0
"""What one measurement costs, in optimizer steps of SFT; for the time left only."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One arm, trained by one `fit`.

    Attributes:
        name: Of the arm.
        label: The arm's name for people.
        trained_by: How it was trained, in one sentence.
        configs: Files under configs/, later ones over earlier ones.
        words: Overrides.
        steps: Optimizer steps.
        cost: What a step costs, in steps of SFT; for the time left only.
        anchored: Whether the policy is held to what the base wrote by itself.
        after: The arm whose adapter this one starts from.
    """

    name: str
    label: str
    trained_by: str
    configs: tuple[str, ...]
    words: tuple[str, ...] = ()
    steps: int
    cost: float = 1.0
    anchored: bool = False
    after: str | None = None


def demo_stages(task: Task) -> tuple[Stage, ...]:
    """The arms of the demo, in the order they are trained."""
    overlay = ("headline.yaml",) if task == "headline" else ()
    main = ("--data.main=lsemrl.data.headline.HeadlineData",) if task == "headline" else ()
    # Where RL finds something to improve: a cold start that knows too little of a slot (a verb, say) teaches RL to say
    # the same safe word everywhere, and one that knows all leaves it nothing.
    return (
        Stage(
            name="cold_start_anchored",
            label="Cold start, anchored",
            trained_by="SFT on the cold-start rows, held to what the base wrote by itself.",
            configs=("sft.yaml", *overlay),
            words=("--data.splits.part=cold_start", "--model.optimizer.lr=2e-3"),
            steps=200,
            cost=1.4,
            anchored=True,
        ),
        Stage(
            name="rl_anchored",
            label="RL, anchored",
            trained_by="GRPO with semantic rewards on the other rows, from the cold start, held likewise.",
            configs=("grpo.yaml", *overlay),
            words=("--model.optimizer.lr=4e-4",),
            steps=150,
            cost=5.5,
            anchored=True,
            after="cold_start_anchored",
        ),
        Stage(
            name="sft",
            label="Strong SFT",
            trained_by="SFT on all rows.",
            configs=("sft.yaml", *overlay),
            words=("--model.optimizer.lr=4e-3",),
            steps=200,
        ),
        Stage(
            name="sft_replay",
            label="SFT + replay",
            trained_by="SFT on all rows, with 30% of reading comprehension mixed in.",
            configs=("sft.yaml", "replay.yaml"),
            words=("--model.optimizer.lr=4e-3", *main),
            steps=200,
        ),
    )


def run_demo(task: Task, folder: Path, seed: int, stages: Sequence[Stage] | None = None) -> Report:
    """Train and measure every arm, print the table, and write the report.

    Args:
        task: What the policy is taught.
        folder: A new folder in it takes the arms' runs and the report.
        seed: Of every stage.
        stages: The arms; None takes those of the demo.

    Raises:
        UserError: `folder` cannot be written to.
    """
    begun, console = time.monotonic(), Console()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # the bar says it all
    plan = demo_stages(task) if stages is None else stages
    folder = new_folder(folder, field="--output")
    battery = make_battery(task)
    arms: list[Arm] = []
    adapters: dict[str, Path] = {}
    signatures: dict[str, str] = {}
    base: Measurement | None = None
    own = _rehearsed(folder, seed) if any(stage.anchored for stage in plan) else None
    with progress(console, sum(stage.steps * stage.cost + (POINTS + 1) * _MEASURING for stage in plan)) as bar:
        for at, stage in enumerate(plan, start=1):
            started = time.monotonic()
            follow = Follow(stage, battery, bar, f"{task} · {stage.label} ({at} of {len(plan)})")
            adapter = adapters.get(stage.after or "")
            module = fit(stage, follow, folder / stage.name, seed, adapter, own if stage.anchored else None)
            adapters[stage.name] = module.folder / "adapter"
            assert follow.last is not None
            signatures |= module.scorer.signatures | follow.last.general_signatures
            if base is None:
                base = measure_base(module, battery)
                arms.append(arm_of("base", "Base", "The policy as shipped, never trained on the task.", base))
            arms.append(
                arm_of(
                    stage.name,
                    stage.label,
                    stage.trained_by,
                    follow.last,
                    seconds=time.monotonic() - started,
                    steps=stage.steps,
                    nll_drifts=drifts_of(follow.last, base),
                    trajectory=tuple(follow.trajectory),
                    curve=curve_of(module.folder / "metrics.csv"),
                    alarms=alarms_of(read_alarms(module.folder / ALARMS)),
                    adapters=(adapter_fingerprint(module.folder / "adapter"),),
                )
            )
    report = Report(
        lsemrl=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        task={"translation": "translation zh→bo", "headline": "Tibetan headlines"}[task],
        seed=seed,
        command=f"lsemrl demo --task {task} --seed {seed}",
        machine=machine(),
        versions=versions(),
        signatures=signatures,
        seconds=time.monotonic() - begun,
        arms=tuple(arms),
        general_name=battery.general_name,
    )
    page = write_report(report, folder)
    console.print(table(report))
    console.print(f"Report: {page}", markup=False, soft_wrap=True)
    return report


def _rehearsed(folder: Path, seed: int) -> Path:
    """What the base writes by itself, in a file."""
    own = folder / "own.jsonl"
    rehearse(output=own, rows=OWN_ROWS, max_prompt_tokens=96, max_new_tokens=48, top_k=0, seed=seed)
    return own


def fit(
    stage: Stage, follow: Follow, folder: Path, seed: int, adapter: Path | None, own: Path | None = None
) -> PolicyModule:
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

    def __init__(self, stage: Stage, battery: Battery, bar: Shown, title: str) -> None:
        self.stage, self.battery, self.bar, self.title = stage, battery, bar, title
        self.points = {round(stage.steps * point / POINTS) for point in range(POINTS)}
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
        self.last = measure(pl_module.policy, self.battery, pl_module.scorer, pl_module.greedy.max_new_tokens)
        self._keep(pl_module, self.last.target, self.last.general)

    def _score(self, module: PolicyModule) -> None:
        self.bar.say(f"{self.title}: measuring")
        target, general = scores(module.policy, self.battery, module.scorer, module.greedy.max_new_tokens)
        self._keep(module, target, general)

    def _keep(self, module: PolicyModule, target: dict[str, float], general: dict[str, float]) -> None:
        shown = {name: target[name] for name in ("meaning_f1", "meaning_exact", "chrf")}
        self.trajectory.append({"step": float(module.global_step), **shown, "em": general["em"]})
        self.bar.advance(_MEASURING)


def make_battery(task: Task) -> Battery:
    """The held-out rows of the embedded world that every arm is measured on."""
    target: Callable[..., Any] = TranslationData if task == "translation" else HeadlineData
    return read_battery(
        target(micro=MicroRows(train=1, validation=0, test=TARGET_ROWS)),
        ComprehensionData(micro=MicroRows(train=1, validation=0, test=GENERAL_ROWS)),
        PlainText(rows=TEXT_ROWS),
        AutoTokenizer.from_pretrained(micro.POLICY),
        target_rows=TARGET_ROWS,
        general_rows=GENERAL_ROWS,
        say=lambda line: None,  # of rows that are the same each time
    )


def measure_base(module: PolicyModule, battery: Battery) -> Measurement:
    """Measure the model that `module` trains, as it was published."""
    policy = Policy(PolicySettings(model=module.policy.settings.model))  # its new adapter changes nothing yet
    policy.load()
    return measure(policy, battery, module.scorer, module.greedy.max_new_tokens)
