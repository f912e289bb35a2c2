"""From the texts of a row to the whole prompt, with every special token that belongs in it."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsemrl.data import thoughts
from lsemrl.data.chat import TODAY, shows_date, write_chat
from lsemrl.types import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shot = tuple[Mapping[str, str], str]
PLACEHOLDERS = {"source", "context", "question"}
_SHOWN = 100
"""Characters of a template in a line about it."""


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """What the policy is asked.

    Example:
        `PromptTemplate(template="翻译成藏文：{source}")`
    """

    template: str | None = None
    """The instruction around `{source}` (reading comprehension: `{context}` and `{question}`); null for the task's own.
    Double the braces that are text: `{{` and `}}`."""
    system: str | None = None
    """System message; without a chat template it stands before the instruction, on a line of its own."""
    chat: bool | None = None
    """Use the tokenizer's chat template; null uses it where there is one."""
    enable_thinking: bool = False
    """Handed to the chat template: Qwen3 then writes its thoughts before its answer. Where it is false, a thought that
    the chat template opens all the same is closed, so that the answer follows."""
    shots: int = 0
    """So many training rows are shown before each row, with their answers, as turns of the chat, or where there is no
    chat template as texts with an empty line between them. They are not trained on, nor is any row of their groups, as
    questions on one passage are."""

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise UserError(f"template.shots is {self.shots}; give 0 or more")
        if self.template is None:
            return
        found = _placeholders(self.template)
        unknown = sorted(found - PLACEHOLDERS)
        if unknown:
            raise UserError(
                f"template.template {self.template!r} has the unknown placeholder {{{unknown[0]}}}; use {{source}}, or "
                "{context} and {question}"
            )
        if not found & {"source", "question"}:
            raise UserError(
                f"template.template is {self.template!r}, which shows the policy no input; put {{source}} in it "
                "(reading comprehension: {source}, or {context} and {question})"
            )

    def for_task(self, task: str, own: str, fields: tuple[str, ...]) -> PromptTemplate:
        """This template with the task's `own` wording where it has none.

        Raises:
            UserError: The template has a placeholder that is not among `fields`.
        """
        if self.template is None:
            return replace(self, template=own)
        foreign = sorted(_placeholders(self.template) - set(fields))
        if foreign:
            raise UserError(
                f"template.template {self.template!r} has the placeholder {{{foreign[0]}}}, which {task} rows lack; "
                f"use {' '.join(f'{{{name}}}' for name in fields)}"
            )
        return self

    def render(self, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str], shown: Sequence[Shot] = ()) -> str:
        """The whole prompt, to be tokenized without adding special tokens.

        Args:
            tokenizer: Its chat template is used unless `chat` forbids; otherwise its BOS is put first if it adds one.
            texts: What the placeholders stand for.
            shown: The rows before it, as many as `shots`, each by what the placeholders stand for and its answer.

        Raises:
            UserError: `chat` is true and there is no chat template; see also `chat.write_chat`.
        """
        assert len(shown) == self.shots, "whoever renders must look for them"
        prompt = self._write(tokenizer, texts, shown)
        return prompt if self.enable_thinking or not self._uses_chat(tokenizer) else thoughts.close(prompt)

    def describe(self, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str]) -> str:
        """A line about what prompts show, and whether an answer or a thought follows them."""
        assert self.template is not None, "for_task comes first"
        system = "template.system and " if self.system else ""
        instruction = repr(self.template if len(self.template) <= _SHOWN else f"{self.template[:_SHOWN]} …")
        by = "the chat template" if self._uses_chat(tokenizer) else "template.template"
        mark = thoughts.opened(self._write(tokenizer, texts, ()))
        if mark is None:
            follows = "the answer follows"
        elif self._uses_chat(tokenizer) and not self.enable_thinking:
            follows = (
                f"the template opens a thought ({mark}) although template.enable_thinking is false: it is closed, so "
                "that the answer follows"
            )
        else:
            follows = (
                f"they open a thought ({mark}): the answer of an output is what follows the thought's end, and one "
                "that never ends it has none"
            )
        shots = f"{self.shots} training rows with their answers and " if self.shots else ""
        dated = self._uses_chat(tokenizer) and shows_date(tokenizer)
        date = f"; the date that they show is always {TODAY:%d %B %Y}" if dated else ""
        return f"prompts by {by} show {system}{shots}{instruction}; {follows}{date}"

    def _uses_chat(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return self.chat is not False and bool(tokenizer.chat_template)

    def _write(self, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str], shown: Sequence[Shot]) -> str:
        assert self.template is not None, "for_task comes first"
        instruction = self.template.format_map(texts)
        turns = [(self.template.format_map(asked), said) for asked, said in shown]
        if self._uses_chat(tokenizer):
            return write_chat(tokenizer, self.system, turns, instruction, enable_thinking=self.enable_thinking)
        if self.chat:
            raise UserError(
                f"template.chat is true, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "set template.chat to null, or give the tokenizer one"
            )
        system = f"{self.system}\n" if self.system else ""
        before = "".join(f"{asked}{said}\n\n" for asked, said in turns)
        return f"{bos_of(tokenizer)}{system}{before}{instruction}"


def _placeholders(template: str) -> set[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"template.template {template!r} is not a template ({error}); double the braces that are text"
        ) from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion):
            raise UserError(f"template.template {template!r} formats {{{name}}}; write {{{name}}} alone")
    return {name for _, name, _, _ in parts if name is not None}


def bos_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The BOS token, if the tokenizer starts every text with it."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token
    return bos if isinstance(bos, str) and ids[:1] == [tokenizer.bos_token_id] else ""
