"""`lsemrl check`: what is in rows, what is wrong with them, and what training on them would take."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl import __version__
from lsemrl.commands.beside import aside
from lsemrl.commands.check_cost import Step, cost_lines
from lsemrl.commands.check_page import JSON, PAGE, Tokens, write
from lsemrl.commands.questions import SOURCE_LANGUAGE, answered
from lsemrl.commands.quiet import quiet
from lsemrl.commands.readers import encoder_by_name
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
from lsemrl.data.findings import Finding, reasons
from lsemrl.data.inspection import Inspection, inspect, inspect_special
from lsemrl.data.limits import UNLIMITED
from lsemrl.data.records import Record
from lsemrl.data.sources import Source
from lsemrl.data.survey import survey
from lsemrl.data.task import HELD_OUT, Plan, prepare, read_splits, read_untranslated
from lsemrl.files import is_free, make_folder, try_folder
from lsemrl.languages import Language, usual_profile
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.reading import read_lines
from lsemrl.types import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lsemrl.modules.cost import Cost
    from lsemrl.modules.legibility import Reading
    from lsemrl.rewards.encoder import EncoderUse

_SKIPPED = "skipped.jsonl"


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What models make of the texts.

    Attributes:
        readings: Of their tokenizers.
        findings: What they cannot do, or do in part.
        lengths: Of each training row in tokens of the policy: its prompt, its answer.
        cost: Of a step of the policy.
    """

    readings: Sequence[Reading] = ()
    findings: Sequence[Finding] = ()
    lengths: Sequence[tuple[int, int]] = ()
    cost: Cost | None = None


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
    from_ = answered(from_, "--from", SOURCE_LANGUAGE) if task == "translation" else from_ or ""
    to = answered(to, "--to", "the language that is to be learned, such as bo")
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
    plan = CLASSES[task](**sources, splits=splits, limits=UNLIMITED, **fields_of(task, columns)).plan
    records, bad = read_splits(plan)
    sentences: list[Record] = []
    if untranslated:
        own = untranslated_of(untranslated, from_, columns[from_][0].name)
        plan = replace(plan, untranslated=replace(own, skipped_path=str(output / f"untranslated.{_SKIPPED}")))
        sentences, _ = read_untranslated(plan)
    profiles = _profiles(columns, from_, to, identifier)
    with aside(partial(inspect, records, plan.task, profiles, sentences)) as inspecting:  # while libraries load
        read = _read_by(policy, encoder, plan, (records, bad), sentences, step)
        inspected = inspecting()
    bad_rows = _bad([plan.source, plan.validation, plan.test, plan.untranslated])
    left = unread(found, columns)
    findings = [*_unheld(records), *bad_rows, *inspected.findings]
    findings += [*([Finding(level="note", says=left)] if left else []), *read.findings]
    order = ("refused", "warning", "note")
    findings.sort(key=lambda one: order.index(one.level))
    inspected = replace(inspected, findings=tuple(findings))
    facts = {
        "data": data,
        "task": plan.task.name,
        "lsemrl": __version__,
        "policy": policy.model if policy else None,
    }
    tokens = [_tokens(one) for one in read.readings if one.what != "wording"]
    costs = cost_lines(read.cost, step) if read.cost else []
    write(output, inspected, tokens, read.lengths, costs, facts, _costs(read.cost))
    for line in (*_lines(inspected, tokens), *(f"estimate: {line}" for line in costs)):
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


def _unheld(records: Mapping[str, Sequence[Record]]) -> list[Finding]:
    """What has no row to measure by."""
    says = "no row is held out for {0}; give more rows, or a file of its own (--{0})"
    return [Finding(level="warning", says=says.format(split)) for split in HELD_OUT if not records[split]]


def _bad(sources: Sequence[Source | None]) -> list[Finding]:
    """What could not be read, by its reasons."""
    found = []
    for source in sources:
        if source is None or not source.skipped.exists():
            continue
        bad = [json.loads(line)["reason"] for line in read_lines(source.skipped) if line.strip()]
        if bad:
            says = f"{len(bad):,} rows of {source.path} cannot be used and are listed in {source.skipped.name}: "
            found.append(Finding(level="warning", says=says + "; ".join(reasons(bad)[:3])))
    return found


def _read_by(
    policy: PolicySettings | None,
    encoder: str | None,
    plan: Plan,
    read: tuple[dict[str, list[Record]], dict[str, int]],
    sentences: Sequence[Record],
    step: Step,
) -> _Read:
    """What tokenizers make of the texts, and what a step takes."""
    if policy is None and encoder is None:
        return _Read()
    quiet()
    encoders = encoder_by_name(encoder, of_sources=plan.untranslated is not None) if encoder is not None else {}
    if policy is None:
        return _read_by_encoder(encoders, plan, read[0], sentences)
    from lsemrl.modules.cost import step_cost
    from lsemrl.modules.legibility import MOST, look
    from lsemrl.modules.pretrained import read_config_and_tokenizer

    config, tokenizer = read_config_and_tokenizer(policy.path, trust=policy.trust_remote_code)
    prepared = pairs = prepare(replace(plan, untranslated=None), tokenizer, read=read)
    if plan.untranslated:  # what is held out is prepared already
        unheld = {name: [] if name in HELD_OUT else own for name, own in read[0].items()}
        prepared = prepare(plan, tokenizer, pairs.held_out, read=(unheld, read[1]))
    every = [*prepared.train, *([] if pairs is prepared else pairs.train), *pairs.validation, *pairs.test]
    seen = look(policy.model, tokenizer, every, encoders, learned=True)
    findings = [Finding(level="refused", says=sentence) for sentence in seen.refusals]
    warned = [line.removeprefix("warning: ") for line in seen.lines if line.startswith("warning: ")]
    lost = {reading.lost(MOST) for reading in seen.readings}
    findings += [Finding(level="warning", says=line) for line in warned if line not in lost]
    if seen.spelled:
        findings.append(Finding(level="note", says=seen.spelled))
    prompts = [prompt for prompt, _ in prepared.lengths["train"]]
    # Answers to sentences without a translation are as long as those of the pairs.
    known = [answer for _, answer in pairs.lengths["train"]]
    lengths = list(zip(prompts, cycle(known), strict=False))
    findings += inspect_special([*chain(*read[0].values()), *sentences], plan.task, tokenizer, prepared.shown)
    findings += _fits(policy.model, config, [prompt + answer for prompt, answer in lengths])
    size, generations = step.batch_size, step.num_generations
    cost = step_cost(policy, config, prompts, known, batch_size=size, generations=generations)
    return _Read(readings=seen.readings, findings=findings, lengths=lengths, cost=cost)


def _read_by_encoder(
    encoders: Mapping[str, EncoderUse],
    plan: Plan,
    records: Mapping[str, Sequence[Record]],
    sentences: Sequence[Record],
) -> _Read:
    """What the tokenizer of an encoder makes of the texts, where no policy is named."""
    from lsemrl.data.carried import spaced
    from lsemrl.modules.legibility import SOME, read_by_encoder

    texts = {"references": [record.targets[0] for own in records.values() for record in own]}
    if sentences:
        texts["sources"] = [record.inputs[plan.task.inputs[0]] for record in sentences]
    readings, findings = [], []
    for (name, use), (what, own) in product(encoders.items(), texts.items()):
        if reading := read_by_encoder(name, use.encoder, spaced(list(dict.fromkeys(own))), what):
            readings.append(reading)
            if says := reading.refusal:
                findings.append(Finding(level="refused", says=says))
            elif says := reading.lost(SOME):
                findings.append(Finding(level="warning", says=says))
    return _Read(readings=readings, findings=findings)


def _tokens(one: Reading) -> Tokens:
    has = one.carried
    return Tokens(by=one.by, what=one.what, per_unit=has.tokens_per_unit, unit=has.unit, unknown=has.unknown)


def _fits(model: str, config: PretrainedConfig, lengths: Sequence[int]) -> list[Finding]:
    from lsemrl.modules.families import reach

    bound = reach(config)
    over = sum(bound is not None and length > bound.sure for length in lengths)
    if not over:
        of = bound or "positions without end"
        return [Finding(level="note", says=f"the longest row comes to {max(lengths):,} tokens of {of}")]
    refused = sum(bound is not None and length > bound.most for length in lengths) > len(lengths) / 2
    says = (
        f"{over:,} of {len(lengths):,} training rows are longer than the {bound} of policy.model {model!r} "
        f"(the longest {max(lengths):,} tokens); lower limits.max_prompt_tokens, so that they are left out or cut"
    )
    return [Finding(level="refused" if refused else "warning", says=says)]


def _costs(cost: Cost | None) -> dict[str, Any] | None:
    return asdict(cost) | {"memory_bytes": cost.memory.total} if cost else None


def _lines(found: Inspection, tokens: Sequence[Tokens]) -> list[str]:
    """The same for a terminal."""
    lines = [", ".join(f"{count:,} {name}" for name, count in found.rows.items()) + " rows"]
    for side in found.sides:
        scripts = ", ".join(f"{share:.1%} {name}" for name, share in list(side.scripts.items())[:3])
        lines.append(f"{side.field}: {side.units:.1f} {side.unit}s on average; letters {scripts or 'none'}")
    lines += [
        f"{one.by}: {one.what} {one.per_unit:.2f} tokens per {one.unit}, {one.unknown:.1%} unknown" for one in tokens
    ]
    for finding in found.findings:
        first = f" (such as {finding.rows[0].place})" if finding.rows else ""
        lines.append(f"{finding.level}: {finding.says}{first}")
    return lines
