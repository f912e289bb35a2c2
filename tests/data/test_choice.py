"""Multiple choice: the forms in which choices and the right one are written, and rows that say neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lsemrl.data.choice import ChoiceData
from lsemrl.data.choices import chosen
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.micro import corpus
from lsemrl.types import Example, UserError

Write = Callable[..., str]
WHOLE = Splits(validation_fraction=0.0, test_fraction=0.0)
SEASONS = ["spring", "summer", "autumn", "winter"]


def train(tokenizer: PreTrainedTokenizerFast, path: str, **source: Any) -> list[Example]:
    data = ChoiceData(source=Source(path=path, **source), splits=WHOLE)
    data.prepare(tokenizer)
    return data.train_examples


@pytest.mark.parametrize("answer", [2, "2", "C", "c", "autumn", " autumn "])
def test_the_right_choice_by_number_letter_or_text(
    answer: object, tokenizer: PreTrainedTokenizerFast, write: Write
) -> None:
    rows = [{"id": "1", "question": "When do leaves fall?", "choices": SEASONS, "answer": answer}]
    (example,) = train(tokenizer, write("rows.jsonl", rows))
    assert example.references == ("autumn",) and example.choices == tuple(SEASONS)
    assert example.source == "When do leaves fall?" and "spring" not in example.prompt


@pytest.mark.parametrize("name", ["source", "question"])
def test_a_question_is_worded_by_either_name(name: str, tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = [{"question": "When?", "choices": SEASONS, "answer": "autumn"}]
    asked = PromptTemplate(template=f"Question: {{{name}}}")
    data = ChoiceData(source=Source(path=write("rows.jsonl", rows)), splits=WHOLE, template=asked)
    data.prepare(tokenizer)
    assert data.train_examples[0].prompt == "<|user|>Question: When?<|assistant|>"


def test_the_right_choice_in_another_unicode_form(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = [{"question": "Where?", "choices": ["caf\u00e9", "bar"], "answer": "cafe\u0301"}]
    assert train(tokenizer, write("rows.jsonl", rows))[0].references == ("caf\u00e9",)


def test_a_table_has_its_choices_in_a_cell(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    table = 'question,choices,answer\nWhen?,spring|summer,B\nWhere?,"[""here|now"", ""there""]",there\n'
    found = [(each.choices, each.reference) for each in train(tokenizer, write("rows.csv", table))]
    assert found == [(("spring", "summer"), "summer"), (("here|now", "there"), "there")]


def test_columns_of_other_names(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = [{"stem": "When?", "options": {"text": ["now", "then"], "label": ["A", "B"]}, "key": "B"}]
    names = {"question": "stem", "choices": "options", "answer": "key"}
    (example,) = train(tokenizer, write("rows.jsonl", rows), columns=names)
    assert example.reference == "then" and example.choices == ("now", "then")


LABELS = ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "choices",
    [{"text": SEASONS, "label": LABELS}, [{"text": each, "label": at} for at, each in enumerate(SEASONS, start=1)]],
)
@pytest.mark.parametrize("answer", ["3", 3, "autumn"])
def test_choices_that_have_labels_go_by_them(
    choices: object, answer: object, tokenizer: PreTrainedTokenizerFast, write: Write
) -> None:
    rows = [{"question": "When do leaves fall?", "choices": choices, "answer": answer}]
    assert train(tokenizer, write("rows.jsonl", rows))[0].reference == "autumn"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 4}, "field 'answer' is '4', which is none of the 4 choices"),
        ({"answer": "E"}, "is 'E', which is none of the 4 choices"),
        ({"answer": -1}, "is '-1', which is none"),
        ({"answer": True}, "field 'answer' is bool"),
        ({"answer": None}, "field 'answer' is NoneType, not a text"),
        ({"choices": ["spring"]}, "field 'choices' has 1 choice"),
        ({"choices": ["spring", "spring "]}, "has the choice 'spring' twice"),
        ({"choices": ["caf\u00e9", "cafe\u0301"]}, "has the choice 'caf\u00e9' twice"),
        ({"choices": ["spring", 3]}, "field 'choices' is int, not text"),
        ({"choices": None}, "field 'choices' is missing"),
        ({"choices": {"text": SEASONS, "label": LABELS}}, r"'0', which is none .* or its label \(1, 2, 3, 4\)"),
        ({"choices": {"text": SEASONS, "label": LABELS[:3]}}, "has 3 labels for 4 choices"),
        ({"choices": {"text": SEASONS, "label": ["1", "1", "2", "3"]}}, "has a label twice among 1, 1, 2"),
        ({"choices": ["4", "2", "8", "1"], "answer": "2"}, "is '2', which is the text of one choice and the letter"),
    ],
)
def test_a_row_that_says_nothing_clear_is_named(
    change: dict[str, object], reason: str, tokenizer: PreTrainedTokenizerFast, write: Write
) -> None:
    good = {"id": "good", "question": "When?", "choices": SEASONS, "answer": 0}
    path = write("rows.jsonl", [good, {**good, "id": "bad", **change}])
    with pytest.raises(UserError, match=rf"rows.jsonl:2 \(bad\): .*{reason}"):
        train(tokenizer, path)
    assert [each.id for each in train(tokenizer, path, on_bad_row="skip")] == ["good"]


def test_a_whole_number_is_a_number_whatever_the_choices_say() -> None:
    assert chosen(2, ["4", "2", "8", "1"]) == 2
    assert chosen("4", ["4", "2"]) == 0 and chosen("1", ["0", "1"]) == 1


@pytest.mark.parametrize(("first", "rows", "told"), [(1, 27, True), (0, 27, False), (1, 12, False)])
def test_a_file_that_counts_from_one_is_told_though_bad_rows_are_skipped(
    tokenizer: PreTrainedTokenizerFast, write: Write, first: int, rows: int, told: bool
) -> None:
    path = write(
        "counted.jsonl", [{"question": f"q{i}", "choices": SEASONS, "answer": first + i % 4} for i in range(rows)]
    )
    data = ChoiceData(source=Source(path=path, on_bad_row="skip"), splits=WHOLE)
    lines = [line for line in data.prepare(tokenizer) if "the first choice is right in none of" in line]
    assert lines == (
        [
            "choice: warning: the first choice is right in none of 21 rows; numbers are counted from 0, so one that is "
            "counted from 1 means the choice after the right one"
        ]
        if told
        else []
    )


def test_a_file_without_choices_is_refused(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    path = write("rows.jsonl", [{"question": "When?", "answer": "now"}])
    with pytest.raises(UserError, match="has the column 'choices' for the field 'choices'"):
        train(tokenizer, path)


def test_rows_that_only_measure(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "ka", "choices": ["a", "b"], "answer": 1}) + "\n", encoding="utf-8")
    only = Splits(validation_fraction=0.0, test_fraction=1.0)
    data = ChoiceData(source=Source(path=str(path)), splits=only)
    with pytest.raises(UserError, match="leaves no training rows"):
        data.prepare(tokenizer)
    data.prepare(tokenizer, trains=False)
    assert (len(data.test_examples), data.train_examples) == (1, [])
    all_in_one = ChoiceData(source=Source(path=str(path)), splits=Splits(validation_fraction=0.0, test_fraction=0.0))
    lines = all_in_one.prepare(tokenizer, trains=False)
    assert all_in_one.train_examples == [] and not any("/train" in line for line in lines)
    shown = ChoiceData(source=Source(path=str(path)), splits=only, template=PromptTemplate(shots=1))
    with pytest.raises(UserError, match=r"template.shots is 1, but there are 0 training rows"):
        shown.prepare(tokenizer, trains=False)


def test_embedded_world(tokenizer: PreTrainedTokenizerFast) -> None:
    data = ChoiceData(micro=MicroRows(train=10, validation=0, test=5))
    data.prepare(tokenizer)
    asked = corpus.comprehension("test", 5, 0)
    for example, row in zip(data.test_examples, asked, strict=True):
        assert example.source == f"{row['context']}\n问题：{row['question']}"
        assert example.references == tuple(row["answers"])
        assert len(example.choices) == 4 and example.reference in example.choices
    assert corpus.choice("test", 5, 0) == corpus.choice("test", 5, 0)
