"""Thoughts that models write before their answers: where a prompt opens one, and what of an output is its answer.

Rewards, metrics, predictions and `generate` all see what `answers` gives. Which marks make a thought is the model's
own convention, so the common ones are listed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WORDS = ("think", "thinking", "thought", "thoughts", "reason", "reasoning", "seed:think", "reflection", "scratchpad")
_NAMES = [written for word in _WORDS for written in (word, word.capitalize(), word.upper())]
_PAIRS = {
    **{f"<{name}>": f"</{name}>" for name in _NAMES},
    **{f"<|{name}|>": f"<|/{name}|>" for name in _NAMES},
    **{f"[{name}]": f"[/{name}]" for name in _NAMES},
    "◁think▷": "◁/think▷",  # Kimi
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",  # gpt-oss
    "<|channel>thought": "<channel|>",  # Gemma 4
}
"""Opening -> closing mark."""
_CLOSED_AS = {
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel>thought": "\n<channel|>",
}
"""How a thought that holds nothing is closed, where that is not the mark between blank lines."""


def _marks(marks: Sequence[str]) -> str:
    return "|".join(map(regex.escape, marks))


_OPENED = regex.compile(rf"({_marks(list(_PAIRS))})\s*\Z")
_THOUGHT = regex.compile(
    "|".join(rf"{regex.escape(begin)}.*?(?:{regex.escape(end)}|\Z)" for begin, end in _PAIRS.items()), regex.DOTALL
)
_BEGUN_BEFORE = regex.compile(rf"\A.*(?:{_marks(list(_PAIRS.values()))})", regex.DOTALL)


def opened(prompt: str) -> str | None:
    """The mark of the thought that `prompt` leaves open at its end; None if there is none."""
    found = _OPENED.search(prompt)
    return found[1] if found else None


def close(prompt: str) -> str:
    """`prompt` with the thought that it leaves open closed, so that an answer follows; unchanged if there is none."""
    mark = opened(prompt)
    if mark is None:
        return prompt
    return prompt.rstrip() + _CLOSED_AS.get(mark, f"\n\n{_PAIRS[mark]}\n\n")


def answer(text: str, prompt: str = "") -> str:
    """What of an output is its answer: the text without thoughts, whole or unfinished.

    Args:
        text: The output, marks of thoughts included.
        prompt: What it continues; a thought that was left open there goes on in `text`.

    Returns:
        `text` itself where it holds no thought; an empty text where the thought never ends.
    """
    left = _THOUGHT.sub("", (opened(prompt) or "") + text)
    left = _BEGUN_BEFORE.sub("", left)
    return text if left == text else left.strip()


def answers(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[Sequence[int]], prompts: Sequence[str]) -> list[str]:
    """Decode N outputs without special tokens and take their answers.

    Args:
        tokenizer: The policy's.
        outputs: Token ids of each output.
        prompts: What each continues.
    """
    # Some mark thoughts by special tokens, which decoding would drop with all others before the marks are looked at.
    marks = "\n".join([*_PAIRS, *_PAIRS.values()])
    special = {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content in marks
    }

    def decode(ids: Sequence[int]) -> str:
        pieces = []
        for mark, run in itertools.groupby(ids, key=special.get):
            own = list(run)
            pieces.append(mark * len(own) if mark else str(tokenizer.decode(own, skip_special_tokens=True)))
        return "".join(pieces)

    return [answer(decode(ids), prompt) for ids, prompt in zip(outputs, prompts, strict=True)]
