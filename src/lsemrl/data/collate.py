"""Examples to tensors, and the loaders that do it.

Special tokens are in the prompt's text already (see `prompts`), so nothing is added to it. In a target they are read as
plain text: a reference that quotes the EOS must not end there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from lsemrl.errors import reason_of
from lsemrl.types import Example, PromptBatch, Sequences, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

# Seeds this far apart: epoch e of one seed is never epoch 0 of the next, as with seed + epoch.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How examples are batched; see the arguments of the data modules."""

    batch_size: int
    eval_batch_size: int
    seed: int
    num_workers: int

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("seed", 0), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; give {least} or more")


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, declared_eos: Sequence[int] = ()) -> None:
    """Have `tokenizer` end and pad texts: where it lacks an EOS, the model's; where it lacks a pad token, its EOS.

    Masks are kept apart from ids, so that what pads may also be what ends.

    Args:
        tokenizer: Changed in place.
        declared_eos: Ids that end a text by what the model says of itself.

    Raises:
        UserError: It has no EOS, and none that is declared is among its tokens.
    """
    if tokenizer.eos_token_id is None:
        known = [number for number in declared_eos if 0 <= number < len(tokenizer)]
        if not known:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no EOS token, and its model's configuration names none; "
                "add eos_token to its tokenizer_config.json"
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(known[0])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole prompts."""
    return _ids(tokenizer, prompts, split_special_tokens=False)


def target_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of outputs, each with one EOS, the last token."""
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int)
    return [[*ids, eos] for ids in _ids(tokenizer, texts, split_special_tokens=True)]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, split_special_tokens: bool) -> list[list[int]]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens, padding=False, verbose=False
    )
    return cast(list[list[int]], encoded["input_ids"])


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> PromptBatch:
    """Tokenize B examples; the first reference of each is its target.

    Raises:
        UserError: The tokenizer has no EOS.
    """
    complete_tokenizer(tokenizer)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    prompts_BP, prompt_mask_BP = padded(prompt_ids(tokenizer, [row.prompt for row in examples]), pad, left=True)
    targets_BT, target_mask_BT = padded(target_ids(tokenizer, [row.reference for row in examples]), pad, left=False)
    return PromptBatch(
        examples=tuple(examples),
        prompt_ids_BP=prompts_BP,
        prompt_mask_BP=prompt_mask_BP,
        target_ids_BT=targets_BT,
        target_mask_BT=target_mask_BT,
    )


def padded(rows: Sequence[Sequence[int]], pad: int = 0, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, longest]; the mask is kept apart from the ids, as the pad token may also be a real one."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[at, where] = torch.tensor(row)
        mask[at, where] = True
    return ids, mask


def sequences_of(parts: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Sequences:
    """Token ids of prompts and of what is behind them, a prompt of its own for each."""
    (prompts_BP, prompt_mask_BP), (ids_NT, mask_NT) = (
        padded([part[side] for part in parts], left=side == 0) for side in (0, 1)
    )
    return Sequences(
        prompt_ids_BP=prompts_BP.to(device),
        prompt_mask_BP=prompt_mask_BP.to(device),
        prompt_of_N=torch.arange(len(parts), device=device),
        completion_ids_NT=ids_NT.to(device),
        completion_mask_NT=mask_NT.to(device),
    )


def epoch_sampler(count: int, seed: int) -> DistributedSampler[int]:
    """An order of `count` rows that depends on seed and epoch alone; each rank takes its share.

    Lightning sets the epoch of a DistributedSampler, and leaves it alone otherwise.
    """
    rank, replicas = _rank_and_replicas()
    return DistributedSampler(
        cast("Dataset[int]", range(count)), replicas, rank, shuffle=True, seed=seed * _SEED_STRIDE, drop_last=True
    )


def _rank_and_replicas() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def train_loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], sampler: Sampler[int], loading: Loading
) -> DataLoader[Any]:
    """Whole batches in the order of `sampler`.

    Raises:
        UserError: There are fewer rows than a batch needs.
    """
    rows = len(cast("Sequence[int]", sampler))
    if rows < loading.batch_size:
        raise UserError(
            f"batch_size is {loading.batch_size}, but there are {rows} training rows; lower it, or give more rows"
        )
    return _loader(tokenizer, examples, loading, sampler=sampler, batch_size=loading.batch_size, drop_last=True)


def eval_loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], loading: Loading
) -> DataLoader[Any] | list[Any]:
    """Every row in order; an empty list, which Lightning passes over, if there are none."""
    return _loader(tokenizer, examples, loading, batch_size=loading.eval_batch_size) if examples else []


def _loader(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], loading: Loading, **settings: Any
) -> DataLoader[Any]:
    return ResumableLoader(
        cast("Dataset[Example]", examples),
        collate_fn=functools.partial(encode, tokenizer),
        num_workers=loading.num_workers,
        # Of its own, so that making an iterator draws nothing from the global stream that sampling uses.
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


class ResumableLoader(DataLoader[Any]):
    """A loader that a checkpoint puts back where it was in the middle of an epoch; Lightning asks for its state."""

    given = 0
    skipped = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given, self.skipped = self.skipped, 0
        died_at = -1
        while True:
            try:
                batches = super().__iter__()
                if self.num_workers:
                    # torch would tell of a worker's death in the middle of whatever goes on then, a training step for
                    # one; without its handler it finds out when it asks for the next batch.
                    with contextlib.suppress(ValueError):  # not the main thread
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for batch in itertools.islice(batches, self.given, None):
                    self.given += 1
                    yield batch
                return
            except (RuntimeError, ConnectionError, EOFError) as error:
                # The order is the sampler's, so that a second set of workers goes on where the first one died.
                told = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
                if not told or self.given == died_at:
                    raise
                died_at = self.given
                log.warning("a data worker died (%s); starting the workers again", reason_of(error, 150))

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch have been given; none after the last."""
        return {"batches": self.given % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after those batches."""
        self.skipped = state["batches"]
