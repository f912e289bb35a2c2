"""The anchor: KL(base ‖ policy) on text that the base wrote by itself, beside every optimizer step.

What a model knew is held where the model itself shows what it knows, so that no general data are needed. Rows come
from `lsemrl rehearse`; which of them stand beside a step follows from the step's number alone, so that a resumed run,
or one on another number of ranks, goes on with the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lsemrl.data.collate import sequences_of
from lsemrl.data.rehearsal import digest_of, likeliest_path, read_identity, read_rehearsal
from lsemrl.kernels.divergence import Likeliest
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.gradients import LossOf
from lsemrl.modules.packing import MicroBatch
from lsemrl.modules.policy import Policy
from lsemrl.reading import user_path
from lsemrl.types import Sequences, UserError


class Anchor:
    """Rehearsal text that has been read, dealt row by row.

    Attributes:
        settings: See there.
        digest: Of the file, for who resumes.
    """

    def __init__(self, settings: AnchorSettings) -> None:
        """Read the rows; the base is looked at in `check`.

        Raises:
            UserError: The file is none of `lsemrl rehearse`, or has fewer rows or likeliest tokens than are asked for.
        """
        self.settings = settings
        path = user_path(settings.path)
        self._identity = read_identity(path)
        # Of each row what is read, and what is held.
        self._rows = [row.split(whole=settings.held == "all") for row in read_rehearsal(path)]
        self.digest = digest_of(path)
        if settings.rows > len(self._rows):
            raise UserError(
                f"model.anchor.rows is {settings.rows}, but {settings.path!r} has {len(self._rows)}; lower it, or "
                "write more with lsemrl rehearse"
            )
        self._likeliest = self._read_likeliest(path) if settings.top_k else None

    def check(self, policy: Policy) -> None:
        """Hold the text against the policy, once its weights are there.

        Raises:
            UserError: Another base wrote it, or it has tokens that the policy lacks.
        """
        if self._identity["fingerprint"] != policy.fingerprint:
            rounded = f" in {policy.settings.quantization}" if policy.settings.quantization else ""
            raise UserError(
                f"model.anchor.path is {self.settings.path!r}, which {self._identity['model']!r} wrote, another base "
                f"than policy.model {policy.settings.model!r}{rounded}; write one with lsemrl rehearse"
            )
        most = max(max((*read, *held)) for read, held in self._rows)
        if self._likeliest is not None:
            most = max(most, *(int(ids_MK.max()) for ids_MK, _ in self._likeliest))
        else:
            with policy.base():  # refuses where there is none, which a step would find out late
                pass
        if most >= policy.model.get_input_embeddings().weight.shape[0]:
            raise UserError(
                f"model.anchor.path is {self.settings.path!r}, which has tokens that the policy lacks; write one with "
                "lsemrl rehearse"
            )

    def beside(self, step: int, rank: int, ranks: int, device: torch.device) -> tuple[Sequences, list[int]]:
        """A rank's rows for an optimizer step, and their numbers: every row once before any comes again.

        Args:
            step: Optimizer steps that were tried before.
            rank: This one.
            ranks: How many share the rows.
            device: Where to put them.
        """
        count, first = len(self._rows), step * self.settings.rows
        numbers = []
        for at in range(first + rank, first + self.settings.rows, ranks):
            epoch, place = divmod(at, count)
            numbers.append(int(_order(count, epoch)[place]))
        return sequences_of([self._rows[number] for number in numbers or [0]], device), numbers

    def longest(self, device: torch.device) -> Sequences:
        """The longest rows there are, as many as stand beside a step."""
        rows = sorted(self._rows, key=lambda row: sum(map(len, row)))[-self.settings.rows :]
        return sequences_of(rows, device)

    def loss(self, policy: Policy, numbers: list[int], tokens: int) -> LossOf:
        """Of a micro-batch of the rows `numbers`: the coefficient times its share of the mean over `tokens`.

        Args:
            policy: What is held.
            numbers: As `beside` gave them; without any, the row that is passed through counts nothing.
            tokens: Those held beside this step, over all ranks.
        """

        def loss_of(batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            weights_M = torch.full((sum(batch.lengths),), bool(numbers) / tokens, device=batch.rows.device)
            loss, kl_M = policy.divergence(batch.sequences, weights_M, self._kept(batch, numbers or [0]))
            held = {"anchor/kl": (kl_M * weights_M).sum(), "anchor/tokens": weights_M.count_nonzero().float()}
            return self.settings.coefficient * loss, held

        return loss_of

    def _read_likeliest(self, path: Path) -> list[tuple[Tensor, Tensor]]:
        """The K likeliest tokens of each answer's tokens, row by row."""
        beside, top_k = likeliest_path(path), self.settings.top_k
        try:
            with safe_open(beside, framework="pt") as file:
                ids_MK, logprobs_MK = file.get_tensor("ids"), file.get_tensor("logprobs")
                of = (file.metadata() or {}).get("text")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"model.anchor.top_k is {top_k}, but {str(beside)!r} cannot be read ({error}); set it to 0, or write "
                "the text again with lsemrl rehearse --top-k"
            ) from error
        lengths = [len(held) for _, held in self._rows]  # answers, which alone can be held so
        whole = ids_MK.shape == logprobs_MK.shape and ids_MK.ndim == 2 and sum(lengths) == len(ids_MK)
        # Rows in another order have as many tokens, and would be held to those of others.
        if of != self.digest or not whole or not _is_distribution(ids_MK, logprobs_MK):
            raise UserError(
                f"{str(beside)!r} is not of {str(path)!r} as it is now; set model.anchor.top_k to 0, or write the text "
                "again with lsemrl rehearse --top-k"
            )
        if top_k > ids_MK.shape[1]:
            raise UserError(f"model.anchor.top_k is {top_k}, but {ids_MK.shape[1]} tokens were kept; lower it")
        pairs = zip(ids_MK[:, :top_k].split(lengths), logprobs_MK[:, :top_k].split(lengths), strict=True)
        return list(pairs)

    def _kept(self, batch: MicroBatch, numbers: list[int]) -> Likeliest | None:
        if self._likeliest is None:
            return None
        parts = [self._likeliest[numbers[row]] for row in batch.rows.tolist()]
        ids_MK, logprobs_MK = (torch.cat(part).to(batch.rows.device) for part in zip(*parts, strict=True))
        return Likeliest(ids_MK=ids_MK.long(), logprobs_MK=logprobs_MK.float())


@functools.lru_cache(maxsize=2)  # a step may end one epoch and begin the next
def _order(count: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))


def _is_distribution(ids_MK: Tensor, logprobs_MK: Tensor) -> bool:
    """Whether each row names tokens once, with probabilities that add up to one at most."""
    if ids_MK.is_floating_point() or not logprobs_MK.is_floating_point():
        return False
    sorted_MK = ids_MK.sort(dim=1).values
    once = bool((sorted_MK[:, :1] >= 0).all()) and not bool((sorted_MK[:, 1:] == sorted_MK[:, :-1]).any())
    return once and bool((logprobs_MK.double().exp().sum(dim=1) <= 1 + 1e-3).all())  # false for NaN, too
