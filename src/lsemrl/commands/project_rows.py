"""What the user says of a project, and what there is to train on in its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lsemrl import micro
from lsemrl.commands.lengths import fitting, foretold, limits_of
from lsemrl.commands.readers import told_of_reading
from lsemrl.commands.task_rows import Task
from lsemrl.data.base import TaskData
from lsemrl.data.inspection import inspect_untranslated
from lsemrl.data.limits import UNLIMITED, Limits
from lsemrl.data.prepared import Prepared, prepare
from lsemrl.data.records import Record
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits, choose_part
from lsemrl.data.task import Plan, read_untranslated
from lsemrl.languages import usual_profile
from lsemrl.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEWEST = 40


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the user says of the project to be written."""

    path: str
    folder: str
    task: Task
    from_: str
    to: str
    model: str
    encoder: str
    general: str
    validation: str
    test: str
    untranslated: str

    @property
    def in_world(self) -> bool:
        """Whether the policy is the embedded one."""
        return self.model == micro.NAME


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the rows of a project come to.

    Attributes:
        prepared: As they are without limits.
        limits: Theirs.
        count: How many the cold start is to have.
        cold_start: How many it will train on.
        rl: How many RL will.
        foreseen: What `lsemrl fit` will say of them.
    """

    prepared: Prepared
    limits: Limits
    count: int
    cold_start: int
    rl: int
    foreseen: list[str]


def rows_of(
    project: Project,
    make: Callable[..., TaskData],
    splits: Splits,
    untranslated: Source | None,
    tokenizer: PreTrainedTokenizerBase,
    bound: int | None,
) -> Rows:
    """Read the rows as `lsemrl fit` will.

    Args:
        project: See there.
        make: Its data module, but for limits.
        splits: How its rows are divided.
        untranslated: Sentences that RL trains on, if there are any.
        tokenizer: Of its policy.
        bound: How many tokens that reads; None if without end.

    Raises:
        UserError: There are too few, or they cannot be read.
    """
    plan = make(limits=UNLIMITED).plan
    prepared = prepare(plan, tokenizer)
    keys = _keys(plan, prepared)
    if len(keys) < _FEWEST or not prepared.test:
        again, bad = len(keys) - len(set(keys)), prepared.report["train"]["bad_rows"]
        why = f", for {bad:,} cannot be used, as {str(plan.source.skipped)!r} says" if bad else ""
        raise UserError(
            f"{project.path!r} leaves {len(keys)} rows to train on ({again} of them another again) and "
            f"{len(prepared.test)} to test on{why}; give a file with more different rows"
        )
    limits = limits_of(prepared.lengths["train"], cut=project.task == "headline", bound=bound)
    foreseen = foretold(plan.task.name, prepared.lengths, prepared.report, limits)
    if not project.in_world or project.encoder not in ("", micro.NAME):  # the embedded ones stand in for others
        foreseen += told_of_reading(project.model, tokenizer, project.encoder, prepared.train)
    count = min(max(len(keys) // 4, 16), 2000)

    def kept(part: Literal["all", "cold_start", "rl"]) -> int:
        own = replace(splits, part=part, cold_start_count=count)
        chosen = choose_part(range(len(keys)), keys.__getitem__, own)
        return fitting((prepared.lengths["train"][at] for at in chosen), limits)

    if untranslated:
        cold_start = kept("all")
        rl, said = _sentences(project, untranslated, make, tokenizer, limits)
        foreseen += said
    else:
        cold_start, rl = kept("cold_start"), kept("rl")
    return Rows(prepared=prepared, limits=limits, count=count, cold_start=cold_start, rl=rl, foreseen=foreseen)


def _keys(plan: Plan, prepared: Prepared) -> list[str]:
    """What rows that are divided together have in common, of each to train on."""
    name = plan.task.inputs[0]
    rows = (Record(id=row.id, place="", inputs={name: row.source}, targets=row.references) for row in prepared.train)
    return [plan.task.key(row) for row in rows]


def _sentences(
    project: Project, source: Source, make: Callable[..., TaskData], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[int, list[str]]:
    """How many sentences without a translation RL will train on, and what `lsemrl fit` will say of them."""
    plan = make(limits=UNLIMITED, untranslated=source).plan
    for one in inspect_untranslated(read_untranslated(plan)[0], {}, plan.task, usual_profile(project.from_)):
        if one.level == "refused":
            raise UserError(f"--untranslated is {source.path!r}: {one.says}; give sentences in {project.from_}")
    prepared = prepare(plan, tokenizer)
    lengths = prepared.lengths["train"]
    said = foretold(plan.task.name, {"untranslated": lengths}, {"untranslated": prepared.report["train"]}, limits)
    count = fitting(lengths, limits)
    if count < _FEWEST:
        raise UserError(
            f"--untranslated is {source.path!r}, of which {count} can be used ({said[0]}); give {_FEWEST} or "
            "more, a sentence a line"
        )
    return count, said
