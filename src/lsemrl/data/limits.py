"""Keeps prompts and targets within their lengths in tokens, and counts every row that this touches.

Only the first input is ever cut, at its end and between characters as a reader sees them, so that no byte-level token
is left with half a character. A target is never cut: half a reference would be learned, or rewarded, as a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import regex

from lsemrl.data.records import Record
from lsemrl.data.tokens import prompt_ids, target_ids
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
_COUNTS = (
    "rows", "prompts_over", "prompts_truncated", "prompts_skipped", "longest_prompt", "longest_prompt_kept",
    "longest_row_kept", "targets_over", "targets_skipped", "longest_target",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The longest prompts and targets, in tokens of the policy."""

    max_prompt_tokens: int = 2048
    """Longest prompt, instruction and chat markers included."""
    max_target_tokens: int = 256
    """Longest output to learn from or be compared with, EOS included. Rows with a longer one are left out of training,
    and kept but counted in validation and test."""
    on_long: Literal["skip", "truncate", "error"] = "skip"
    """Longer prompts: leave the row out, cut the end of its source, or stop."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_target_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"limits.{name} is {getattr(self, name)}; give 1 or more")
        if self.on_long not in ("skip", "truncate", "error"):
            raise UserError(f"limits.on_long is {self.on_long!r}; choose skip, truncate or error")


UNLIMITED = Limits(max_prompt_tokens=2**30, max_target_tokens=2**30)
"""Nothing is left out or cut for its length."""


def to_examples(
    records: Sequence[Record],
    render: Callable[[Mapping[str, str]], str],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    *,
    training: bool,
    pairs: bool = False,
) -> tuple[list[Example], dict[str, int], list[tuple[int, int]]]:
    """Write the prompts of `records` and apply `limits`.

    Args:
        records: Rows of one split.
        render: The whole prompt for the inputs of a row.
        tokenizer: Counts the tokens.
        limits: What is too long, and what to do then.
        training: Leave out rows whose target is too long.
        pairs: Whether input and output say the same in two languages.

    Returns:
        The examples, whose `source` is what the prompt shows of it; counts: rows (kept), prompts_over (the sum of
        prompts_truncated and prompts_skipped), longest_prompt, longest_prompt_kept, longest_row_kept (prompt and
        target), targets_over, targets_skipped, longest_target; and the tokens of each example's prompt and target.

    Raises:
        UserError: Something is too long where `on_long` is error, or no row is short enough.
    """
    examples: list[Example] = []
    lengths: list[tuple[int, int]] = []
    counts = dict.fromkeys(_COUNTS, 0)
    for record, prompt, prompt_length, target_length in _measured(records, render, tokenizer):
        counts["longest_prompt"] = max(counts["longest_prompt"], prompt_length)
        counts["longest_target"] = max(counts["longest_target"], target_length)
        target_over, prompt_over = target_length > limits.max_target_tokens, prompt_length > limits.max_prompt_tokens
        if limits.on_long == "error" and (target_over or prompt_over):
            what, length = ("prompt", prompt_length) if prompt_over else ("target", target_length)
            raise UserError(
                f"{record.place}: the {what} has {length} tokens, over limits.max_{what}_tokens "
                f"{getattr(limits, f'max_{what}_tokens')}; raise it, or set limits.on_long to skip or truncate"
            )
        counts["targets_over"] += target_over
        if target_over and training:
            counts["targets_skipped"] += 1
            continue
        inputs = record.inputs
        if prompt_over:
            counts["prompts_over"] += 1
            cut = _cut(inputs, render, tokenizer, limits.max_prompt_tokens) if limits.on_long == "truncate" else None
            counts["prompts_skipped" if cut is None else "prompts_truncated"] += 1
            if cut is None:
                continue
            inputs, prompt = cut, render(cut)
            prompt_length = len(prompt_ids(tokenizer, [prompt])[0])
        counts["longest_prompt_kept"] = max(counts["longest_prompt_kept"], prompt_length)
        counts["longest_row_kept"] = max(counts["longest_row_kept"], prompt_length + target_length)
        lengths.append((prompt_length, target_length))
        source = "\n".join(inputs.values())
        examples.append(
            Example(
                id=record.id,
                prompt=prompt,
                source=source,
                references=record.targets,
                choices=record.choices,
                pair=pairs,
            )
        )
    counts["rows"] = len(examples)
    if records and not examples:
        raise UserError(
            f"limits.max_prompt_tokens {limits.max_prompt_tokens} and limits.max_target_tokens "
            f"{limits.max_target_tokens} leave none of {len(records)} rows (longest prompt "
            f"{counts['longest_prompt']}, longest target {counts['longest_target']}); raise them"
        )
    return examples, counts, lengths


def _measured(
    records: Sequence[Record], render: Callable[[Mapping[str, str]], str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Record, str, int, int]]:
    """Each record with its prompt and the lengths of prompt and target, tokenized many at a time."""
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        prompts = [render(record.inputs) for record in chunk]
        prompt_lengths = map(len, prompt_ids(tokenizer, prompts))
        targets = target_ids(tokenizer, [next(iter(record.targets), "") for record in chunk])
        target_lengths = (len(ids) if record.targets else 0 for record, ids in zip(chunk, targets, strict=True))
        yield from zip(chunk, prompts, prompt_lengths, target_lengths, strict=True)


def _cut(
    inputs: Mapping[str, str],
    render: Callable[[Mapping[str, str]], str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
) -> dict[str, str] | None:
    """`inputs` with the first cut to the longest beginning whose prompt fits; None if not one character fits."""
    name, text = next(iter(inputs.items()))
    ends = [match.end() for match in regex.finditer(r"\X", text)]
    fits, over = 0, len(ends)
    while over - fits > 1:
        middle = (fits + over) // 2
        length = len(prompt_ids(tokenizer, [render({**inputs, name: text[: ends[middle - 1]]})])[0])
        fits, over = (middle, over) if length <= limit else (fits, middle)
    return {**inputs, name: text[: ends[fits - 1]]} if fits else None


def describe(name: str, counts: Mapping[str, int], limits: Limits) -> str:
    """One line about what became of the rows of one split."""
    parts = [f"{counts['rows']:,} rows"]
    if counts.get("bad_rows"):
        parts.append(f"{counts['bad_rows']:,} bad rows skipped")
    if counts.get("shared_rows"):
        parts.append(f"{counts['shared_rows']:,} rows left out that share text with held-out rows")
    if counts.get("shown_rows"):
        parts.append(f"{counts['shown_rows']:,} rows left out that prompts show, or rows like them")
    fates = [how for how in ("truncated", "skipped") if counts[f"prompts_{how}"]]
    dealt = " and ".join([f"{counts[f'prompts_{how}']:,} {how}" for how in fates] if len(fates) > 1 else fates)
    for what, limit, fate in (
        ("prompt", limits.max_prompt_tokens, dealt),
        ("target", limits.max_target_tokens, "skipped" if counts["targets_skipped"] else "kept"),
    ):
        if not counts[f"longest_{what}"]:  # of rows without targets
            continue
        over = counts[f"{what}s_over"]
        line = f"{over:,} {what}s over {limit:,} tokens (longest {counts[f'longest_{what}']:,})"
        parts.append(f"{line} {fate}" if over else line)
    return f"{name}: {', '.join(parts)}"
