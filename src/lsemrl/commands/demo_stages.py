"""The arms of `lsemrl demo`, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["translation", "headline"]


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
