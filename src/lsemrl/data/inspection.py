"""What is wrong, odd or worth knowing about rows, before anything is trained on them. Nothing here changes a text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import regex

from lsemrl.data.findings import Finding, Level, Shown
from lsemrl.data.glance import not_composed, special_tokens
from lsemrl.data.near import Near, copied, near
from lsemrl.data.records import Record
from lsemrl.data.splits import HIDDEN, content_key, evenly
from lsemrl.data.task import HELD_OUT, Task
from lsemrl.languages import UNDECIDED, Language
from lsemrl.scripts import scripts_of, unit_of, units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 5
"""So many rows are shown of each finding."""
MOST = 0.5
"""The share of rows from which on what is wrong with them cannot work."""
_KNOWN = 50_000
"""Near leaks are looked for in so many training rows at most."""
_FACTOR = 3.0
"""A length ratio this far from the usual one is odd."""
_CONTROL = regex.compile(r"[\p{Cc}--[\t\n\r]]", regex.V1)
_FORMS = regex.compile(r"[\uFB1D-\uFDFF\uFE70-\uFEFC]")
_MOJIBAKE = regex.compile(r"\uFFFD|[ÃÂ][\u0080-\u00BF]|â€|à[¤¥½¼]")
_ENTITY = regex.compile(r"&(?:#\d{2,7}|#[xX][\da-fA-F]{2,6}|[a-zA-Z][a-zA-Z\d]{1,30});")
_MARKED = regex.compile(r'"(?:[^"]|"")+"', regex.DOTALL)
_QUOTED = regex.compile(r'"(?=.*"")(?:[^"]|"")+"', regex.DOTALL)
_LETTER = regex.compile(r"\p{L}")
_BREAK, _UNBROKEN = "\u200b", regex.compile(r"\p{Line_Break=Complex_Context}")


@dataclass(frozen=True, kw_only=True)
class Side:
    """The texts of one field.

    Attributes:
        field: Its name.
        texts: How many.
        characters: Mean.
        units: Mean; syllables, characters or words, as `unit` says.
        unit: What `units` counts.
        scripts: Unicode names -> share of the letters, the most frequent first.
        lengths: Of each text, in characters.
    """

    field: str
    texts: int
    characters: float
    units: float
    unit: str
    scripts: dict[str, float]
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Attributes:
        rows: Of each split, as they are read.
        sides: Input, then output.
        ratios: Units of the output for one of the input, row by row.
        findings: The worst first.
    """

    rows: dict[str, int]
    sides: tuple[Side, ...]
    ratios: tuple[float, ...]
    findings: tuple[Finding, ...]


def inspect(
    rows: Mapping[str, Sequence[Record]],
    task: Task,
    languages: Mapping[str, Language | None],
    untranslated: Sequence[Record] = (),
) -> Inspection:
    """Look at the records of every split.

    Args:
        rows: By the names of splits; validation and test are held out.
        task: Of which they are.
        languages: By field, first the input's; None where nothing is known of its language.
        untranslated: Records without outputs, to train on.
    """
    every = [record for records in rows.values() for record in records]
    texts = {
        task.inputs[0]: [record.inputs[task.inputs[0]] for record in every],
        task.target: [record.targets[0] for record in every],
    }
    cut = {name: [len(units(text)) for text in own] for name, own in texts.items()}
    sides = tuple(_side(name, own, cut[name]) for name, own in texts.items())
    lengths = zip(*cut.values(), strict=True)
    ratios = tuple(target / source if source else math.nan for source, target in lengths)
    found = _leaks(rows, task)
    if task.pairs:
        found += [*_blind(languages), *_copies(every, task)]
    for name, own in texts.items():
        found += _language(name, own, every, task, languages.get(name))
    found += _equal(rows, task)
    if task.pairs:
        found += _ratios(every, task, ratios)
    for name, own in texts.items():
        found += _characters(name, own, every, task)
    found += inspect_untranslated(untranslated, rows, task, languages.get(task.inputs[0]))
    return Inspection(
        rows={name: len(records) for name, records in rows.items()}
        | ({"untranslated": len(untranslated)} if untranslated else {}),
        sides=sides,
        ratios=ratios,
        findings=tuple(found),
    )


def _side(name: str, texts: Sequence[str], cut: Sequence[int]) -> Side:
    scripts = scripts_of(*texts)
    return Side(
        field=name,
        texts=len(texts),
        characters=_mean([len(text) for text in texts]),
        units=_mean(cut),
        unit=unit_of(next(iter(scripts), "Latin")),
        scripts={script: share for script, share in scripts.items() if share >= 0.0005},
        lengths=tuple(map(len, texts)),
    )


def _equal(rows: Mapping[str, Sequence[Record]], task: Task) -> list[Finding]:
    """Rows that are another of their split, and inputs that have several outputs."""
    found = []
    for split, own in rows.items():
        by: dict[str, list[Record]] = defaultdict(list)
        for record in own:
            by[content_key(record.inputs[task.inputs[0]], *record.targets)].append(record)
        again = [alike for alike in by.values() if len(alike) > 1]
        if again:
            count = sum(len(alike) - 1 for alike in again)
            worst = sorted(again, key=len, reverse=True)[:SHOWN]
            shown = tuple(_shown(one[0], task, f"{len(one)} times, also {one[1].place}") for one in worst)
            level: Level = "warning" if count > 0.05 * len(own) else "note"
            which = "training" if split == "train" else split
            found.append(Finding(level=level, says=f"{count:,} {which} rows are another row again", rows=shown))
    records = rows.get("train", ())
    outputs: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        outputs[content_key(record.targets[0])][content_key(record.inputs[task.inputs[0]])].append(record)
    same = [list(own.values()) for own in outputs.values() if len(own) > 1]
    if task.pairs and (count := sum(len(rows) for own in same for rows in own)) > 0.01 * len(records):
        most = sorted(same, key=len, reverse=True)[:SHOWN]
        shown = tuple(_shown(own[0][0], task, f"of {len(own)} inputs, also {own[1][0].place}") for own in most)
        found.append(Finding(level="warning", says=f"{count:,} training rows share their output", rows=shown))
    return found


def _leaks(rows: Mapping[str, Sequence[Record]], task: Task) -> list[Finding]:
    train, found = rows.get("train", ()), []
    contents = {content_key(text) for record in train for text in task.contents(record)}
    for split in HELD_OUT:
        held = rows.get(split, ())
        exact = [each for each in held if any(content_key(text) in contents for text in task.contents(each))]
        if exact:
            found.append(
                Finding(
                    level="note",
                    says=f"{len(exact):,} {split} rows share a text with training rows, which training leaves out",
                    rows=tuple(_shown(record, task) for record in exact[:SHOWN]),
                )
            )
        for name in (task.inputs[0], task.target) if task.pairs else task.inputs[:1]:
            found += _near_leaks(name, split, held, train, task)
    return found


def _near_leaks(name: str, split: str, held: Sequence[Record], train: Sequence[Record], task: Task) -> list[Finding]:
    text, known = _text_of(task, name), evenly(train, _KNOWN)
    alike = near([text(record) for record in held], [text(record) for record in known])
    if not alike:
        return []
    alike.sort(key=lambda one: -one.share)
    some = f"one of {len(known):,} of the {len(train):,} training rows, for no others are looked at"
    which = "a training row" if len(known) == len(train) else some
    says = (
        f"the {name!r} of {len(alike):,} of {len(held):,} {split} rows is nearly that of {which}, so that the score is "
        "in part of what was learned by heart"
    )
    shown = tuple(_shown(held[one.text], task, _nearest(one, known[one.other].place)) for one in alike[:SHOWN])
    return [Finding(level="warning" if len(alike) > 0.01 * len(held) else "note", says=says, rows=shown)]


def _nearest(one: Near, place: str) -> str:
    return (
        f"{one.share:.0%} of its runs are known, most from {place}" if one.by_runs else f"{one.share:.0%} like {place}"
    )


def inspect_untranslated(
    records: Sequence[Record], rows: Mapping[str, Sequence[Record]], task: Task, language: Language | None
) -> list[Finding]:
    """Look at records without outputs.

    Args:
        records: To train on.
        rows: Those with outputs, by the names of splits.
        task: Of which they are.
        language: Of the inputs; None where nothing is known of it.
    """
    name = task.inputs[0]
    texts = [record.inputs[name] for record in records]
    found = [*_language(name, texts, records, task, language), *_characters(name, texts, records, task)]
    again = len(texts) - len({content_key(text) for text in texts})
    if again:
        found.append(Finding(level="note", says=f"{again:,} of {len(texts):,} {name!r} are another again"))
    held = {content_key(record.inputs[name]) for split in HELD_OUT for record in rows.get(split, ())}
    shared = [record for record, text in zip(records, texts, strict=True) if content_key(text) in held]
    found += _of_rows("note", f"{name!r} are of held-out rows; training leaves them out", shared, records, task)
    return [replace(one, says=f"without a translation: {one.says}") for one in found]


def inspect_special(
    records: Sequence[Record], task: Task, tokenizer: PreTrainedTokenizerBase, shown: Sequence[Record]
) -> list[Finding]:
    """Look for texts that quote a special token of the policy.

    Args:
        records: Of all splits.
        task: Of which they are.
        tokenizer: The policy's.
        shown: Those of them that prompts show with their answers.
    """
    odd, says = special_tokens(records, tokenizer, shown)
    return [Finding(level="warning", says=says, rows=tuple(_shown(row, task) for row in odd[:SHOWN]))] if odd else []


def _language(
    name: str, texts: Sequence[str], rows: Sequence[Record], task: Task, language: Language | None
) -> list[Finding]:
    """Texts that are in another language, as far as its rule can tell, and those without a letter."""
    silent = [row for row, text in zip(rows, texts, strict=True) if not _LETTER.search(text)]
    found = _of_rows("warning", f"{name!r} hold no letter", silent, rows, task)
    if language is None:
        return found
    verdicts = language.verdicts(list(texts))
    other = [
        row
        for row, text, verdict in zip(rows, texts, verdicts, strict=True)
        if verdict < UNDECIDED and _LETTER.search(text)
    ]
    level: Level = "refused" if len(other) > MOST * len(rows) else "warning"
    by = "its letters" if language.identifier is None else "its letters and its identifier"
    return found + _of_rows(level, f"{name!r} are not {language.name} by {by}", other, rows, task)


def _characters(name: str, texts: Sequence[str], rows: Sequence[Record], task: Task) -> list[Finding]:
    """Characters that look the same and are not, or are not seen, or were something else."""
    odd = [row for row, text in zip(rows, texts, strict=True) if not_composed(text)]
    mixed = len(odd) < 0.99 * len(rows)
    level: Level = "warning" if mixed and len(odd) > 0.01 * len(rows) else "note"
    several = ": the same word is written in several ways, each of which is learned; save it as NFC" if mixed else ""
    found = _of_rows(level, f"{name!r} are not in the Unicode form NFC{several}", odd, rows, task)
    # In Khmer, Lao, Burmese or Thai it stands between words, where lines may break.
    odd = [row for row, text in zip(rows, texts, strict=True) if _BREAK in text and _UNBROKEN.search(text)]
    says = "hold zero-width spaces between words, which chrF takes for letters: the same text without them scores less"
    found += _of_rows("note", f"{name!r} {says}", odd, rows, task)
    texts = [text.replace(_BREAK, "") if _UNBROKEN.search(text) else text for text in texts]
    for pattern, says in (
        (HIDDEN, "hold characters that are not seen, such as zero-width spaces and marks of direction"),
        (_CONTROL, "hold control characters"),
        (_FORMS, "hold presentation forms, which no keyboard writes"),
        (_MOJIBAKE, "hold what looks like text decoded by the wrong table"),
        (_ENTITY, "hold entities of HTML such as &amp;, which are learned as they stand; put the characters there"),
    ):
        odd = [row for row, text in zip(rows, texts, strict=True) if pattern.search(text)]
        found += _of_rows("warning", f"{name!r} {says}", odd, rows, task)
    odd = [row for row, text in zip(rows, texts, strict=True) if _MARKED.fullmatch(text)]
    if len(odd) <= MOST * len(rows):  # a few may well be quotations
        odd = [row for row, text in zip(rows, texts, strict=True) if _QUOTED.fullmatch(text)]
    says = "are quoted as a spreadsheet quotes cells, and learned so: a .tsv is read to the letter; save it as .csv"
    return found + _of_rows("warning", f"{name!r} {says}", odd, rows, task)


def _copies(rows: Sequence[Record], task: Task) -> list[Finding]:
    same = [row for row in rows if copied(row.inputs[task.inputs[0]], row.targets[0])]
    level: Level = "refused" if len(same) > MOST * len(rows) else "warning"
    return _of_rows(level, "outputs are their input, untranslated, and teach copying", same, rows, task)


def _ratios(rows: Sequence[Record], task: Task, ratios: Sequence[float]) -> list[Finding]:
    known = sorted(ratio for ratio in ratios if ratio > 0)
    if not known:
        return []
    usual = known[len(known) // 2]
    odd = [
        (abs(math.log(ratio / usual)) if ratio else math.inf, ratio, row)
        for ratio, row in zip(ratios, rows, strict=True)
        if not math.isnan(ratio) and not usual / _FACTOR <= ratio <= usual * _FACTOR
    ]
    if not odd:
        return []
    odd.sort(key=lambda one: -one[0])
    shown = tuple(_shown(row, task, f"{ratio:.2f} for 1") for _, ratio, row in odd[:SHOWN])
    says = (
        f"{len(odd):,} of {len(rows):,} outputs are over {_FACTOR:g} times longer or shorter than usual "
        f"({usual:.2f} units for 1)"
    )
    return [Finding(level="warning" if len(odd) > 0.01 * len(rows) else "note", says=says, rows=shown)]


def _blind(languages: Mapping[str, Language | None]) -> list[Finding]:
    source, target = (*languages.values(), None, None)[:2]
    if source is None or target is None or target.identifier or not set(source.scripts) & set(target.scripts):
        return []
    says = (
        f"{source.name} and {target.name} are in the same letters, so that a copy of the source passes for "
        f"{target.name}; fit an identifier with lsemrl fit-language, and give --identifier"
    )
    return [Finding(level="warning", says=says)]


def _of_rows(level: Level, says: str, odd: Sequence[Record], rows: Sequence[Record], task: Task) -> list[Finding]:
    """How many of `rows` are `odd`, and what is to be said of them; nothing where none is."""
    if not odd:
        return []
    shown = tuple(_shown(row, task) for row in odd[:SHOWN])
    return [Finding(level=level, says=f"{len(odd):,} of {len(rows):,} {says}", rows=shown)]


def _shown(record: Record, task: Task, why: str = "") -> Shown:
    target = next(iter(record.targets), "")
    return Shown(place=record.place, source=record.inputs[task.inputs[0]], target=target, why=why)


def _text_of(task: Task, name: str) -> Callable[[Record], str]:
    return lambda record: record.targets[0] if name == task.target else record.inputs[name]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(1, len(values))
