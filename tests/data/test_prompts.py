"""A template shows the input, and a chat template is used where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lsemrl.data.collate import prompt_ids
from lsemrl.data.prompts import PromptTemplate
from lsemrl.types import UserError

Make = Callable[..., PreTrainedTokenizerFast]
TEXTS = {"source": "你{好}"}


def render(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> str:
    return PromptTemplate(**({"template": "翻译成藏文：{source}"} | settings)).render(tokenizer, TEXTS)


def test_chat_template_is_used_where_there_is_one(
    tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert render(tokenizer) == "<|user|>翻译成藏文：你{好}<|assistant|>"
    assert render(tokenizer, chat=False) == render(plain_tokenizer) == "翻译成藏文：你{好}"
    with pytest.raises(UserError, match=r"template.chat is true"):
        render(plain_tokenizer, chat=True)


def test_system_message(tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert render(tokenizer, system="译者") == "<|system|>译者<|user|>翻译成藏文：你{好}<|assistant|>"
    assert render(plain_tokenizer, system="译者") == "译者\n翻译成藏文：你{好}"


def test_thinking_is_off_unless_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "<think>" not in render(tokenizer)
    assert render(tokenizer, enable_thinking=True).endswith("<think>")


def test_bos_is_there_once(make_tokenizer: Make) -> None:
    with_bos = make_tokenizer(bos_token="<|user|>", chat_template=None)
    assert not render(with_bos).startswith("<|user|>")  # named, but the tokenizer adds none
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", with_bos.bos_token_id)]
    )
    (ids,) = prompt_ids(with_bos, [render(with_bos)])
    assert ids.count(with_bos.bos_token_id) == 1
    assert ids[0] == with_bos.bos_token_id


def test_chat_template_that_refuses_is_told(make_tokenizer: Make) -> None:
    strict = make_tokenizer(chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(UserError, match="no system role"):
        render(strict, system="译者")


def test_braces_are_doubled(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert render(plain_tokenizer, template='{{"text": "{source}"}}') == '{"text": "你{好}"}'


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("翻译：{sorce}", "unknown placeholder {sorce}"),
        ("翻译：{}", "unknown placeholder {}"),
        ("翻译成藏文", "no input"),
        ("{context}", "no input"),
        ("{source!r}", "formats {source}"),
        ("{source:>9}", "formats {source}"),
        ("{source", "not a template"),
    ],
)
def test_impossible_templates(template: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        PromptTemplate(template=template)
    assert sentence in str(error.value)


def test_placeholders_of_another_task() -> None:
    template = PromptTemplate(template="{context}\n{question}")
    assert template.for_task("comprehension", "", ("source", "context", "question")) is template
    with pytest.raises(UserError, match=r"\{context\}, which headline rows lack; use \{source\}"):
        template.for_task("headline", "", ("source",))
    assert PromptTemplate(system="s").for_task("headline", "题：{source}", ("source",)).template == "题：{source}"
