"""The report of an experiment: what every arm learned, what it lost, and what can be said from that.

Here are the records and their JSON; `findings` says what follows from them, `page`, `plots` and `write` show it.
Units of every record: scores are fractions, at most 1; NLL and KL are nats per token; lengths are characters; times
are seconds. A value that was not measured is absent, never 0; one that came out NaN or infinite is kept and shown as
such.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from lsemrl.evaluation.measurement import UNBOUNDED
from lsemrl.json_records import read_record, write_json
from lsemrl.report.contrasts import Contrast, HarnessScore, Judged, SameScore

VERSION = 2
"""Of the JSON; raised when a field changes its meaning. The first knew no general ability but Chinese QA."""
TARGET = (
    "meaning_f1", "meaning_exact", "chrf", "chrf_sentence", "chrf_pp", "chrf_pp_sentence", "bleu", "spbleu",
    "bleu_13a", "ter", "ter_sentence", "comet", "metricx", "rouge_l", "similarity", "similarity_reward",
    "hacking_gap", "language_rate", "copied", "ended_rate", "em", "f1", "average", "answer_length",
)  # fmt: skip
SCORES = {
    "meaning_f1": "meaning F1",
    "chrf_sentence": "chrF of sentences",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "em": "exact match",
    "language_rate": "language",
}
"""What gain may be measured in, the first that is there, and its name in sentences, columns and axes."""
GENERAL = (
    "em", "f1", "average", "contained", "accuracy", "accuracy_per_token", "chance", "chrf_sentence",
    "answer_length", "ended_rate", "leak", "asked_back", "nll",
)  # fmt: skip
KEPT = {"em": "exact match", "accuracy": "accuracy", "chrf_sentence": "chrF"}
"""The main score of each kind of general ability and its name in sentences; a loss is its drop."""
KL = ("target", "general", "text", "own")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One output of one arm.

    Attributes:
        source: What was asked.
        reference: The accepted output.
        output: What the arm said.
        rewards: Each reward part by name, unweighted.
    """

    source: str
    reference: str
    output: str
    rewards: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What training said was going wrong.

    Attributes:
        step: The rollout step, counted from 0.
        sentence: What, and what to do.
        samples: Completions of that step.
        seed: Of the run, where a report has several.
    """

    step: int
    sentence: str
    samples: tuple[Sample, ...]
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training, measured; where it was trained from several seeds, every number is the mean over them.

    Attributes:
        name: "base", "cold_start", "rl", "sft", "sft_replay" or another identifier; names files and colours.
        label: The name for people.
        trained_by: How it was trained, in one sentence.
        seconds: Training time.
        steps: Optimizer steps, the clock of `trajectory` too.
        target: Scores on the new task, keys among `TARGET`.
        general: Scores of general ability, keys among `GENERAL`; empty where none was measured.
        nll_drifts: Per question and seed, NLL of the gold answer minus the base's; empty for the base.
        kl: KL(arm || original base) on the new task ("target"), along gold answers of general ability ("general"), on
            plain text ("text") and along the arm's own outputs on the new task ("own").
        kl_from_base: KL(original base || arm), likewise.
        kl_rows: Per question and seed, KL(arm || original base) along the gold answer.
        weight_change: ||trained - base|| / ||base|| over the weights that were trained.
        harness: "task, metric" -> what lm-evaluation-harness found (see `harness`).
        judge_win: Share of rows that a judge gave it, RL against strong SFT; None for other arms.
        judged: The same, with what was judged; None in files that did not tell yet.
        adapters: Fingerprints of what was measured, where it was adapters.
        seeds: It was trained from; empty where only one run is known, and for the base.
        by_seed: In the order of `seeds`, the values behind a number: keys as in `Contrast.metric`.
        samples: Outputs on the same sources for every arm.
        curve: Per rollout step, any of rollout_step, reward, similarity (the rescaled reward part), language,
            meaning_f1 (the oracle's, of the same rollouts), kl and length; empty without RL.
        alarms: What RL said was going wrong.
        trajectory: Measured during training on the examples of the final evaluation, from before the first step on:
            step, meaning_f1 (or chrf without an oracle), meaning_exact, em.

    Raises:
        ValueError: A name is not an identifier, a key is unknown, a score is above 1, or a seed lacks a value.
    """

    name: str
    label: str
    trained_by: str
    seconds: float
    steps: int
    target: dict[str, float]
    general: dict[str, float]
    nll_drifts: tuple[float, ...] = ()
    kl: dict[str, float]
    kl_from_base: dict[str, float] = field(default_factory=dict)
    kl_rows: tuple[float, ...] = ()
    weight_change: float | None = None
    harness: dict[str, HarnessScore] = field(default_factory=dict)
    judge_win: float | None = None
    judged: Judged | None = None
    adapters: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    by_seed: dict[str, tuple[float, ...]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    curve: tuple[dict[str, float], ...] = ()
    alarms: tuple[Alarm, ...] = ()
    trajectory: tuple[dict[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"an arm's name must be an identifier, got {self.name!r}")
        for name, keys in (("target", TARGET), ("general", GENERAL), ("kl", KL), ("kl_from_base", KL)):
            for key, value in getattr(self, name).items():
                if key not in keys:
                    raise ValueError(f"{name} of arm {self.name!r} has no metric {key!r}, only {', '.join(keys)}")
                if name in ("target", "general") and key not in UNBOUNDED and 1 + 1e-6 < value < math.inf:
                    raise ValueError(f"{name}.{key} of arm {self.name!r} is a fraction, at most 1, got {value}")

        for key, values in self.by_seed.items():
            if len(values) != len(self.seeds):
                raise ValueError(
                    f"by_seed.{key} of arm {self.name!r} has {len(values)} values of {len(self.seeds)} seeds"
                )

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds; None for a single one."""
        values = self.by_seed.get(metric, ())
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """An experiment: its arms, and all that is needed to run it again.

    Attributes:
        version: Of this schema.
        lsemrl: The package's version.
        created: ISO 8601.
        task: For example "translation zh→bo".
        seed: Of the whole run; None where every arm has seeds of its own.
        command: What was typed.
        machine: Processor, cores, memory and the like; where arms differ, the base's and theirs.
        versions: Library -> version, likewise.
        signatures: Metric -> how it was computed.
        seconds: Of the whole run.
        arms: In the order to show; exactly one is named "base".
        contrasts: Differences between arms with their intervals; empty where single rows are not known.
        paper: Which of the paper's tables the arms stand beside: "translation", "headline", or "" for none.
        setup: What was measured: model, rows and the like.
        paths: Names of arms that are one way of training at rising strength, from the base on.
        same_scores: The first path beside each of the others.
        general_name: What general ability was measured, for people, such as "English QA"; files of the first version
            know no other than Chinese QA.
        text_name: The language of the plain text.
        unpaired: Arms that were to be held against each other, and share no seed.

    Raises:
        ValueError: Two arms share a name, or none is the base.
    """

    version: int = VERSION
    lsemrl: str
    created: str
    task: str
    seed: int | None
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    signatures: dict[str, str]
    seconds: float
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...] = ()
    paper: str = ""
    setup: dict[str, str] = field(default_factory=dict)
    paths: tuple[tuple[str, ...], ...] = ()
    same_scores: tuple[SameScore, ...] = ()
    general_name: str = "Chinese QA"
    text_name: str = "Chinese"
    unpaired: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or "base" not in names:
            raise ValueError(f"the arms of a report need distinct names, one of them 'base', got {names}")

    @property
    def base(self) -> Arm:
        """The policy before any training."""
        return next(arm for arm in self.arms if arm.name == "base")

    @property
    def trained(self) -> tuple[Arm, ...]:
        """Every other arm."""
        return tuple(arm for arm in self.arms if arm.name != "base")

    @property
    def score(self) -> str:
        """What gain is measured in: the first of `SCORES` that all arms have; of sentences only with intervals."""
        names = [name for name in SCORES if self.contrasts or name != "chrf_sentence"]
        return next((name for name in names if all(name in arm.target for arm in self.arms)), "chrf")

    @property
    def kept(self) -> str:
        """What loss is measured in, one of `KEPT`; "" where no general ability was measured."""
        return next((name for name in KEPT if any(name in arm.general for arm in self.arms)), "")

    @property
    def kept_name(self) -> str:
        """The same for people, with what was measured."""
        return f"{self.general_name} {KEPT[self.kept]}" if self.kept else ""

    @property
    def general_short(self) -> str:
        """`general_name` where there is no room for its language."""
        return "QA" if self.general_name.endswith(" QA") else self.general_name

    @property
    def seeds(self) -> str:
        """The seeds in words."""
        seeds = sorted({seed for arm in self.arms for seed in arm.seeds}) if self.seed is None else [self.seed]
        return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds)) or 'unknown'}"

    def contrast(self, of: str, against: str, metric: str) -> Contrast | None:
        """The contrast of two arms by their names; None if there is none."""
        return self._contrasts.get((of, against, metric))

    @cached_property
    def _contrasts(self) -> dict[tuple[str, str, str], Contrast]:
        return {(each.of, each.against, each.metric): each for each in self.contrasts}

    def to_json(self, path: Path) -> None:
        """Write as JSON.

        Raises:
            UserError: It cannot be written.
        """
        write_json(path, asdict(self))

    @classmethod
    def from_json(cls, path: Path) -> Report:
        """Read what `to_json` wrote; what is said of an arm that somebody has taken out goes with it.

        Raises:
            UserError: There is no such file, it holds something else, or its version is a later one.
        """
        whole = read_record(cls, path, VERSION, "give the report.json of a finished run")
        names = {arm.name for arm in whole.arms}
        paths = tuple(each for each in whole.paths if names.issuperset(each))
        ends = [each[-1] for each in paths] if whole.kept else []
        return replace(
            whole,
            contrasts=tuple(each for each in whole.contrasts if {each.of, each.against} <= names),
            unpaired=tuple(each for each in whole.unpaired if names.issuperset(each)),
            paths=paths,
            same_scores=tuple(each for each in whole.same_scores if [each.of] == ends[:1] and each.against in ends[1:]),
        )
