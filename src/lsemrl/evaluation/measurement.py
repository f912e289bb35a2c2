"""One arm of one seed, measured: the record that `lsemrl measure` writes and `lsemrl tax` reads.

It holds every row's scores, for intervals, and what must be equal for two arms to be compared: a hash of the rows, the
conditions, the definition of every metric and the base model. Units are those of `report.records`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lsemrl.errors import UserError
from lsemrl.json_records import UNREADABLE, read_record, write_json
from lsemrl.modules.alarm_log import Told
from lsemrl.reading import read_json

if TYPE_CHECKING:
    from lsemrl.types import Completion, Example

FILE = "measurement.json"
BATCHES = "batches.jsonl"
"""What a policy answered and how likely texts were to it, batch by batch, from which a measurement is scored."""
BASE = "base"
"""The arm that was never trained."""
VERSION = 2
"""Of the JSON; raised when a field changes its meaning. The first knew no general ability but Chinese QA."""
UNBOUNDED = ("answer_length", "nll", "ter", "ter_sentence", "comet", "metricx")
"""The scores that are no fractions."""
_LIBRARIES = ("torch", "transformers", "peft", "lightning", "sentence-transformers", "sacrebleu")


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the policy said to one row."""

    id: str
    source: str
    references: tuple[str, ...]
    output: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows were measured.

    Attributes:
        count: How many.
        sha256: Of their prompts, references and choices in order.
    """

    count: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far two policies are apart along N texts, in nats per token.

    Attributes:
        to_base: KL(policy || base), over the tokens of all texts.
        from_base: KL(base || policy), likewise.
        to_base_rows: KL(policy || base) of each text.
        from_base_rows: KL(base || policy) of each text.
    """

    to_base: float
    from_base: float
    to_base_rows: tuple[float, ...]
    from_base_rows: tuple[float, ...]

    @classmethod
    def none(cls, texts: int) -> Divergence:
        """That of a policy from itself, along so many texts."""
        return cls(to_base=0.0, from_base=0.0, to_base_rows=(0.0,) * texts, from_base_rows=(0.0,) * texts)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One arm of one seed, measured.

    Attributes:
        version: Of this schema.
        lsemrl: The package's version.
        created: ISO 8601.
        arm: "base" for the original model, otherwise an identifier such as "rl".
        label: The arm's name for people.
        trained_by: How it was trained, in one sentence.
        seed: Of its training.
        task: Of the data, for example "zh-bo" or "headline".
        policy: Model, what was trained, adapter, and its scale where that is not 1.
        base: The name of the original model.
        base_fingerprint: Tells it from others.
        adapter_fingerprint: Tells the adapter that was measured from others; empty without one.
        policy_fingerprint: Tells the weights that full fine-tuning left from others; empty without it, and where it was
            not told yet.
        data: "target" and, where they were measured, "general" and "text": the rows.
        conditions: What else the numbers depend on, such as max_new_tokens.
        signatures: Metric -> how it was computed.
        machine: Processor, cores and the like.
        versions: Library -> version.
        seconds: The measuring took.
        target: Corpus scores on the new task.
        general: Corpus scores of general ability; empty where none was measured, as is what else is of it.
        target_rows: Scores of each row of the new task, where a score has such values.
        general_rows: Scores of each question, where a score has such values; nll too.
        divergence: Along "target", "general", "text" and "own" (see `tax.Measurement`).
        weight_change: ||trained - base|| / ||base|| over the weights that were trained.
        outputs: Greedy outputs on the new task.
        answers: Greedy answers to the questions.
        general_name: What general ability is, for people, such as "English QA".
        text_name: The language of the plain text.
        target_counts: What each row of the new task adds to a corpus score that is made of sums, such as matches and
            lengths of BLEU; an interval of that score is drawn from them.
        alarms: What RL said was going wrong while it trained the adapter.
        asked: A hash of what else decides all this: the metrics, tau, the names, and how the policy reads and ends
            texts; empty where it was not told yet.
    """

    version: int = VERSION
    lsemrl: str
    created: str
    arm: str
    label: str
    trained_by: str
    seed: int
    task: str
    policy: dict[str, str | float | None]
    base: str
    base_fingerprint: str
    data: dict[str, Rows]
    conditions: dict[str, float | str]
    signatures: dict[str, str]
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    seconds: float
    target: dict[str, float]
    general: dict[str, float]
    target_rows: dict[str, tuple[float, ...]]
    general_rows: dict[str, tuple[float, ...]]
    divergence: dict[str, Divergence]
    weight_change: float
    outputs: tuple[Output, ...]
    answers: tuple[Output, ...]
    adapter_fingerprint: str = ""
    policy_fingerprint: str = ""
    general_name: str = "Chinese QA"
    text_name: str = "Chinese"
    target_counts: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    alarms: tuple[Told, ...] = ()
    asked: str = ""

    def __post_init__(self) -> None:
        if not self.arm.isidentifier() or "adapter" not in self.policy:
            raise ValueError(f"arm is {self.arm!r}, policy is {self.policy}")
        for part, scores in (("target", self.target), ("general", self.general)):
            for name, value in scores.items():
                if name not in UNBOUNDED and 1 + 1e-6 < value < math.inf:
                    raise ValueError(f"{part}.{name} is {value}, and no fraction")
        for part, kind in (("target", "rows"), ("target", "counts"), ("general", "rows")):
            for name, values in getattr(self, f"{part}_{kind}").items():
                if len(values) != self.data[part].count:
                    raise ValueError(f"{part}_{kind}.{name} has {len(values)} rows of {self.data[part].count}")
        for name, counts in self.target_counts.items():
            if len(set(map(len, counts))) != 1:
                raise ValueError(f"target_counts.{name} has rows of several lengths")
        if len(self.outputs) > self.data["target"].count:
            raise ValueError(f"outputs are {len(self.outputs)} of {self.data['target'].count} target rows")
        along = {*self.data, "own"}
        if not all(name in self.divergence and self.divergence[name].to_base_rows for name in along):
            raise ValueError(f"it lacks rows of divergence along one of {', '.join(sorted(along))}")
        if bool(self.general) != ("general" in self.data):
            raise ValueError(f"general is {self.general}, its rows are {self.data.get('general')}")
        if not all(output.references for output in self.outputs):
            raise ValueError("it lacks references")

    def write(self, folder: Path) -> Path:
        """Write measurement.json; returns its path.

        Raises:
            UserError: It cannot be written.
        """
        write_json(folder / FILE, asdict(self))
        return folder / FILE

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read what `write` wrote.

        Raises:
            UserError: There is no such file, it holds something else, or its version is a later one.
        """
        return read_record(cls, path, VERSION, "measure again with lsemrl measure")


def check_own(folder: Path, arm: str, seed: int) -> None:
    """Refuse a folder in which another measurement lies, which would be lost; one that cannot be read is no loss.

    Raises:
        UserError: There is one, of another arm or seed.
    """
    try:
        there = read_json(folder / FILE)
        its_arm, its_seed = there["arm"], there["seed"]
    except UNREADABLE:
        return
    if (its_arm, its_seed) != (arm, seed):
        whose = repr(its_arm) if its_arm != arm else f"{its_arm!r}, seed {its_seed}"
        raise UserError(f"--output is {str(folder)!r}, which holds the measurement of {whose}; name another folder")


def hash_rows(examples: Sequence[Example]) -> Rows:
    """What tells these rows from others, wherever they were read from."""
    rows = [
        [example.prompt, *example.references, *([example.choices] if example.choices else [])] for example in examples
    ]
    text = json.dumps(rows, ensure_ascii=False)
    return Rows(count=len(examples), sha256=hashlib.sha256(text.encode()).hexdigest())


def outputs(completions: Iterable[Completion]) -> tuple[Output, ...]:
    """Completions as they are written."""
    return tuple(
        Output(
            id=completion.example.id,
            source=completion.example.source,
            references=completion.example.references,
            output=completion.text,
        )
        for completion in completions
    )


def timestamp() -> str:
    """Of now, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str | int | float]:
    """What this runs on."""
    import torch

    found: dict[str, str | int | float] = {
        "system": platform.platform(),
        "cores": os.cpu_count() or 0,
        "torch threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """The libraries that numbers depend on."""
    return {name: version(name) for name in _LIBRARIES}
