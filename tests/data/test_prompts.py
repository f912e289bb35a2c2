"""A template shows the input, and a chat template is used where there is one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.tokens import prompt_ids
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


SHOTS = (({"source": "早"}, "ཞོགས"), ({"source": "晚"}, "དགོང"))


def test_rows_are_shown_before_as_turns_or_texts(
    tokenizer: PreTrainedTokenizerFast, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    few = PromptTemplate(template="译：{source}", system="译者", shots=2)
    turns = "<|system|>译者<|user|>译：早<|assistant|>ཞོགས<|user|>译：晚<|assistant|>དགོང<|user|>译：你{好}<|assistant|>"
    assert few.render(tokenizer, TEXTS, SHOTS) == turns
    assert few.render(plain_tokenizer, TEXTS, SHOTS) == "译者\n译：早ཞོགས\n\n译：晚དགོང\n\n译：你{好}"
    told = few.describe(tokenizer, TEXTS)
    assert "show template.system and 2 training rows with their answers and '译：{source}'; " in told


def test_a_chat_template_that_leaves_out_earlier_turns_is_told(make_tokenizer: Make) -> None:
    deaf = make_tokenizer(chat_template="<|user|>{{ messages[-1]['content'] }}<|assistant|>")
    with pytest.raises(UserError, match=r"leaves out template.shots \('དགོང'\).* set it to 0, or set template.chat"):
        PromptTemplate(template="译：{source}", shots=2).render(deaf, TEXTS, SHOTS)


class Tomorrow(datetime):
    @classmethod
    def now(cls, *_: Any) -> datetime:
        return datetime(2031, 2, 3)


def test_every_day_is_the_same_to_a_chat_template(make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama's, SmolLM's and gpt-oss's ask for the date: tomorrow no run could be gone on with, nor compared."""
    shows = (
        "\n  {% set day = strftime_now(format) %}\n {{ day }}{% for each in messages %}{{ each.content }}{% endfor %}"
    )
    for code, day in {
        "%d %b %Y": "26 Jul 2024",
        "%-d. %B %y, %H%%": "26. July 24, 00%",
        "%A %-m/%d": "Friday 7/26",
    }.items():
        dated = make_tokenizer(chat_template=shows.replace("format", f"'{code}'"))
        today = render(dated)
        monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
        plain = dated.apply_chat_template([{"role": "user", "content": "翻译成藏文：你{好}"}], tokenize=False)
        assert today == render(dated) == plain.replace(datetime(2031, 2, 3).strftime(code), day) != plain
        monkeypatch.undo()
        told = PromptTemplate(template="{source}").describe(dated, TEXTS)
        assert told.endswith("; the date that they show is always 26 July 2024")
        assert "date" not in PromptTemplate(template="{source}", chat=False).describe(dated, TEXTS)


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


USER_ONLY = (
    "{% for m in messages if m['role'] == 'user' %}<|user|>{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM_ONLY = "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}<|assistant|>"
FIRST_LINE = "{% for m in messages %}{{ m['content'].split('\n')[0] }}{% endfor %}<|assistant|>"
ALWAYS_THINKS = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|><think>\n"


def test_what_the_chat_template_leaves_out_is_told(make_tokenizer: Make) -> None:
    user_only = make_tokenizer(chat_template=USER_ONLY)
    assert render(user_only, template=" 翻译：{source}\n") == "<|user|>翻译：你{好}<|assistant|>"
    with pytest.raises(UserError, match=r"leaves out template.system \('译者'\).*put it into template.template"):
        render(user_only, system="译者")
    for left_out in (SYSTEM_ONLY, FIRST_LINE, "<|assistant|>", "{{ messages[0]['content'][:5] }}"):
        with pytest.raises(UserError, match="leaves out the instruction with its text"):
            render(make_tokenizer(chat_template=left_out), system="译者", template="翻译：\n{source}")
    with pytest.raises(UserError, match=r"leaves out template.system \('翻译'\)"):  # the word stands elsewhere
        render(user_only, system="翻译")


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[7]['content'] }}",
        "{{ 1 // 0 }}",
        "{% for",
        "{{ messages.pop() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_chat_template_that_fails_is_told(make_tokenizer: Make, chat_template: str) -> None:
    with pytest.raises(UserError, match=r"refuses the prompt .*set template.chat to false"):
        render(make_tokenizer(chat_template=chat_template))


def test_a_chat_template_has_limits(make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsemrl.data.chat.SECONDS", 0.5)
    for long, sentence in (
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "after 0.5 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "after 0.5 seconds"),
        ("{{ 'a' * 3000000000 }}", "writes over 1,000,000 characters"),
        ("{{ 'a'.ljust(3000000000) }}", "writes over 1,000,000 characters"),
        ("{{ messages[0]['content'] * 1000000 }}", "writes over 1,000,000 characters"),
    ):
        with pytest.raises(UserError, match=sentence):
            render(make_tokenizer(chat_template=long))


def test_a_trial_that_never_came_to_the_template_says_nothing_of_it(
    make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", object())  # a process that is forked closes it, and cannot
    fresh = make_tokenizer(chat_template="<|user|>{{ messages[0].content }}<|assistant|>{# tried nowhere else #}")
    assert render(fresh) == "<|user|>翻译成藏文：你{好}<|assistant|>"


def test_a_thought_that_is_always_opened_is_closed_and_told(make_tokenizer: Make) -> None:
    always = make_tokenizer(chat_template=ALWAYS_THINKS)
    assert render(always) == "<|user|>翻译成藏文：你{好}<|assistant|><think>\n\n</think>\n\n"
    assert render(always, enable_thinking=True).endswith("<|assistant|><think>")
    told = PromptTemplate(template="{source}").describe(always, TEXTS)
    assert "opens a thought (<think>) although template.enable_thinking is false: it is closed" in told
    told = PromptTemplate(template="{source}", enable_thinking=True).describe(always, TEXTS)
    assert "they open a thought (<think>)" in told


def test_qwen3s_empty_thought_is_no_open_one(make_tokenizer: Make) -> None:
    qwen3 = make_tokenizer(
        chat_template="{{ messages[0]['content'] }}<|assistant|>\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    assert render(qwen3).endswith("<|assistant|>\n<think>\n\n</think>\n\n")
    told = PromptTemplate(template="译：\n{source}", system="s").describe(make_tokenizer(), TEXTS)
    assert told == "prompts by the chat template show template.system and '译：\\n{source}'; the answer follows"
    assert f"show '{'a' * 100} …'; " in PromptTemplate(template="a" * 101 + "{source}").describe(qwen3, TEXTS)
    assert PromptTemplate(template="{source}").describe(qwen3, TEXTS).endswith("the answer follows")
