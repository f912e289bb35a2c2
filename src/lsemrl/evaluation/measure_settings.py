"""What is measured: settings, which are read before what measures is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lsemrl.data.base import TaskData
from lsemrl.data.text import PlainText
from lsemrl.devices import computing_device
from lsemrl.evaluation.measurement import BASE
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import Sampling, greedy
from lsemrl.types import UserError


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """Which policy is measured, on what, and under which name."""

    arm: str = BASE
    """Name of the arm in reports, such as rl: letters, digits and underscores. The original model is `base`."""
    label: str = ""
    """The arm's name for people; empty takes the usual one, or `arm`."""
    trained_by: str = ""
    """How the arm was trained, in one sentence."""
    seed: int = 1
    """The seed that the arm was trained with; arms of one name and several seeds are averaged. Nothing here draws from
    it."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """The policy; with `adapter`, the arm that wrote it. After full fine-tuning, `train: full` and the folder as
    `model`."""
    base: str | None = None
    """After full fine-tuning: the original model, a folder or hub id. With LoRA it is `policy.model` itself."""
    target: TaskData
    """The new task; its test rows are measured."""
    general: TaskData | None = None
    """What the base can do and might forget: reading comprehension (ComprehensionData), multiple choice (ChoiceData) or
    instructions with references (InstructionData) in a language it knows. Its test rows are measured; null measures the
    gain only."""
    general_label: str = ""
    """What reports call that; empty names it by what it is, such as English QA."""
    text: PlainText | None = field(default_factory=PlainText)
    """Plain text in that language, to measure divergence along; null leaves it out."""
    metrics: MetricSettings = field(default_factory=MetricSettings)
    """What is measured on the new task."""
    threshold: float = 0.0
    """Tau of the similarity reward, which is shown beside the oracle's meaning where there are both."""
    target_rows: int = 200
    """Test rows of the new task, at even distances over a file, whose first may be hard ones; fewer where there are
    fewer."""
    general_rows: int = 200
    """Questions, likewise."""
    divergence_rows: int | None = None
    """Of the rows of the new task, how many divergence is measured along; null takes all. Along a
    whole test set it may take longer than the outputs, and tells no more than along some hundred rows."""
    max_new_tokens: int = 64
    """Length limit of an output."""
    num_beams: int = 1
    """Beams of a beam search, by which published systems are mostly measured; 1 is greedy. A batch is then
    answered in as many parts, so that as many rows are in memory as without; it takes about as many times as long."""
    guarded: bool = False
    """With beams, take the likeliest answer that is no copy of its source, no loop and not broken, by the guards of
    `lsemrl.rewards` without references, where one of those that are found is none; else the likeliest."""
    batch_size: int = 64
    """Rows in a batch: speed, memory, and which outputs are drawn for the divergence along the policy's own."""
    device: str | None = None
    """Such as cpu or cuda:1; null takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.device is not None:
            computing_device(self.device)
        if not self.arm.isidentifier():
            raise UserError(f"arm is {self.arm!r}; name it by letters, digits and underscores, such as rl")
        trained = self.policy.adapter is not None or self.base is not None
        if trained and self.arm == BASE:
            raise UserError(
                f"arm is {BASE!r}, but policy.adapter or base is set, so that a trained policy would be measured; "
                "give the arm another name, or set both to null"
            )
        if not trained and self.arm != BASE:
            raise UserError(
                f"arm is {self.arm!r}, but policy.adapter and base are null, so that the original model would be "
                f"measured; set policy.adapter (after full fine-tuning: base), or name the arm {BASE!r}"
            )
        if self.base is not None and self.policy.train != "full":
            raise UserError(f"base is {self.base!r}, but policy.train is lora; leave base out, or set train to full")
        if not -1 <= self.threshold < 1:
            raise UserError(f"threshold (tau) is {self.threshold}; set it in [-1, 1)")
        for name in ("target_rows", "general_rows", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.divergence_rows is not None and self.divergence_rows < 1:
            raise UserError(f"divergence_rows is {self.divergence_rows}; give 1 or more, or null for all")
        if self.guarded and self.num_beams == 1:
            raise UserError("guarded is true, but num_beams is 1, which finds one answer; raise it to 4, say")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How the policy answers.

        Raises:
            UserError: A setting is out of range.
        """
        answers = max(self.num_beams, 1) if self.guarded else 1  # of no beams `Sampling` tells
        return replace(greedy(self.max_new_tokens), num_beams=self.num_beams, num_generations=answers)

    def check_files(self) -> None:
        """Refuse rows and an adapter that are not there, without reading those that are.

        Raises:
            UserError: The first.
        """
        self.policy.check_files()
        for data in (self.target, self.general):
            if data is not None:
                data.check_files()
