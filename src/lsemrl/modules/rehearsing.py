"""Text that a base model writes by itself: shown where a user's turn begins, it writes what users ask, and answers it.

A model without a chat template writes from where its texts begin. (Magpie, arXiv 2406.08464, found that aligned models
do so; 2605.26097 that KL to the base on such text keeps what it knew.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lsemrl.canonical import canonical
from lsemrl.data.collate import complete_tokenizer, padded, prompt_ids, sequences_of
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.rehearsal import Rehearsed
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import Sampling, sample
from lsemrl.types import Example, PromptBatch, Rollouts, UserError

_MARK = "⁂rehearsal⁂"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What stands around a user's words.

    Attributes:
        before: Tokens up to where they begin.
        after: Tokens from where they end to where the answer begins; none where a model has no turns.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def turn_of(policy: Policy) -> Turn:
    """What stands around a user's words in the policy's chat template; BOS alone where it has none.

    Raises:
        UserError: The template does not show the user's words as they are, or texts begin with nothing.
    """
    tokenizer = policy.tokenizer
    complete_tokenizer(tokenizer)
    if not tokenizer.chat_template:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return Turn(before=(int(first),), after=())
    written = PromptTemplate(template="{source}").render(tokenizer, {"source": _MARK})
    parts = written.split(_MARK)
    if len(parts) != 2 or not parts[0]:
        raise UserError(
            f"the chat template of {policy.settings.model!r} does not show a user's words once, behind a mark, so that "
            "the model cannot be asked to write them; give --prompts and --rows 0"
        )
    before, after = prompt_ids(tokenizer, parts)
    return Turn(before=tuple(before), after=tuple(after))


def write_prompts(policy: Policy, turn: Turn, sampling: Sampling, count: int, seed: int) -> tuple[list[list[int]], int]:
    """Users' words as the base imagines them.

    Returns:
        Their tokens, and how many more were cut at the length limit.
    """
    begun = Example(id="", prompt="", source="", references=("",))
    rollouts = _drawn(policy, [begun], [turn.before], replace(sampling, num_generations=count), seed, turn.after[:1])
    ids = _said(rollouts)
    ended = rollouts.ended_N.tolist()
    return [row[:-1] for row, end in zip(ids, ended, strict=True) if end], ended.count(False)


def write_answers(
    policy: Policy, turn: Turn, asked: Sequence[Sequence[int]], sampling: Sampling, seed: int, *, own: bool
) -> Iterator[tuple[Rehearsed, bool]]:
    """The base's answer to each of users' words, and whether it came to its end.

    Args:
        policy: The base.
        turn: What stands around the words.
        asked: Their tokens.
        sampling: How answers are drawn.
        seed: Of the drawing.
        own: Whether the words are the user's own, rather than the base's.
    """
    prompts = [(*turn.before, *words, *turn.after) for words in asked]
    texts = [str(policy.tokenizer.decode([*words], skip_special_tokens=True)).strip() for words in asked]
    examples = [Example(id="", prompt=text, source=text, references=("",)) for text in texts]
    rollouts = _drawn(policy, examples, prompts, replace(sampling, num_generations=1), seed)
    said = zip(prompts, texts, rollouts.completions, _said(rollouts), strict=True)
    for prompt, text, completion, ids in said:
        row = Rehearsed(
            prompt=text,
            response=completion.text,
            prompt_ids=prompt,
            given=len(prompt) if own else len(turn.before),
            answer_ids=tuple(ids),
        )
        yield row, completion.ended


def why_not(row: Rehearsed, ended: bool, known: set[str]) -> str | None:
    """Why a row is not kept; None if it is. `known` takes the texts of those that are."""
    if not ended:
        return "the answer did not end"
    if not row.response.strip() or (row.given < len(row.prompt_ids) and not row.prompt):
        return "nothing was said"
    text = text_of(row)
    if text in known:
        return "it was there already"
    known.add(text)
    return None


def text_of(row: Rehearsed) -> str:
    """What rows that are alike have in common: the prompt, or the text where there is no prompt."""
    return canonical(row.prompt or row.response)


@torch.no_grad()
def likeliest(policy: Policy, rows: Sequence[Rehearsed], top_k: int, batch_size: int) -> dict[str, Tensor]:
    """The base's `top_k` likeliest tokens at each token of the answers: ids int32 and logprobs float32 [tokens, K]."""
    found: dict[str, list[Tensor]] = {"ids": [], "logprobs": []}
    device = next(policy.parameters()).device
    with policy.inference():
        for at in range(0, len(rows), batch_size):
            part = rows[at : at + batch_size]
            sequences = sequences_of([(row.prompt_ids, row.answer_ids) for row in part], device)
            logits_of, tokens = policy.predictions(sequences), int(sequences.completion_mask_NT.sum())
            for start in range(0, tokens, 256):
                logits_CV = logits_of(slice(start, min(start + 256, tokens)))
                logprobs_CK, ids_CK = logits_CV.log_softmax(dim=-1).topk(min(top_k, logits_CV.shape[1]), dim=-1)
                found["ids"].append(ids_CK.int().cpu())
                found["logprobs"].append(logprobs_CK.cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in found.items()}


def _drawn(
    policy: Policy,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    stops: Sequence[int] = (),
) -> Rollouts:
    ids, mask = padded(prompts, left=True)
    none = torch.zeros(len(prompts), 1, dtype=torch.long)
    batch = PromptBatch(
        examples=tuple(examples),
        prompt_ids_BP=ids,
        prompt_mask_BP=mask,
        target_ids_BT=none,
        target_mask_BT=none.bool(),
    )
    return sample(policy, batch.to(next(policy.parameters()).device), sampling, seed, stops=stops)


def _said(rollouts: Rollouts) -> list[list[int]]:
    whole: Any = rollouts.sequences
    pairs = zip(whole.completion_ids_NT.cpu(), whole.completion_mask_NT.cpu(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def reasons(counts: Counter[str]) -> str:
    """Why rows were dropped, most frequent first."""
    return ", ".join(f"{count:,} since {reason}" for reason, count in counts.most_common()) or "none"
