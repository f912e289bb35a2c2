"""What lm-evaluation-harness is to ask: settings, which are read before what asks is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import UserError

CMRC = "cmrc2018"


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """What is asked, and how; the same for both models. Decoding is greedy and thinking is off."""

    tasks: list[str]
    """Names of the harness's tasks or groups (mmlu, cmmlu, ceval-valid, gsm8k, belebele_bod_Tibt), or our cmrc2018."""
    cmrc: str | None = None
    """For cmrc2018: its JSON file (nested as it was released, or flat JSONL), or "micro" for the embedded world's."""
    include: str | None = None
    """Folder with YAML files of further tasks, as the harness's own --include_path."""
    num_fewshot: dict[str, int] = field(default_factory=dict)
    """Task -> worked examples in its prompt; otherwise 5 for mmlu, cmmlu and ceval-valid, and the task's own number."""
    limit: int | None = None
    """Ask only the first so many questions of every task and of every task in a group; null asks all."""
    chat: bool | None = None
    """Use the tokenizer's chat template; null uses it where there is one."""
    batch_size: int = 8
    """Sequences in a forward pass."""
    device: str | None = None
    """Where the model runs (cpu, cuda, cuda:1); null takes a GPU where there is one."""
    seed: int = 1
    """Draws the worked examples where a task draws them."""

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.include is not None and not Path(self.include).is_dir():
            raise UserError(f"include is {self.include!r}, which is no folder; name one with YAML files of tasks")
        if not self.tasks:
            raise UserError("tasks is empty; name at least one, such as gsm8k or cmrc2018")
        if CMRC in self.tasks and self.cmrc is None:
            raise UserError(
                f"cmrc is null, but tasks has {CMRC}, which is read from a file of yours; name the JSON of CMRC 2018 "
                "(cmrc2018_dev.json), or micro for the embedded world's questions"
            )
        for name, count in self.num_fewshot.items():
            if name not in self.tasks:
                raise UserError(f"num_fewshot names {name!r}, which is not among tasks ({', '.join(self.tasks)})")
            if count < 0:
                raise UserError(f"num_fewshot.{name} is {count}; it must be 0 or more")


def check_policy(settings: PolicySettings) -> None:
    """Refuse a policy without an adapter, or with one that is not there.

    Raises:
        UserError: `settings` name none.
    """
    if settings.adapter is None:
        raise UserError(
            "policy.adapter is null, and before is compared with after by switching an adapter off and on; name the "
            "`adapter` folder that a run wrote"
        )
    settings.check_files()
