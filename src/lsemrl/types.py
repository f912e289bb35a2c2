"""The records that pass between rooms, and the glossary of their dimensions.

B prompts, G group (completions per prompt), N = B * G completions ordered prompt by prompt, P prompt tokens,
T completion tokens, H hidden, V vocabulary. A mask is True where it counts. Prompts are padded on the left,
completions on the right. `old_` names the policy that sampled, `ref_` the KL reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsemrl.errors import UserError as UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a task, ready to be shown to the policy.

    Attributes:
        id: Names the row in logs and reports.
        prompt: The whole prompt as text, chat template applied.
        source: What the prompt is about: a sentence, an article, or a passage with its question.
        references: The accepted outputs; the first is trained on. None where RL is given a source alone.
        choices: What a multiple choice gives to choose from, the first reference among it; empty for other tasks.
        pair: Whether source and references say the same in two languages, so that a copy of the source is no answer.
    """

    id: str
    prompt: str
    source: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    pair: bool = False

    @property
    def reference(self) -> str:
        """The first accepted output, "" where none is known."""
        return self.references[0] if self.references else ""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """N completions behind B prompts: what the policy scores.

    Attributes:
        prompt_ids_BP: int64, padded on the left.
        prompt_mask_BP: bool.
        prompt_of_N: int64 in [0, B), never falling: the prompt that each completion answers.
        completion_ids_NT: int64, padded on the right.
        completion_mask_NT: bool, True up to and including the first EOS.
        prefix: Leading tokens that all prompts share and that are computed once; 0 computes every prompt whole. Above
            0 only where every prompt has one completion.
    """

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    prompt_of_N: Tensor
    completion_ids_NT: Tensor
    completion_mask_NT: Tensor
    prefix: int = 0

    def __len__(self) -> int:
        return len(self.completion_ids_NT)

    def select(self, strips: Sequence[Sequence[int]]) -> Sequences:
        """Some of the completions, without the columns in which all of them are padding.

        Column t of a completion stays column t, so per-token tensors of the whole are cut to the width that is left.

        Args:
            strips: Row numbers; each strip holds completions of one prompt, which comes with it. A prompt whose
                completions are in several strips comes as often.
        """
        import torch  # settings name these records too, and are read before what takes seconds

        device = self.prompt_of_N.device
        rows = torch.tensor([row for strip in strips for row in strip], device=device)
        prompts = self.prompt_of_N[torch.tensor([strip[0] for strip in strips], device=device)]
        prompt, completion = self.prompt_mask_BP[prompts], self.completion_mask_NT[rows]
        first = prompt.shape[1] - int(prompt.sum(1).max())
        longest = int(completion.sum(1).max())
        return Sequences(
            prompt_ids_BP=self.prompt_ids_BP[prompts, first:],
            prompt_mask_BP=prompt[:, first:],
            prompt_of_N=torch.tensor([at for at, strip in enumerate(strips) for _ in strip], device=device),
            completion_ids_NT=self.completion_ids_NT[rows, :longest],
            completion_mask_NT=completion[:, :longest],
        )

    @property
    def repeated(self) -> Sequences:
        """The same with a whole prompt of its own for every completion, B = N."""
        import torch

        return replace(
            self,
            prompt_ids_BP=self.prompt_ids_BP[self.prompt_of_N],
            prompt_mask_BP=self.prompt_mask_BP[self.prompt_of_N],
            prompt_of_N=torch.arange(len(self), device=self.prompt_of_N.device),
            prefix=0,
        )


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """B examples as tensors.

    Attributes:
        examples: The B rows.
        prompt_ids_BP: int64, padded on the left.
        prompt_mask_BP: bool.
        target_ids_BT: int64, the first reference and one EOS, padded on the right.
        target_mask_BT: bool.
    """

    examples: tuple[Example, ...]
    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    target_ids_BT: Tensor
    target_mask_BT: Tensor

    @property
    def sequences(self) -> Sequences:
        """Each prompt with its first reference, for supervised training and scoring."""
        import torch

        return Sequences(
            prompt_ids_BP=self.prompt_ids_BP,
            prompt_mask_BP=self.prompt_mask_BP,
            prompt_of_N=torch.arange(len(self.examples), device=self.prompt_ids_BP.device),
            completion_ids_NT=self.target_ids_BT,
            completion_mask_NT=self.target_mask_BT,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """The same batch on `device`; Lightning calls this."""
        return replace(
            self,
            prompt_ids_BP=self.prompt_ids_BP.to(device, non_blocking=non_blocking),
            prompt_mask_BP=self.prompt_mask_BP.to(device, non_blocking=non_blocking),
            target_ids_BT=self.target_ids_BT.to(device, non_blocking=non_blocking),
            target_mask_BT=self.target_mask_BT.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One output of the policy, as rewards and metrics see it.

    Attributes:
        text: The answer: the decoded output without the token that ended it, special tokens and thoughts (see
            `data.thoughts`); bytes that are not UTF-8 read as U+FFFD.
        ended: Whether the policy stopped by itself with an EOS, rather than being cut at the length limit.
        example: What it answers.
    """

    text: str
    ended: bool
    example: Example


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """G completions for each of B prompts, N = B * G, siblings next to each other.

    Attributes:
        completions: The N outputs as text.
        sequences: The same as tokens, each prompt once.
        ended_N: bool, which completions stopped by themselves.
        logprobs_NT: float32, of each token as it was drawn, over the whole vocabulary at the temperature that drew it,
            in nats; 0 in padding, and where the likeliest token was taken.
        num_generations: G.
        slots: Tokens that were drawn, those of completions that had ended included.
    """

    completions: tuple[Completion, ...]
    sequences: Sequences
    ended_N: Tensor
    logprobs_NT: Tensor
    num_generations: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The rewards of N completions, parts kept apart.

    Attributes:
        total_N: float32, what the advantages are made of; NaN where no part applies.
        plain_N: float32, the total as it is where no part is normalized, and what is told of it: normalized totals
            are 0 on the average of every group, whatever is learned.
        parts_N: Each part by name, unweighted, float32; NaN where it does not apply.
        open_N: bool, where every gate stands open; everywhere, without one.
    """

    total_N: Tensor
    plain_N: Tensor
    parts_N: dict[str, Tensor]
    open_N: Tensor


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A loss to call backward on, and what to log about it.

    Attributes:
        loss: float32 scalar.
        metrics: Detached float32 scalars by field-standard name.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
