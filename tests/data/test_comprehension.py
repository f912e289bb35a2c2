"""CMRC 2018 in both of its nested forms, flat files, and the embedded world; every accepted answer is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.limits import Limits
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.micro import corpus
from lsemrl.types import Example, UserError

Write = Callable[..., str]
WHOLE = Splits(validation_fraction=0.0, test_fraction=0.0)
RELEASE = {
    "version": "v1.0",
    "data": [
        {
            "title": "光荣",
            "id": "DEV_0",
            "paragraphs": [
                {
                    "id": "DEV_0",
                    "context": "由光荣开发。",
                    "qas": [
                        {
                            "id": "DEV_0_QUERY_0",
                            "question": "谁开发？",
                            "answers": [{"text": "光荣", "answer_start": 1}, {"text": "由光荣", "answer_start": 0}],
                        },
                        {
                            "id": "DEV_0_QUERY_1",
                            "question": "做什么？",
                            "answers": [{"text": "开发", "answer_start": 3}],
                        },
                    ],
                }
            ],
        }
    ],
}


def train(tokenizer: PreTrainedTokenizerFast, path: str, **source: Any) -> list[Example]:
    data = ComprehensionData(
        source=Source(path=path, **source), splits=WHOLE, limits=Limits(max_prompt_tokens=5000, max_target_tokens=2000)
    )
    data.prepare(tokenizer)
    return data.train_examples


def test_questions_on_the_passage_of_a_shot_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, write: Write
) -> None:
    rows = [
        {"context": f"第{at}段。", "question": question, "answers": ["段"]}
        for at in range(3)
        for question in ("谁？", "何？")
    ]
    data = ComprehensionData(
        source=Source(path=write("rows.jsonl", rows)),
        splits=WHOLE,
        template=PromptTemplate(template="{context}{question}", shots=1),
    )
    line = data.prepare(tokenizer)[0]
    assert "4 rows, 2 rows left out that prompts show" in line and data.report["train"]["shown_rows"] == 2
    assert len({example.prompt.partition("段。")[0] for example in data.train_examples}) == 1


def test_a_question_may_be_asked_without_its_passage(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = [{"context": "第1段。", "question": "谁？", "answers": ["段"]}]
    data = ComprehensionData(
        source=Source(path=write("rows.jsonl", rows)), splits=WHOLE, template=PromptTemplate(template="问：{question}")
    )
    data.prepare(tokenizer)
    assert data.train_examples[0].prompt == "<|user|>问：谁？<|assistant|>"


def test_release_form(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    first, second = train(tokenizer, write("dev.json", json.dumps(RELEASE)))
    assert (first.id, first.source, first.references) == ("DEV_0_QUERY_0", "由光荣开发。\n谁开发？", ("光荣", "由光荣"))
    assert first.prompt == "<|user|>由光荣开发。\n问题：谁开发？<|assistant|>"
    assert (second.id, second.references) == ("DEV_0_QUERY_1", ("开发",))


def test_trial_form_of_the_real_file(tokenizer: PreTrainedTokenizerFast, real_data: Path) -> None:
    path = real_data / "cmrc2018_trial_sample.json"
    expected = [
        (qa["query_id"], f"{row['context_text'].strip()}\n{qa['query_text'].strip()}", tuple(qa["answers"]))
        for row in json.loads(path.read_text(encoding="utf-8"))
        for qa in row["qas"]
    ]
    examples = train(tokenizer, str(path))
    assert len(examples) == 391
    for example, (id, source, answers) in zip(examples, expected, strict=True):
        assert (example.id, example.source) == (id, source)
        assert example.references == tuple(answer.strip() for answer in answers)


def test_squad_form_of_a_real_file_in_english(tokenizer: PreTrainedTokenizerFast, real_data: Path) -> None:
    path = real_data / "xquad_en.json"
    if not path.is_file():
        pytest.skip("XQuAD is not among the real data files")
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    expected = [
        (
            qa["id"],
            f"{passage['context'].strip()}\n{qa['question'].strip()}",
            tuple(each["text"] for each in qa["answers"]),
        )
        for article in articles
        for passage in article["paragraphs"]
        for qa in passage["qas"]
    ]
    examples = train(tokenizer, str(path))
    assert [(each.id, each.source, each.references) for each in examples] == expected and len(examples) == 1190


def test_questions_on_one_passage_stay_together(tokenizer: PreTrainedTokenizerFast, real_data: Path) -> None:
    data = ComprehensionData(
        source=Source(path=str(real_data / "cmrc2018_trial_sample.json")),
        splits=Splits(validation_fraction=0.2, test_fraction=0.2, cold_start_count=60, part="rl"),
    )
    data.prepare(tokenizer)
    passages = [
        {example.source.rsplit("\n", 1)[0] for example in rows}
        for rows in (data.train_examples, data.validation_examples, data.test_examples)
    ]
    assert all(passages)
    assert not (passages[0] & passages[1] or passages[0] & passages[2] or passages[1] & passages[2])


def test_real_flat_file(tokenizer: PreTrainedTokenizerFast, real_data: Path) -> None:
    path = real_data / "tibetan_qa.jsonl"
    data = ComprehensionData(source=Source(path=str(path)), splits=WHOLE, limits=Limits(max_prompt_tokens=9000))
    data.prepare(tokenizer)
    rows = {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    report = data.report["train"]
    assert report["rows"] + report["targets_skipped"] + report["prompts_skipped"] == len(rows) == 200
    for example in data.train_examples:
        assert example.references == tuple(answer.strip() for answer in rows[example.id]["answers"])


@pytest.mark.parametrize("answers", ["甲", ["甲"], {"text": ["甲"], "answer_start": [0]}])
def test_flat_forms_of_answers(tokenizer: PreTrainedTokenizerFast, write: Write, answers: object) -> None:
    rows = [{"id": "1", "context": "甲乙", "question": "谁？", "answers": answers}]
    (example,) = train(tokenizer, write("flat.jsonl", rows))
    assert example.references == ("甲",)


@pytest.mark.parametrize(
    ("answers", "written"),
    [
        ("{'text': array(['甲', '乙'], dtype=object), 'answer_start': array([0, 1])}", 3),
        ("['甲' '乙']", 3),
        ("['甲' '乙']", 1),
        ("[甲]", 3),
    ],
)
def test_answers_that_a_table_holds_as_written_lists_are_told(
    tokenizer: PreTrainedTokenizerFast, write: Write, answers: str, written: int
) -> None:
    rows = [{"context": f"甲乙{i}", "question": "谁？", "answers": answers if i < written else "甲"} for i in range(3)]
    data = ComprehensionData(
        source=Source(path=write("table.jsonl", rows)), splits=Splits(validation_fraction=0.0, test_fraction=1.0)
    )
    lines = data.prepare(tokenizer, trains=False)
    told = [line for line in lines if "lists or dictionaries written as a text" in line]
    assert len(told) == ("'" in answers and written == 3)
    assert all("warning: 3 of 3 outputs" in line and "table.jsonl:1" in line for line in told)


def test_bad_question_is_named_and_only_it_is_skipped(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    broken = json.loads(json.dumps(RELEASE))
    broken["data"][0]["paragraphs"][0]["qas"][1]["answers"] = []
    path = write("dev.json", json.dumps(broken, indent=1))
    with pytest.raises(UserError, match=r"dev.json:4#2 \(DEV_0_QUERY_1\): field 'answers' is empty"):
        train(tokenizer, path)
    assert [example.id for example in train(tokenizer, path, on_bad_row="skip")] == ["DEV_0_QUERY_0"]
    written = json.loads(Path(f"{path}.skipped.jsonl").read_text(encoding="utf-8"))
    assert json.loads(written["raw"])["id"] == "DEV_0_QUERY_1"


def test_nesting_that_is_neither_form(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    with pytest.raises(UserError, match=r"odd.json:1.*is not nested as CMRC 2018 is"):
        train(tokenizer, write("odd.json", json.dumps([{"context": "甲", "qas": ["谁？"]}])))


def test_embedded_world(tokenizer: PreTrainedTokenizerFast) -> None:
    data = ComprehensionData(micro=MicroRows(train=10, validation=0, test=5))
    data.prepare(tokenizer)
    for example, row in zip(data.test_examples, corpus.comprehension("test", 5, 0), strict=True):
        assert example.prompt == f"<|user|>{row['context']}\n问题：{row['question']}<|assistant|>"
        assert example.source == f"{row['context']}\n{row['question']}"
        assert example.references == tuple(row["answers"])
