"""General ability: what it is called, and how answers are scored.

Short answers are scored as their community does, Chinese ones by CMRC 2018's rules and others by SQuAD's; answers to
instructions by chrF. What is only to be chosen from is in `choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import regex

from lsemrl.canonical import canonical
from lsemrl.data.task import ScoredBy, Task
from lsemrl.languages import MOST, UNDECIDED, Language, passing
from lsemrl.metrics import cmrc, squad
from lsemrl.metrics.contained import SIGNATURE as CONTAINED
from lsemrl.metrics.contained import contained
from lsemrl.metrics.corpus import chrf
from lsemrl.scripts import scripts_of, unit_of
from lsemrl.types import Completion, Example

_LANGUAGES = {"Han": "Chinese", "Hangul": "Korean", "Tibetan": "Tibetan", "Thai": "Thai"}
"""Scripts of one language, as good as; of the others only the script is told."""
_KANA, _ARTICLES = 0.05, 0.02
"""Shares of Japanese letters that are kana, and of English words that are "the", at least: both are several times
that in any prose, and 0 in other languages."""
_ASKS = regex.compile(r"([?？؟⁇⁈⁉‽፧꛷]|(?<=\p{Greek});)[^\p{L}\p{M}\p{N}]*$")
"""A mark of a question after the last word; the canonical Greek one is a semicolon."""
_CHOSEN = "log-probability of choice and EOS, sum; per token: mean"


def language_of(texts: Sequence[str]) -> str:
    """The language that most letters are of, as far as their script tells; "" of texts without letters."""
    shares = scripts_of(*texts)
    if not shares:
        return ""
    if shares.get("Hiragana", 0) + shares.get("Katakana", 0) > _KANA:
        return "Japanese"
    most = next(iter(shares))
    if most == "Latin":
        words = regex.findall(r"\p{L}+", "\n".join(texts).lower())
        return "English" if words.count("the") > _ARTICLES * len(words) else "Latin-script"
    return _LANGUAGES.get(most, f"{most}-script")


def answered_in(examples: Sequence[Example]) -> str:
    """The language that `examples` are to be answered in; that of their sources where answers are numbers only."""
    asked = language_of([example.source for example in examples])
    said = language_of([text for example in examples for text in example.references])
    # Answers are short, so that an article in them is rare.
    return asked if not said or {said, asked} == {"Latin-script", "English"} else said


def name_of(task: Task, examples: Sequence[Example]) -> str:
    """What reports call the general ability that `examples` of `task` ask for."""
    if task.scored_by == "answers":
        return f"{answered_in(examples)} QA".strip()
    return {"instruction": "instructions", "choice": "multiple choice"}.get(task.name, task.name)


def signatures(
    scored_by: ScoredBy, examples: Sequence[Example], target: Sequence[Example], learned: Language
) -> dict[str, str]:
    """How general ability and leaks are scored, which is known before there are answers; nothing without examples.

    Args:
        scored_by: See `Task`.
        examples: The questions.
        target: The rows of the new task.
        learned: Its language, as the user names it.
    """
    if not examples:
        return {}
    if scored_by == "choices":
        return {"accuracy": _CHOSEN}
    leak = f"share of answers in lang:{learned.code}|{learned.rule}|quotations:none"
    leaks = {} if blind(examples, target, learned) else {"leak": leak}
    if scored_by == "references":
        # sacreBLEU tells it only of what it scored, and of that whether all have as many references.
        golds = sorted((example.references for example in examples), key=len)
        return {"general.chrf": f"mean of answers, {chrf(['', ''], [golds[0], golds[-1]]).signature}"} | leaks
    key, by = _rules(examples)
    return {key: by.SIGNATURE, "contained": CONTAINED} | leaks


def remark(scored_by: ScoredBy, examples: Sequence[Example]) -> str:
    """What is to be said of how `examples` are scored; "" where nothing is."""
    if scored_by != "answers" or not examples or _rules(examples)[1] is cmrc:
        return ""
    unit = unit_of(next(iter(scripts_of(*(text for example in examples for text in example.references))), ""))
    if unit == "word":
        return ""
    return (
        f"F1 of general ability counts words between spaces, and {answered_in(examples)} is written without, so that "
        "it is hardly more than exact match; look at contained"
    )


def _rules(examples: Sequence[Example]) -> tuple[str, ModuleType]:
    """Those of short answers, and their name."""
    return ("cmrc", cmrc) if answered_in(examples) == "Chinese" else ("squad", squad)


def score_answers(answers: Sequence[Completion], scored_by: ScoredBy) -> dict[str, tuple[float, ...]]:
    """Score greedy answers; nothing where there are none.

    Returns:
        Of short answers em, f1, contained and asked_back, 1 where the answer ends as a question and no accepted one
        does; of others chrf_sentence; and of all answer_length and ended_rate. All are in [0, 1], but the length, which
        is in characters.
    """
    if not answers:
        return {}
    texts, golds = [answer.text for answer in answers], [answer.example.references for answer in answers]
    every = {
        "answer_length": tuple(float(len(canonical(text).strip())) for text in texts),
        "ended_rate": tuple(float(answer.ended) for answer in answers),
    }
    if scored_by == "references":
        return {"chrf_sentence": chrf(texts, golds).rows, **every}
    _, by = _rules([answer.example for answer in answers])
    pairs = list(zip(texts, golds, strict=True))
    return {
        "em": tuple(by.exact_match(text, gold) for text, gold in pairs),
        "f1": tuple(by.f1(text, gold) for text, gold in pairs),
        "contained": tuple(contained(text, gold, by.plain) for text, gold in pairs),
        "asked_back": tuple(float(_asks(text) and not any(map(_asks, gold))) for text, gold in pairs),
        **every,
    }


def _asks(text: str) -> bool:
    return bool(_ASKS.search(canonical(text)))


def blind(examples: Sequence[Example], target: Sequence[Example], learned: Language) -> str:
    """Why leaks cannot be told, in words; "" where they can.

    Args:
        examples: The questions.
        target: The rows of the new task.
        learned: Its language, as the user names it.
    """
    if passing(learned, target)[0] < MOST:
        return f"{learned}, by which most references do not pass; name their language in metrics.language"
    verdicts = learned.verdicts([example.source for example in examples])
    if sum(verdict > UNDECIDED for verdict in verdicts) < len(verdicts) / 2:
        return ""
    return f"{learned} and so is what general ability is asked in"


def score_leaks(
    answers: Sequence[Completion], target: Sequence[Example], learned: Language
) -> dict[str, tuple[float, ...]]:
    """How many answers are in the language that was learned, although nothing asked for it.

    Args:
        answers: To questions in a language that the base knew.
        target: The rows of the new task.
        learned: Its language, as the user names it.

    Returns:
        leak, 1 for each answer that passes for `learned` and 0 for others, such as a name of which that cannot be told
        and words of the question or of an accepted answer, which are in their language whatever the rule makes of them;
        nothing where there are no answers, or leaks cannot be told (see `blind`).
    """
    if not answers or blind([answer.example for answer in answers], target, learned):
        return {}
    verdicts = learned.verdicts([answer.text for answer in answers])
    leaked = (verdict > UNDECIDED and not _quoted(answer) for answer, verdict in zip(answers, verdicts, strict=True))
    return {"leak": tuple(map(float, leaked))}


def _quoted(answer: Completion) -> bool:
    example = answer.example
    return any(contained(text, [answer.text], str) for text in (example.source, *example.references))
