"""The report of an experiment: what every arm learned, what it lost, and what can be said from that.

Here are the records and their JSON; `findings` says what follows from them, `page` and `plots` show it.
Units of every record: scores are fractions, at most 1; NLL and KL are nats per token; lengths are characters; times
are seconds. A value that was not measured is absent, never 0; one that came out NaN or infinite is kept and shown as
such.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

VERSION = 1
"""Of the JSON; raised when a field changes its meaning."""
TARGET = ("meaning_f1", "meaning_exact", "chrf", "bleu", "rouge_l", "similarity", "language_rate", "ended_rate")
GENERAL = ("em", "f1", "average", "answer_length", "nll")
KL = ("target", "general", "text")
_UNBOUNDED = ("answer_length", "nll")


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
class Arm:
    """One way of training, measured.

    Attributes:
        name: "base", "cold_start", "rl", "sft", "sft_replay" or another identifier; names files and colours.
        label: The name for people.
        trained_by: How it was trained, in one sentence.
        seconds: Training time.
        steps: Optimizer steps, the clock of `trajectory` too.
        target: Scores on the new task, keys among `TARGET`.
        general: Scores on Chinese reading comprehension, keys among `GENERAL`.
        nll_drifts: Per question, NLL of the gold answer minus the base's; empty for the base.
        kl: KL(arm || original base) on the new task ("target"), on reading comprehension ("general") and on Chinese
            text ("text").
        samples: Outputs on the same sources for every arm.
        curve: Per rollout step, any of rollout_step, reward, similarity (the rescaled reward part), language,
            meaning_f1 (the oracle's, of the same rollouts), kl and length; empty without RL.
        trajectory: Measured during training on the examples of the final evaluation, from before the first step on:
            step, meaning_f1 (or chrf without an oracle), meaning_exact, em.

    Raises:
        ValueError: A name is not an identifier, a key is unknown, or a score is above 1.
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
    samples: tuple[Sample, ...] = ()
    curve: tuple[dict[str, float], ...] = ()
    trajectory: tuple[dict[str, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"an arm's name must be an identifier, got {self.name!r}")
        for field, keys in (("target", TARGET), ("general", GENERAL), ("kl", KL)):
            for key, value in getattr(self, field).items():
                if key not in keys:
                    raise ValueError(f"{field} of arm {self.name!r} has no metric {key!r}, only {', '.join(keys)}")
                if field != "kl" and key not in _UNBOUNDED and 1 + 1e-6 < value < math.inf:
                    raise ValueError(f"{field}.{key} of arm {self.name!r} is a fraction, at most 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """An experiment: its arms, and all that is needed to run it again.

    Attributes:
        version: Of this schema.
        lsemrl: The package's version.
        created: ISO 8601.
        task: For example "translation zh→bo".
        seed: Of the whole run.
        command: What was typed.
        machine: Processor, cores, memory and the like.
        versions: Library -> version.
        signatures: Metric -> how it was computed.
        seconds: Of the whole run.
        arms: In the order to show; exactly one is named "base".

    Raises:
        ValueError: Two arms share a name, or none is the base.
    """

    version: int = VERSION
    lsemrl: str
    created: str
    task: str
    seed: int
    command: str
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    signatures: dict[str, str]
    seconds: float
    arms: tuple[Arm, ...]

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
        """The metric that gain is measured in: the oracle's where every arm has it, else chrF."""
        return "meaning_f1" if all("meaning_f1" in arm.target for arm in self.arms) else "chrf"

    def to_json(self, path: Path) -> None:
        """Write as JSON; NaN and infinities, which JSON has no numbers for, become strings."""
        text = json.dumps(_finite(asdict(self)), ensure_ascii=False, indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: Path) -> Report:
        """Read what `to_json` wrote.

        Raises:
            UserError: There is no such file, it holds something else, or its version is a later one.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if int(data["version"]) <= VERSION:
                return cls(**data | {"seconds": float(data["seconds"]), "arms": tuple(map(_arm, data["arms"]))})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}): give the report.json of a finished run") from error
        raise UserError(f"{path} is of version {data['version']}, this lsemrl reads up to {VERSION}: update lsemrl")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _arm(data: dict[str, Any]) -> Arm:
    def floats(values: Mapping[str, Any]) -> dict[str, float]:
        return {key: float(value) for key, value in values.items()}

    return Arm(
        **data
        | {key: floats(data[key]) for key in ("target", "general", "kl")}
        | {key: tuple(map(floats, data[key])) for key in ("curve", "trajectory")}
        | {
            "seconds": float(data["seconds"]),
            "nll_drifts": tuple(map(float, data["nll_drifts"])),
            "samples": tuple(Sample(**sample | {"rewards": floats(sample["rewards"])}) for sample in data["samples"]),
        }
    )


def write_report(report: Report, folder: Path) -> Path:
    """Write report.json, report.md, report.html and the plots as PNG.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        UserError: `folder` cannot be written.
    """
    from lsemrl.evaluation import page, plots  # matplotlib and jinja2 take a second to import

    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.to_json(folder / "report.json")
        figures = plots.draw(report)
        (folder / "report.md").write_text(page.markdown(report, list(figures)), encoding="utf-8")
        for name, figure in figures.items():
            (folder / f"{name}.png").write_bytes(plots.png(figure))
        images = {name: plots.svg(figure) for name, figure in figures.items()}
        (folder / "report.html").write_text(page.html(report, images), encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report folder {folder} cannot be written ({error.strerror}): name another") from error
    return folder / "report.html"


def table(report: Report) -> Table:
    """The most telling columns for a terminal of 110 characters."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lsemrl.evaluation.columns import SUMMARY, grid
    from lsemrl.evaluation.findings import comparisons, finding

    columns, rows = grid(report, SUMMARY)
    shown = Table(
        title=Text(finding(report), style="bold"),
        title_justify="left",
        caption=Text("\n".join(comparisons(report))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("arm", no_wrap=True)
    for column in columns:
        # In a narrow terminal a heading may break; a number never.
        shown.add_column(column.head, justify="right", overflow="fold", min_width=5)
    for arm, cells in rows:
        shown.add_row(Text(arm.label), *(Text(cell.text, style="bold" if cell.best else "") for cell in cells))
    return shown
