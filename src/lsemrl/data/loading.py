"""How examples become batches, as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from lsemrl.errors import UserError


@dataclass(frozen=True)
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
