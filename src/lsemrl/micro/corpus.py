"""What the embedded world is written in: translation pairs, headlines, reading comprehension and plain text.

Every function draws from one split; splits never share an event. A title says only the core of one, which splits may
share: of 300 test titles 22 say what one of 2,000 train titles says, 13 in the same words. The records have the shape
of the real files they stand for, so the data modules read both alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from lsemrl.micro.grammar import Event, Split, chinese, draw_event, patients_of, tibetan
from lsemrl.micro.words import ACTION_WORDS, ACTIONS, AGENTS, PATIENT_WORDS, PLACES, TABLES, TIMES

Record = dict[str, str | list[str]]

_SENTENCES_PER_PASSAGE = 3
_CHOICES = 4


def translation(split: Split, count: int, seed: int) -> list[Record]:
    """`count` distinct events as pairs: id, zh, bo."""
    return [
        {"id": f"{split}-{at}", "zh": chinese(event, rng), "bo": tibetan(event, rng)}
        for at, (rng, event) in enumerate(_distinct("translation", split, count, seed))
    ]


def headline(split: Split, count: int, seed: int) -> list[Record]:
    """`count` Tibetan passages with their titles: id, content, title. The first sentence is the news."""
    return _titled("headline", tibetan, split, count, seed)


def comprehension(split: Split, count: int, seed: int) -> list[Record]:
    """`count` Chinese questions on a passage: id, context, question, answers.

    The other sentences of a passage share the question's agent or its action, so that neither alone finds the answer.
    """
    return [
        {"id": f"{split}-{at}", **_question(rng, event, split)}
        for at, (rng, event) in enumerate(_distinct("comprehension", split, count, seed))
    ]


def choice(split: Split, count: int, seed: int) -> list[Record]:
    """`count` of the same questions with four answers of one kind to choose from: id, question, choices, answer."""
    rng, records = random.Random(f"choice/{split}/{seed}"), list[Record]()
    for row in comprehension(split, count, seed):
        right = row["answers"][0]
        kind = next(table for table in (AGENTS, PATIENT_WORDS, PLACES, TIMES) if right in table)
        choices = [right, *rng.sample([other for other in kind if other != right], _CHOICES - 1)]
        rng.shuffle(choices)
        asked = f"{row['context']}\n问题：{row['question']}"
        records.append({"id": row["id"], "question": asked, "choices": choices, "answer": right})
    return records


def chinese_text(split: Split, count: int, seed: int) -> list[Record]:
    """`count` passages of plain Chinese: id, text."""
    return _plain("chinese_text", chinese, split, count, seed)


def tibetan_text(split: Split, count: int, seed: int) -> list[Record]:
    """`count` passages of plain Tibetan: id, text."""
    return _plain("tibetan_text", tibetan, split, count, seed)


def chinese_headline(split: Split, count: int, seed: int) -> list[Record]:
    """`count` Chinese passages with their titles: id, content, title. Used to train the base policy only."""
    return _titled("chinese_headline", chinese, split, count, seed)


def echo(split: Split, count: int, seed: int) -> list[Record]:
    """`count` sentences, half of them Tibetan, to be said again: id, sentence. Used to train the base policy only."""
    return [
        {"id": f"{split}-{at}", "sentence": (tibetan if rng.random() < 0.5 else chinese)(event, rng)}
        for at, (rng, event) in enumerate(_distinct("echo", split, count, seed))
    ]


def instruction(split: Split, count: int, seed: int) -> list[Record]:
    """`count` of what the base policy does when told: id, prompt, response; a title, or a sentence said again."""
    titled = chinese_headline(split, (count + 1) // 2, seed)
    repeated = echo(split, count // 2, seed)
    rows = [(f"中文标题：{row['content']}", row["title"]) for row in titled]
    rows += [(f"复述：{row['sentence']}", row["sentence"]) for row in repeated]
    random.Random(f"instruction/{split}/{seed}").shuffle(rows)
    return [{"id": f"{split}-{at}", "prompt": asked, "response": said} for at, (asked, said) in enumerate(rows)]


def dictionary(split: Split, count: int, seed: int) -> list[Record]:
    """`count` pages of a word list: id, text. A published model has met the language; this is how much of it."""
    rng = random.Random(f"dictionary/{split}/{seed}")
    words = [
        (word, phrase) for table in (*TABLES, PATIENT_WORDS, ACTION_WORDS) for word in table for phrase in table[word]
    ]
    return [
        {"id": f"{split}-{at}", "text": "\n".join(f"{word}：{phrase}" for word, phrase in rng.sample(words, 8))}
        for at in range(count)
    ]


def _plain(task: str, say: Callable[..., str], split: Split, count: int, seed: int) -> list[Record]:
    return [
        {"id": f"{split}-{at}", "text": "".join(say(event, rng) for event in _passage(lead, rng, split))}
        for at, (rng, lead) in enumerate(_distinct(task, split, count, seed))
    ]


def _titled(task: str, say: Callable[..., str], split: Split, count: int, seed: int) -> list[Record]:
    return [
        {
            "id": f"{split}-{at}",
            "content": "".join(say(event, rng) for event in _passage(lead, rng, split)),
            "title": say(lead.core(), rng, headline=True),
        }
        for at, (rng, lead) in enumerate(_distinct(task, split, count, seed))
    ]


def _distinct(task: str, split: Split, count: int, seed: int) -> Iterator[tuple[random.Random, Event]]:
    rng = random.Random(f"{task}/{split}/{seed}")
    seen: set[Event] = set()
    while len(seen) < count:
        event = draw_event(rng, split)
        if event not in seen:
            seen.add(event)
            yield rng, event


def _passage(lead: Event, rng: random.Random, split: Split) -> list[Event]:
    """`lead` and sentences after it that share its agent or its place."""
    passage = [lead]
    while len(passage) < _SENTENCES_PER_PASSAGE:
        shared = {"agent": lead.agent} if rng.random() < 0.5 or not lead.place else {"place": lead.place}
        passage.append(draw_event(rng, split, **shared))
    return passage


def _question(rng: random.Random, event: Event, split: Split) -> Record:
    asked = rng.choice(("agent", "patient", "place", "time"))
    while True:
        target = replace(
            event,
            negation=None,
            place=event.place or (rng.choice(tuple(PLACES)) if asked == "place" else None),
            time=event.time or (rng.choice(tuple(TIMES)) if asked == "time" else None),
        )
        if target.split() != split:
            event = draw_event(rng, split)
            continue
        actions = [action for action in ACTIONS if action != target.action]
        other_agent = rng.choice([agent for agent in AGENTS if agent != target.agent])
        filled = {
            slot: rng.choice(tuple(table)) for slot, table in (("place", PLACES), ("time", TIMES)) if slot == asked
        }
        patient = target.patient if asked in ("place", "time") else rng.choice(patients_of(target.action))
        passage = [
            target,
            draw_event(rng, split, agent=target.agent, action=rng.choice(actions), **filled),
            draw_event(rng, split, agent=other_agent, action=target.action, patient=patient, **filled),
        ]
        if sum(_matches(other, target, asked) for other in passage) == 1:
            break
        event = draw_event(rng, split)
    rng.shuffle(passage)
    question = {
        "agent": f"谁{target.action}了{target.patient}？",
        "patient": f"{target.agent}{target.action}了什么？",
        "place": f"{target.agent}在哪里{target.action}了{target.patient}？",
        "time": f"{target.agent}什么时候{target.action}了{target.patient}？",
    }[asked]
    return {
        "context": "".join(chinese(event, rng) for event in passage),
        "question": question,
        "answers": [target.filled()[asked]],
    }


def _matches(event: Event, target: Event, asked: str) -> bool:
    """Whether `event` fits every key that the question about `target` names."""
    return all(
        getattr(event, slot) == getattr(target, slot) for slot in ("agent", "action", "patient") if slot != asked
    )
