"""Text that a base model writes by itself: shown where a user's turn begins, it writes what users ask, and answers it.

A model without a chat template writes from where its texts begin. (Magpie, arXiv 2406.08464, found that aligned models
do so; 2605.26097 that KL to the base on such text keeps what it knew.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsemrl.data.base import TaskData
from lsemrl.data.collate import padded, sequences_of
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.rehearsal import Rehearsed
from lsemrl.data.tokens import complete_tokenizer, prompt_ids, special_ids
from lsemrl.modules.sampling import Sampling
from lsemrl.types import Example, PromptBatch, Rollouts, UserError

if TYPE_CHECKING:
    from lsemrl.modules.policy import Policy

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


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is answered.

    Attributes:
        text: A user's words; "" where a model has no turns.
        ids: The tokens of the whole prompt, what stands around the words included.
        given: How many of them the base did not write.
    """

    text: str
    ids: tuple[int, ...]
    given: int


def given_prompts(policy: Policy, turn: Turn, own: Sequence[str] | TaskData) -> list[Prompt]:
    """Prompts of the user's own: texts, or the training rows of a task, as they would be trained on.

    The longest come first: a batch takes as long as its longest row.

    Raises:
        UserError: The rows cannot be read.
    """
    if isinstance(own, TaskData):
        for line in own.prepare(policy.tokenizer):
            print(line, file=sys.stderr)
        whole = prompt_ids(policy.tokenizer, [example.prompt for example in own.train_examples])
        sources = [example.source for example in own.train_examples]
        texts = [_words(policy, turn, ids) or source for ids, source in zip(whole, sources, strict=True)]
    else:
        texts = [*own]
        whole = [[*turn.before, *ids, *turn.after] for ids in (prompt_ids(policy.tokenizer, texts) if texts else ())]
    pairs = zip(texts, whole, strict=True)
    asked = [Prompt(text=text, ids=tuple(ids), given=len(ids)) for text, ids in pairs]
    return sorted(asked, key=lambda each: len(each.ids), reverse=True)


def _words(policy: Policy, turn: Turn, ids: Sequence[int]) -> str:
    """What a user says in a whole prompt; "" where more than a turn stands around it, such as shots."""
    before, after = list(turn.before), list(turn.after)
    said = ids[len(before) : len(ids) - len(after)]
    if [*before, *said, *after] != list(ids) or not special_ids(policy.tokenizer).isdisjoint(said):
        return ""
    return str(policy.tokenizer.decode(said, skip_special_tokens=True)).strip()


def write_prompts(policy: Policy, turn: Turn, sampling: Sampling, count: int, seed: int) -> tuple[list[Prompt], int]:
    """Users' words as the base imagines them; nothing, where its texts have no turns.

    Returns:
        Those that ended, and how many more were cut at the length limit.
    """
    if not turn.after:
        return [Prompt(text="", ids=turn.before, given=len(turn.before))] * count, 0
    begun = Example(id="", prompt="", source="", references=("",))
    rollouts = _drawn(policy, [begun], [turn.before], replace(sampling, num_generations=count), seed, turn.after[:1])
    ended = rollouts.ended_N.tolist()
    words = [ids[:-1] for ids, end in zip(_said(rollouts), ended, strict=True) if end]
    texts = [str(policy.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in words]
    asked = [
        Prompt(text=text, ids=(*turn.before, *ids, *turn.after), given=len(turn.before))
        for text, ids in zip(texts, words, strict=True)
    ]
    return asked, ended.count(False)


def write_answers(
    policy: Policy, asked: Sequence[Prompt], sampling: Sampling, seed: int
) -> Iterator[tuple[Rehearsed, bool]]:
    """The base's answer to each prompt, and whether it came to its end.

    Args:
        policy: The base.
        asked: The prompts.
        sampling: How answers are drawn.
        seed: Of the drawing.
    """
    examples = [Example(id="", prompt=each.text, source=each.text, references=("",)) for each in asked]
    prompts = [each.ids for each in asked]
    rollouts = _drawn(policy, examples, prompts, replace(sampling, num_generations=1), seed)
    for each, completion, ids in zip(asked, rollouts.completions, _said(rollouts), strict=True):
        row = Rehearsed(
            prompt=each.text, response=completion.text, prompt_ids=each.ids, given=each.given, answer_ids=tuple(ids)
        )
        yield row, completion.ended


@torch.no_grad()
def likeliest(policy: Policy, rows: Sequence[Rehearsed], top_k: int) -> dict[str, Tensor]:
    """The base's `top_k` likeliest tokens at each token of the answers: ids int32 and logprobs float32 [tokens, K]."""
    found: dict[str, list[Tensor]] = {"ids": [], "logprobs": []}
    with policy.inference():
        sequences = sequences_of([(row.prompt_ids, row.answer_ids) for row in rows], next(policy.parameters()).device)
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
    from lsemrl.modules.sampler import sample  # peft, for which words that cannot be do not wait

    ids, mask = padded(prompts, left=True)
    none = torch.zeros(len(prompts), 1, dtype=torch.long)
    batch = PromptBatch(
        examples=tuple(examples), prompt_ids_BP=ids, prompt_mask_BP=mask, target_ids_BT=none, target_mask_BT=none.bool()
    )
    return sample(policy, batch.to(next(policy.parameters()).device), sampling, seed, stops=stops)


def _said(rollouts: Rollouts) -> list[list[int]]:
    whole: Any = rollouts.sequences
    pairs = zip(whole.completion_ids_NT.cpu(), whole.completion_mask_NT.cpu(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]
