"""Columns within columns, and turns by their role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lsemrl.data.columns import value_of
from lsemrl.data.records import Fields, read_records
from lsemrl.data.sources import Source
from lsemrl.data.text import PlainText
from lsemrl.errors import UserError

Write = Callable[..., str]
ASKED = {"role": "user", "content": "翻译"}
SAID = {"role": "assistant", "content": "ཀ"}


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"translation": {"zh": "一", "bo": "ཀ"}}, "translation.bo", "ཀ"),
        ({"translation.bo": "whole", "translation": {"bo": "within"}}, "translation.bo", "whole"),
        ({"a.b": {"c.d": "x"}}, "a.b.c.d", "x"),
        ({"translation": {"zh": "一"}}, "translation.bo", None),
        ({"translation": None}, "translation.bo", None),
        ({"translation": "text"}, "translation.bo", None),
        ({"texts": ["a", "b"]}, "texts.1", "b"),
        ({"texts": ["a"]}, "texts.1", None),
        ({"messages": [ASKED, SAID]}, "messages.user", "翻译"),
        ({"messages": [ASKED, SAID]}, "messages.assistant", "ཀ"),
        ({"prompt": [ASKED], "completion": [SAID]}, "completion.assistant", "ཀ"),
        ({"data": {"messages": [ASKED, SAID]}}, "data.messages.assistant", "ཀ"),
        (
            {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
            "conversations.gpt",
            "答",
        ),
        ({"messages": [{"role": "system", "content": "短"}, ASKED, SAID]}, "messages.user", "短\n翻译"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "messages.user",
            "ab",
        ),
        ({"messages": [{"role": "developer", "content": "短"}, ASKED, SAID]}, "messages.user", "短\n翻译"),
        ({"messages": [{"role": "zh", "content": "一"}, {"role": "bo", "content": "ཀ"}]}, "messages.bo", "ཀ"),
        ({"messages": [ASKED]}, "messages.assistant", None),
        ({"messages": []}, "messages.user", None),
    ],
)
def test_a_dotted_name_leads_to_its_value(row: dict[str, Any], column: str, expected: object) -> None:
    assert value_of(row, column) == expected


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASKED, SAID, ASKED, SAID], "has 2 turns of 'user'"),
        ([SAID, ASKED], "has a turn of 'assistant' before that of 'user'"),
        ([ASKED, {"role": "tool", "content": "x"}, SAID], "has a turn of 'tool' before that of 'assistant'"),
        ([{"role": "function", "content": "x"}, ASKED, SAID], "has a turn of 'function' before that of 'user'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAID], "more than text"),
    ],
)
def test_turns_that_are_no_question_and_answer_are_bad_rows(turns: list[Any], reason: str, write: Write) -> None:
    path = write("rows.jsonl", [{"messages": [ASKED, SAID]}, {"messages": turns}])
    columns = {"zh": "messages.user", "bo": "messages.assistant"}
    with pytest.raises(UserError, match=f"rows.jsonl:2.*{reason}"):
        read_records(Source(path=path, columns=columns), Fields(inputs=("zh",), target="bo"))
    records, skipped = read_records(
        Source(path=path, columns=columns, on_bad_row="skip"), Fields(inputs=("zh",), target="bo")
    )
    assert (len(records), skipped) == (1, 1)


def test_the_names_that_a_file_without_the_column_is_told_of_work(write: Write) -> None:
    nested = write("nested.jsonl", [{"id": "0", "translation": {"zh": "一", "bo": "ཀ"}}])
    turns = write("turns.jsonl", [{"messages": [ASKED, SAID]}])
    for path, names in (
        (nested, ("translation.zh", "translation.bo")),
        (turns, ("messages.user", "messages.assistant")),
    ):
        with pytest.raises(UserError, match=f"'{names[0]}', '{names[1]}'.*columns: {{zh: "):
            read_records(Source(path=path), Fields(inputs=("zh",), target="bo"))
        source = Source(path=path, columns=dict(zip(("zh", "bo"), names, strict=True)))
        (record,), _ = read_records(source, Fields(inputs=("zh",), target="bo"))
        assert record.targets == ("ཀ",)


def test_plain_text_may_be_nested(write: Write) -> None:
    path = write("text.jsonl", [{"body": {"zh": "你好。再见。"}}])
    (example,) = PlainText(path=path, column="body.zh").examples()
    assert example.prompt == "你好。"
