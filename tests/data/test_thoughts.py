"""What of an output is its answer, whichever marks a model thinks between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from lsemrl.data.thoughts import answer, answers, close, opened

PAIRS = [
    ("<think>", "</think>"),
    ("<Thought>", "</Thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]


@pytest.mark.parametrize(("begin", "end"), PAIRS)
def test_a_thought_is_taken_off_whole_or_unfinished(begin: str, end: str) -> None:
    assert answer(f"{begin}\n我想想\n{end}\n\nདེབ་") == "དེབ་"
    assert answer(f"{begin}\n我想想") == ""
    assert answer(f"དེབ་ {begin}对吗{end}") == "དེབ་"
    assert answer(f"我想想\n{end}དེབ་", f"p{begin}\n") == "དེབ་"
    assert answer("我想想", f"p{begin}\n") == ""
    assert answer(f"我想想{end}དེབ་") == "དེབ་"  # begun without its mark
    assert answer(f"{begin}a{begin}b{end}c{end}དེབ་") == "དེབ་"


def test_a_text_without_a_thought_stays_as_it_is() -> None:
    for text in ("  དེབ་ \n", "a < think > b", "", "\n"):
        assert answer(text, "翻译：<think>怎么说") == text


@pytest.mark.parametrize(("begin", "end"), PAIRS)
def test_an_open_thought_is_closed_and_a_closed_one_left(begin: str, end: str) -> None:
    assert opened(f"问{begin}\n") == begin
    closed = close(f"问{begin}\n")
    assert closed.startswith(f"问{begin}")
    assert closed.rstrip().endswith(end)
    assert opened(closed) is None
    assert close(closed) == closed
    assert answer("དེབ་", closed) == "དེབ་"
    assert close(f"什么是{begin}？\n") == f"什么是{begin}？\n"


def test_marks_that_are_special_tokens_are_seen(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer()
    for mark in ("<|channel|>", "<|message|>", "<|start|>"):
        tokenizer.add_tokens([AddedToken(mark, special=True)], special_tokens=True)
    said = "<|channel|>analysis<|message|>想<|end|><|start|>assistant<|channel|>final<|message|>དེབ་<|end|>"
    outputs = [tokenizer(text)["input_ids"] for text in (said, "<|user|>ཀ<|end|>", "<|channel|>analysis<|message|>想")]
    assert answers(tokenizer, outputs, ["p"] * 3) == ["དེབ་", "ཀ", ""]
