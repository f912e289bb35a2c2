"""The embedded world: what is said can be read back, and splits share nothing."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest

from lsemrl.micro import corpus, grammar, oracle, words

SPLITS: tuple[grammar.Split, ...] = ("pretrain", "train", "validation", "test")


def events(count: int, split: grammar.Split = "train") -> list[grammar.Event]:
    rng = random.Random(0)
    return [grammar.draw_event(rng, split) for _ in range(count)]


def test_the_oracle_reads_back_every_realization() -> None:
    rng = random.Random(1)
    for event in events(1000):
        for headline in (False, True):
            told = event.core() if headline else event
            text = grammar.tibetan(told, rng, headline=headline)
            read = oracle.parse(text)
            assert dict(read.slots) == {item: 1 for item in told.filled().items()}, text
            assert read.well_formed, text


def test_every_word_of_the_tables_is_read_as_itself() -> None:
    tables = {
        "agent": words.AGENTS,
        "agent_attribute": words.AGENT_ATTRIBUTES,
        "patient_attribute": words.PATIENT_ATTRIBUTES,
        "count": words.COUNTS,
        "place": words.PLACES,
        "time": words.TIMES,
        "patient": words.PATIENT_WORDS,
        "action": words.ACTION_WORDS,
    }
    for slot, table in tables.items():
        for word, phrases in table.items():
            for phrase in phrases:
                assert dict(oracle.parse(phrase).slots) == {(slot, word): 1}, phrase


def test_a_meaning_has_many_tibetan_sentences_and_one_event() -> None:
    event = grammar.Event(
        agent="学生",
        action="买",
        patient="书",
        place="家里",
        time="昨天",
        agent_attribute="年轻",
        patient_attribute="小",
    )
    rng = random.Random(0)
    said = {grammar.tibetan(event, rng) for _ in range(500)}
    assert len(said) > 100
    reference = grammar.tibetan(event, rng)
    assert all(oracle.meaning(text, reference) == oracle.Meaning(f1=1.0, exact=True) for text in said)


def test_there_are_hundreds_of_thousands_of_events() -> None:
    assert len(set(events(5000))) > 4900
    pairs = sum(len(grammar.patients_of(action)) for action in words.ACTIONS)
    assert len(words.AGENTS) * pairs * len(words.PLACES) * len(words.TIMES) > 500_000


def test_a_corruption_changes_exactly_one_slot() -> None:
    rng = random.Random(0)
    for event in events(500):
        other = grammar.corrupt(event, rng)
        changed = [f.name for f in fields(event) if getattr(event, f.name) != getattr(other, f.name)]
        assert len(changed) == 1
        assert other.patient in grammar.patients_of(other.action)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("ཨ་མ", "ཨ་མས"),
        ("དགེ་རྒན", "དགེ་རྒན་གྱིས"),
        ("བློ་བཟང", "བློ་བཟང་གིས"),
        ("བྱིས", "བྱིས་ཀྱིས"),
        ("གཡག", "གཡག་གིས"),
        ("ཞིང་པ", "ཞིང་པས"),
    ],
)
def test_the_agent_particle_follows_the_last_letter(phrase: str, expected: str) -> None:
    assert grammar.ergative(phrase) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("དེབ", "ཅིག"), ("ལྷམ", "ཞིག"), ("གོས", "ཤིག"), ("ཇ", "ཞིག"), ("ཤ", "ཞིག"), ("གཡག", "ཅིག"), ("རྟ", "ཞིག")],
)
def test_the_article_follows_the_last_letter(phrase: str, expected: str) -> None:
    assert grammar.indefinite(phrase) == expected


@pytest.mark.parametrize("write", [corpus.translation, corpus.headline, corpus.comprehension, corpus.tibetan_text])
def test_records_are_distinct_and_come_again_from_their_seed(write: object) -> None:
    assert callable(write)
    one, again, other = write("train", 50, 1), write("train", 50, 1), write("train", 50, 2)
    assert one == again
    assert one != other
    assert len({record["id"] for record in one}) == 50


def test_splits_share_no_event() -> None:
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for split in SPLITS:
        for record in corpus.translation(split, 1000, seed=3):
            key = tuple(sorted(oracle.parse(str(record["bo"])).slots))
            assert seen.setdefault(key, split) == split
        for record in corpus.headline(split, 200, seed=3):
            for sentence in str(record["content"]).split(grammar.SHAD)[:-1]:
                key = tuple(sorted(oracle.parse(sentence).slots))
                assert seen.setdefault(key, split) == split


def test_a_question_has_one_answer_and_distractors() -> None:
    for record in corpus.comprehension("test", 300, seed=0):
        context, question, (answer,) = str(record["context"]), str(record["question"]), record["answers"]
        assert answer in context
        assert context.count("。") == 3
        assert question.endswith("？")
    # Neither the agent nor the action alone finds the answer: of the two other sentences one shares each.
    where = [record for record in corpus.comprehension("test", 300, seed=0) if "在哪里" in str(record["question"])]
    for record in where:
        agent, rest = str(record["question"]).rstrip("？").split("在哪里")
        action, patient = rest.split("了")
        sentences = str(record["context"]).split("。")[:3]
        assert sum(agent in sentence for sentence in sentences) == 2
        assert sum(action in sentence and patient in sentence for sentence in sentences) == 2
