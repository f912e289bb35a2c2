"""`lsemrl check`: what is in rows, what is wrong with them, and what training on them would take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lsemrl import __version__
from lsemrl.commands.beside import aside
from lsemrl.commands.check_cost import Step, cost_lines
from lsemrl.commands.check_page import JSON, PAGE, write
from lsemrl.commands.check_readings import Read, read_by
from lsemrl.commands.questions import languages
from lsemrl.commands.task_rows import (
    CLASSES,
    Columns,
    Task,
    check_untranslated,
    columns_of_task,
    fields_of,
    held_out_of,
    sources_of,
    task_of,
    unread,
    untranslated_of,
)
from lsemrl.commands.wordings import asked_for, unknown_of
from lsemrl.data.findings import Finding, reasons
from lsemrl.data.inspection import Inspection, inspect
from lsemrl.data.limits import UNLIMITED
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.records import Record
from lsemrl.data.sources import Source
from lsemrl.data.survey import survey
from lsemrl.data.task import HELD_OUT, read_splits, read_untranslated
from lsemrl.files import is_free, make_folder, try_folder
from lsemrl.languages import Language, usual_profile
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.reading import read_lines
from lsemrl.types import UserError

_SKIPPED = "skipped.jsonl"


def check(
    data: str,
    *,
    to: str | None = None,
    from_: str | None = None,
    task: Task | None = None,
    output: Path = Path("check"),
    policy: PolicySettings | None = None,
    encoder: str | None = None,
    identifier: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    untranslated: str | None = None,
    step: Step = Step(),
) -> None:
    """Look at rows before anything is trained on them, and write check.html and check.json.

    Args:
        data: Rows, as `data.source.path` of `lsemrl fit` names them.
        to: The language that is to be learned.
        from_: The language that is translated from.
        task: What is learned; by default told by the names of the columns.
        output: Folder to write to.
        policy: What would be trained: how it reads the texts, how long they are, and what a step takes. Its weights are
            not read.
        encoder: What would reward: a SentenceTransformer folder, a hub id, or "micro".
        identifier: What tells the language from those in its script (see `lsemrl fit-language`).
        source_column: The column of what is asked; by default told by its name or its letters.
        target_column: The column of the answers, likewise.
        validation: Rows for validation, with the columns of the data; by default a share of them.
        test: Rows for the test, likewise.
        untranslated: Sentences of the source language that nobody has translated, for RL: a text file, or rows.
        step: What a step of RL is taken to be.

    Raises:
        UserError: The rows cannot be read; or something was found that cannot work, which check.html shows.
    """
    begun = time.monotonic()
    source = Source(path=data, on_bad_row="skip")
    found = survey(source, (source_column or from_, target_column or to), (source_column, target_column))
    task = task_of(found, task, from_)
    check_untranslated(untranslated, task)
    from_, to = languages(from_, to, translates=task == "translation")
    if not is_free(output, _written(output)):
        raise UserError(f"--output is {str(output)!r}, which holds something else; name a new folder")
    columns = columns_of_task(found, task, from_, to, source_column, target_column)
    try_folder(output.parent, "--output")
    make_folder(output, "--output")
    for listed in output.glob(f"*{_SKIPPED}"):  # of another time
        listed.unlink()
    sources = {
        name: replace(own, skipped_path=str(output / f"{'train' if name == 'source' else name}.{_SKIPPED}"))
        for name, own in sources_of(found, columns, data, validation, test).items()
    }
    # As `init` would name them, but that nothing is left out for its length, nor listed beside the data.
    splits = held_out_of(found.rows, validation, test)
    template = PromptTemplate(template=asked_for(task, from_, to) or None)
    fields = fields_of(task, columns)
    plan = CLASSES[task](**sources, splits=splits, limits=UNLIMITED, template=template, **fields).plan
    records, bad = read_splits(plan)
    sentences: list[Record] = []
    if untranslated:
        own = untranslated_of(untranslated, from_, columns[from_][0].name)
        plan = replace(plan, untranslated=replace(own, skipped_path=str(output / f"untranslated.{_SKIPPED}")))
        sentences, _ = read_untranslated(plan)
    profiles = _profiles(columns, from_, to, identifier)
    with aside(partial(inspect, records, plan.task, profiles, sentences)) as inspecting:  # while libraries load
        read = read_by(policy, encoder, plan, (records, bad), sentences, step)
        inspected = inspecting()
    bad_rows = _bad([plan.source, plan.validation, plan.test, plan.untranslated])
    left = unread(found, columns)
    unknown = [Finding(level="warning", says=one) for one in unknown_of(from_, to)]
    findings = [*unknown, *_lacking(records, sentences), *bad_rows, *inspected.findings]
    findings += [*([Finding(level="note", says=left)] if left else []), *read.findings]
    order = ("refused", "warning", "note")
    findings.sort(key=lambda one: order.index(one.level))
    inspected = replace(inspected, findings=tuple(findings))
    facts = {"data": data, "task": plan.task.name, "lsemrl": __version__, "policy": policy.model if policy else None}
    costs = cost_lines(read.cost, step) if read.cost else []
    write(output, inspected, read, costs, facts)
    for line in (*_lines(inspected, read), *(f"estimate: {line}" for line in costs)):
        print(line)
    print(f"looked at in {time.monotonic() - begun:.0f} s: {output / PAGE}, {output / JSON}")
    refused = [one.says for one in findings if one.level == "refused"]
    if refused:
        raise UserError(f"{refused[0]}; {output / PAGE} shows which")


def _written(folder: Path) -> set[str]:
    return {PAGE, JSON, *(path.name for path in folder.glob(f"*{_SKIPPED}"))}


def _profiles(columns: Columns, from_: str, to: str, identifier: str | None) -> dict[str, Language | None]:
    """What is known of the languages of both fields."""
    target = usual_profile(to)
    if target and identifier:
        target = Language(code=to, identifier=identifier)
    return dict(zip(columns, (usual_profile(from_), target), strict=True))


def _lacking(records: Mapping[str, Sequence[Record]], sentences: Sequence[Record]) -> list[Finding]:
    """What has no row to learn from, or to measure by."""
    says = "no row is held out for {0}; give more rows, or a file of its own (--{0})"
    found = [Finding(level="warning", says=says.format(split)) for split in HELD_OUT if not records[split]]
    if not (records["train"] or sentences):
        found.append(Finding(level="refused", says="no row is left to train on, as all are held out; give more rows"))
    return found


def _bad(sources: Sequence[Source | None]) -> list[Finding]:
    """What could not be read, by its reasons."""
    found = []
    for source in sources:
        if source is None or not source.skipped.exists():
            continue
        bad = [json.loads(line)["reason"] for line in read_lines(source.skipped) if line.strip()]
        if bad:
            says = f"{len(bad):,} rows of {source.path} cannot be used and are listed in {source.skipped}: "
            found.append(Finding(level="warning", says=says + "; ".join(reasons(bad)[:3])))
    return found


def _lines(found: Inspection, read: Read) -> list[str]:
    """The same for a terminal."""
    lines = [", ".join(f"{count:,} {name}" for name, count in found.rows.items()) + " rows"]
    for side in found.sides:
        scripts = ", ".join(f"{share:.1%} {name}" for name, share in list(side.scripts.items())[:3])
        lines.append(f"{side.field}: {side.units:.1f} {side.unit}s on average; letters {scripts or 'none'}")
    lines += [f"{one.by}: {one.figures}" for one in read.readings]
    for finding in found.findings:
        first = f" (such as {finding.rows[0].place})" if finding.rows else ""
        lines.append(f"{finding.level}: {finding.says}{first}")
    return lines
