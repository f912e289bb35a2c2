"""What is read and written in one piece: against a model's positions, and what of references an output has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from lsemrl.data.carried import spaced
from lsemrl.data.tokens import prompt_ids, target_ids
from lsemrl.modules.families import reach
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOLD = 0.01
"""Share of references above which it is told that outputs have no room for them."""


def fitting(
    model: str, config: PretrainedConfig, spans: Mapping[str, int], remedy: str = "lower limits.max_prompt_tokens"
) -> list[str]:
    """A line for each of `spans`: what is read and written in one piece, with its tokens.

    Raises:
        UserError: One is longer than the model's positions can be.
    """
    bound = reach(config)
    for what, tokens in spans.items():
        if bound and tokens > bound.most:
            raise UserError(
                f"the {what} comes to {tokens:,} tokens, but policy.model {model!r} has {bound.most:,} positions; "
                f"{remedy} or the length of outputs (max_new_tokens), or name a model with more"
            )
    beyond = {what: bound is not None and tokens > bound.sure for what, tokens in spans.items()}
    return [
        f"{'warning: ' if beyond[what] else ''}the {what}: {tokens:,} of {bound or 'positions without end'}"
        for what, tokens in spans.items()
    ]


def spans_of(
    name: str, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], new: int | None
) -> dict[str, int]:
    """The longest of `examples` with its reference, and the longest prompt that is answered with `new` tokens."""
    prompts = [len(ids) for ids in prompt_ids(tokenizer, [row.prompt for row in examples])]
    said = [row.choices or (row.reference,) for row in examples]
    texts = [(prompt, text) for prompt, own in zip(prompts, said, strict=True) for text in own]
    targets = target_ids(tokenizer, [text for _, text in texts])
    longest = max(prompt + len(target) for (prompt, _), target in zip(texts, targets, strict=True))
    answered = [prompt for prompt, row in zip(prompts, examples, strict=True) if not row.choices]
    return whole_row(name, longest) | (with_answer(name, max(answered), new) if new and answered else {})


def whole_row(name: str, tokens: int) -> dict[str, int]:
    """The span of the longest row that is learned."""
    return {f"longest {name} row": tokens}


def with_answer(name: str, prompt: int, new: int) -> dict[str, int]:
    """The span of the longest prompt that is answered."""
    return {f"longest {name} prompt with {new:,} new tokens": prompt + new}


def cut_short(name: str, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], new: int) -> list[str]:
    """A line where outputs of `new` tokens have no room for what references say; nothing where nearly all fit.

    Args:
        name: Of the rows.
        tokenizer: The policy's.
        examples: The rows, some of which are looked at where there are many.
        new: Longest output, in tokens.
    """
    own = [row.reference for row in spaced([row for row in examples if row.references and not row.choices])]
    over = sum(len(ids) > new for ids in target_ids(tokenizer, own))
    if over <= _TOLD * len(own):
        return []
    return [
        f"warning: {over:,} of {len(own):,} {name} references have more tokens, their end included, than an output may "
        f"have ({new:,}), so that outputs are cut which are right; raise max_new_tokens"
    ]
