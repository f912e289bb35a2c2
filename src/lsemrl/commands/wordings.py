"""What a project asks the policy where the task's own wording is of other languages, and what is said of its rows."""

from __future__ import annotations

from itertools import chain

from lsemrl import micro
from lsemrl.commands.task_rows import Columns, Task, unread
from lsemrl.data import comprehension
from lsemrl.data.records import read_records
from lsemrl.data.sources import Source
from lsemrl.data.survey import Survey, alike
from lsemrl.data.translation import TEMPLATES, wording
from lsemrl.evaluation.general import language_of
from lsemrl.identification.fit import FEWEST
from lsemrl.languages import Language, is_language, meant, name_in, usual_profile

_HEADLINE = {"zh": "{name}标题：{{source}}", "en": "Write a headline in {name}: {{source}}"}
"""By the language that it is asked in."""


def stand_ins(model: str, encoder: str) -> list[str]:
    """What is to be said where the embedded world's models stand in for those of a project."""
    names = [what for what, name in (("model", model), ("encoder", encoder)) if name == micro.NAME]
    if not names:
        return []
    options = " and ".join(f"--{what}" for what in names)
    return [
        f"micro stands in for the {' and '.join(names)}: it knows a small made-up world alone, and shows that the rows "
        f"are read, no more. For anything else give {options}."
    ]


def unknown_of(*codes: str) -> list[str]:
    """What is to be said of codes that are no language's; "" names none."""
    return [
        f"{code!r} is no code of a language{meant(code)}, so that nothing is known of it but this name"
        for code in codes
        if code and not is_language(code)
    ]


def few_texts_of(columns: Columns, path: str) -> list[str]:
    """What is to be said where an identifier would have too few texts.

    Args:
        columns: Of both languages.
        path: Of the configuration that names the texts.
    """
    counts = {code: min(own.filled, len(set(own.keys))) for code, (own, *_) in columns.items()}
    few = " and ".join(f"{count} of {code}" for code, count in counts.items() if count < FEWEST)
    if not few:
        return []
    return [
        f"lsemrl fit-language wants {FEWEST} different texts of each language, and there are {few}; name a file with "
        f"more in {path}: they need no translations"
    ]


def asked_for(task: Task, from_: str, to: str) -> str:
    """The template for rows of `task`; "" for the task's own.

    Args:
        task: What is learned.
        from_: Tag of the language that is asked in; "" if nothing is known of it.
        to: Tag of the language that is to be learned.
    """
    own = {"translation": {from_, to} <= TEMPLATES.keys(), "headline": to == "bo", "instruction": True}
    if own[task]:
        return ""
    if task == "translation":
        return wording(from_, to)
    spoken = "zh" if from_ == "zh" else "en"
    return _HEADLINE[spoken].format(name=name_in(to, spoken))


def asked_of_questions(path: str) -> str:
    """The template for questions on passages; "" for the task's own, which is Chinese.

    Args:
        path: Their file; "" or "micro" are none of the user's.
    """
    if path in ("", micro.NAME):
        return ""
    questions, _ = read_records(Source(path=path, on_bad_row="skip"), comprehension.TASK.fields)
    chinese = language_of(["\n".join(each.inputs.values()) for each in questions]) == "Chinese"
    return "" if chinese else "{context}\nQuestion: {question}"


def summary_of(found: Survey, columns: Columns, profile: Language, identifier: str) -> str:
    """What a file holds and how it is read.

    Args:
        found: The file.
        columns: What is read of it.
        profile: Of the language that is learned.
        identifier: Where what tells it from the source's will be; "" where letters do.
    """
    faulty = f", {len(found.faults)} that cannot be read" if found.faults else ""
    source, target = (" and ".join(map(str, own)) for own in columns.values())
    usual = usual_profile(profile.code)
    odd = ""
    if usual and not set(usual.scripts) & set(profile.scripts):
        odd = f" It is usually written in {' and '.join(usual.scripts)} letters: is that the column?"
    headless = "" if found.header else " The first line of the file is a row, so its columns are called 1 and 2."
    apart = " The source is in the same letters, so that an identifier tells them apart." if identifier else ""
    left = f" {says}." if (says := unread(found, columns)) else ""
    own = f" ({profile.own_name})" if profile.own_name != profile.name else ""
    return (
        f"{found.rows:,} rows{faulty}, {alike(chain(*columns.values())):,} of them another again; from {source} to "
        f"{target}. {profile.name}{own} is written {profile.direction}, told by "
        f"{' and '.join(profile.scripts)} letters from a share of {profile.threshold} on, and compared by "
        f"{profile.unit}.{odd}{headless}{apart}{left}"
    )
