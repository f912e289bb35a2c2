"""Looks into a file of rows and writes a project for them: rehearsal, cold start, RL, measure, experiment."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lsemrl import micro
from lsemrl.commands.project_rows import Project, rows_of
from lsemrl.commands.questions import answered, at_terminal, languages
from lsemrl.commands.readers import policy_of, reach_of
from lsemrl.commands.rendered import rendered
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
    untranslated_of,
)
from lsemrl.commands.wordings import asked_for, asked_of_questions, few_texts_of, stand_ins, summary_of, unknown_of
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.survey import Survey, profile_of, survey
from lsemrl.files import is_free, make_folder, write_text
from lsemrl.languages import Language, name_in, usual_profile
from lsemrl.types import UserError

FILES = ("README.md", "rehearse.yaml", "cold_start.yaml", "rl.yaml", "measure.yaml", "experiment.yaml")
IDENTIFIER = "language.yaml"
"""Written too where the language is in the script of the one that is translated from."""
_WANTED_STEPS = 100
_SMALL = 1024
"""Width of a model that takes higher rates, as SmolLM2-135M did (docs/results/pidgin.md)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a stage trains.

    Attributes:
        batch: Rows.
        epochs: Of whole batches.
        steps: Rollout steps of RL, optimizer steps of SFT.
        epoch: Steps of one epoch.
    """

    batch: int
    epochs: int
    steps: int
    epoch: int


def init(
    file: str,
    *,
    to: str | None = None,
    output: Path | None = None,
    from_: str | None = None,
    model: str | None = None,
    encoder: str | None = None,
    task: Task | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    general: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    untranslated: str | None = None,
) -> None:
    """Write a project for the rows of a file; at a terminal, what is missing is asked.

    Args:
        file: Rows as `lsemrl fit` reads them: JSONL, JSON, CSV, TSV, Parquet, TMX (packed too), aligned texts.
        to: The language that is to be learned, by its ISO 639 code.
        output: A new folder for the project.
        from_: The language that is translated from.
        model: The policy: a folder, a hub id, or "micro" for the embedded world's, which it is by default.
        encoder: Of the reward and of the metric similarity: a SentenceTransformer folder, a hub id, "micro", or "none"
            where there is none that reads the language; the reward is then chrF.
        task: What is learned; by default told by the names of the columns.
        source_column: The column of what is asked; by default told by its name or its letters.
        target_column: The column of the answers, likewise.
        general: Questions in a language that the model knows, nested as SQuAD or CMRC are, for what it lost.
        validation: Rows for validation, with the columns of the file; by default a share of the file's.
        test: Rows for the test, likewise.
        untranslated: Sentences of the source language that nobody has translated, a text file or rows: RL then trains
            on these, and the cold start on all rows.

    Raises:
        UserError: The file, a column, a language or the model is not what it should be, or `output` holds something.
    """
    source = Source(path=file, on_bad_row="skip")
    found = survey(source, (source_column or from_, target_column or to), (source_column, target_column))
    task = task_of(found, task, from_)
    check_untranslated(untranslated, task)
    asking = at_terminal() and None in (to, output, from_ if task == "translation" else "")
    if asking:
        print(f"{found.rows:,} rows with the columns {'; '.join(map(str, found.columns))}")
    from_, to = languages(from_, to, translates=task == "translation")
    output = Path(answered(str(output) if output else None, "--output", "a new folder for the project", "project"))
    if asking:
        model = answered(model, "--model", "the policy, a folder or hub id, or micro for a trial", micro.NAME)
        encoder = answered(encoder, "--encoder", "the reward's sentence encoder, likewise, or none", micro.NAME)
    if untranslated and encoder == "none":
        raise UserError(
            f"--untranslated is {untranslated!r} and --encoder none, but what has no reference is rewarded by an "
            "encoder that knows both languages; name one, or leave the sentences out"
        )
    if not is_free(output):
        raise UserError(f"--output is {str(output)!r}, which holds something already; name a new folder")
    columns = columns_of_task(found, task, from_, to, source_column, target_column)
    project = Project(
        path=file,
        folder=str(output),
        task=task,
        from_=from_,
        to=to,
        model=model or micro.NAME,
        encoder="" if encoder == "none" else encoder or micro.NAME,
        general=general or (micro.NAME if model in (None, micro.NAME) else ""),
        validation=validation or "",
        test=test or "",
        untranslated=untranslated or "",
    )
    profile = profile_of(to, list(columns.values())[1][0])
    shown, lines = _shown(project, found, columns, profile)
    make_folder(output, "--output")
    for name in FILES:
        write_text(output / name, rendered(name, shown))
    if shown["identifier"]:
        write_text(output / IDENTIFIER, rendered(IDENTIFIER, shown))
    few = few_texts_of(columns, str(output / IDENTIFIER)) if shown["identifier"] else []
    warned = (f"warning: {one}" for one in (*unknown_of(from_, to), *few))
    for line in (*lines, shown["summary"], *warned, *shown["stand_ins"], "", shown["commands"]):
        print(line)


def _shown(project: Project, found: Survey, columns: Columns, profile: Language) -> tuple[dict[str, Any], list[str]]:
    """What the templates show, and what the data module says of the rows."""
    kind = CLASSES[project.task]
    fields = fields_of(project.task, columns)
    template = asked_for(project.task, project.from_, project.to)
    alike = project.task == "translation" and columns[project.from_][0].share(profile) >= (profile.threshold or 0)
    identifier = f"{project.folder}/language" if alike else ""
    splits = held_out_of(found.rows, project.validation, project.test)
    sources = sources_of(found, columns, project.path, project.validation, project.test)
    make = partial(kind, **sources, splits=splits, template=PromptTemplate(template=template or None), **fields)
    untranslated = None
    if project.untranslated:
        untranslated = untranslated_of(project.untranslated, project.from_, columns[project.from_][0].name)
    config, tokenizer = policy_of(project.model)
    rows = rows_of(project, make, splits, untranslated, tokenizer, reach_of(config))
    cold_start, rl, limits = rows.cold_start, rows.rl, rows.limits
    report = rows.prepared.report["train"]
    small = config.get_text_config().hidden_size <= _SMALL
    sft_rate, rl_rate = (
        ("2.0e-3", "4.0e-4") if project.in_world else ("1.0e-3", "1.0e-4") if small else ("2.0e-4", "2.0e-5")
    )
    return {
        **vars(project),
        "in_world": project.in_world,
        "title": f"{name_in(project.from_, 'en')} to {name_in(project.to, 'en')}"
        if project.task == "translation"
        else f"{project.task.capitalize()}s in {name_in(project.to, 'en')}",
        "summary": summary_of(found, columns, profile, identifier),
        "stand_ins": stand_ins(project.model, project.encoder),
        "data_class": f"{kind.__module__}.{kind.__name__}",
        "fields": fields,
        "template": template,
        "language": _written(profile, identifier),
        "identifier": identifier,
        "texts": {
            field: {"path": project.path, "column": column.name, "on_bad_row": "skip"}
            | ({} if found.header else {"header": False})
            for field, (column, *_) in columns.items()
        },
        # Along what the policy is given: of a translation, in a language that it knows.
        "text": {"path": project.test or project.path, "column": columns[project.from_][0].name, "on_bad_row": "skip"}
        if project.task == "translation" and found.header
        else None,
        "metrics": ["chrf", "bleu", "rouge_l", "language_rate", *(["similarity"] if project.encoder else [])],
        "tau": 0.2 if project.in_world else 0.3,
        "train": cold_start if untranslated else cold_start + rl,
        "test_rows": len(rows.prepared.test),
        "cold_start": cold_start,
        "cold_start_count": rows.count,
        "rl_rows": rl,
        "sources": sources,
        "untranslated": untranslated,
        "fractions": {name: getattr(splits, name) for name in ("validation_fraction", "test_fraction")},
        "general_template": asked_of_questions(project.general),
        "longest_prompt": report["longest_prompt"],
        "longest_target": report["longest_target"],
        "max_prompt": limits.max_prompt_tokens,
        "on_long": limits.on_long,
        "max_target": limits.max_target_tokens,
        "sft": _schedule(cold_start, min(cold_start, 16 if cold_start < 640 else 32), least=2, most=10),
        "rl": _schedule(rl, min(rl, 8 if rl < 160 else 16), least=1, most=5),
        # What the base writes by itself: the embedded one is brief.
        "rehearsal": {"rows": 1000, "prompt": 96, "answer": 48}
        if project.in_world
        else {"rows": 2000, "prompt": 256, "answer": 256},
        "sft_rate": sft_rate,
        "rl_rate": rl_rate,
        "commands": _commands(project, identifier),
    }, [*rows.foreseen, *(line for line in rows.prepared.lines if "/" not in line.partition(":")[0])]


def _schedule(rows: int, batch: int, *, least: int, most: int) -> Schedule:
    epoch = max(rows // batch, 1)
    epochs = min(max(math.ceil(_WANTED_STEPS / epoch), least), most)
    return Schedule(batch=batch, epochs=epochs, steps=epochs * epoch, epoch=epoch)


def _written(profile: Language, identifier: str) -> str | dict[str, Any]:
    """How a configuration names a language: by its tag, where that says all."""
    if profile == usual_profile(profile.code):
        return {"code": profile.code, "identifier": identifier} if identifier else profile.code
    said = {**asdict(profile), "scripts": list(profile.scripts), "identifier": identifier or None}
    return {name: value for name, value in said.items() if value is not None}


def _commands(project: Project, identifier: str) -> str:
    """What to run, in order."""
    folder = shlex.quote(str(project.folder))
    measure = f"lsemrl measure --config {folder}/measure.yaml"
    told_apart = f"lsemrl fit-language --config {folder}/{IDENTIFIER}\n" if identifier else ""
    return (
        f"{told_apart}"
        f"lsemrl rehearse --config {folder}/rehearse.yaml\n"
        f"lsemrl fit --config {folder}/cold_start.yaml\n"
        f"lsemrl fit --config {folder}/rl.yaml\n"
        f"{measure} --output {folder}/measured/base\n"
        f"{measure} --arm rl --policy.adapter {folder}/runs/rl/version_0/adapter --output {folder}/measured/rl\n"
        f"lsemrl tax {folder}/measured --output {folder}/report"
    )
