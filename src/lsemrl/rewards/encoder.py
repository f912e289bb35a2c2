"""Whether an encoder is what its folder says: all of its weights were stored, and it reads as much as it claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lsemrl.errors import reason_of
from lsemrl.types import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_UNUSED = "pooler."  # what sentence encoders pool by is a module of their own


def check_weights(name: str, encoder: SentenceTransformer) -> None:
    """Refuse an encoder some of whose weights were not stored, which transformers draws at random in silence.

    Args:
        name: As the user gave it.
        encoder: As it was read.

    Raises:
        UserError: Weights are missing, or cannot be looked at again.
    """
    from transformers import PreTrainedModel  # takes seconds, which settings that are refused do not wait for

    for module in encoder:
        model = getattr(module, "auto_model", None)
        if not isinstance(model, PreTrainedModel):
            continue
        try:
            with torch.random.fork_rng(devices=[]):  # building a model draws from the run's random numbers
                read: Any = type(model).from_pretrained(model.name_or_path, output_loading_info=True, dtype=model.dtype)
        except Exception as error:
            reason = reason_of(error)
            raise UserError(f"encoder is {name!r}, whose weights cannot be read ({reason}); name another") from error
        missing = sorted(key for key in read[1]["missing_keys"] if not key.startswith(_UNUSED))
        if missing:
            raise UserError(
                f"encoder is {name!r}, which lacks {len(missing)} weights of its {type(model).__name__} (such as "
                f"{missing[0]}); name an encoder that is whole"
            )


def reads(encoder: SentenceTransformer) -> bool:
    """Whether it has positions for as many tokens as it is set to read; RoBERTa's can use two fewer than it counts."""
    if encoder.max_seq_length is None:
        return True
    try:
        encoder.encode(" ".join(["a"] * encoder.max_seq_length), show_progress_bar=False)
    except (IndexError, RuntimeError):
        return False
    return True
