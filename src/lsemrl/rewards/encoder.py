"""A frozen sentence encoder, read and looked at: all of its weights were stored, it reads as much as it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from lsemrl import micro
from lsemrl.devices import has_bfloat16
from lsemrl.errors import reason_of
from lsemrl.model_names import check_encoder
from lsemrl.types import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EncoderDtype = Literal["auto", "float32", "bfloat16"]

_ANY = 2**31
_UNUSED = "pooler."  # what sentence encoders pool by is a module of their own


@dataclass(frozen=True)
class EncoderUse:
    """What a sentence encoder is for.

    Attributes:
        encoder: Outputs are in the language of references, so that it reads these whatever it is for.
        of_sources: Whether it reads sources too, because outputs are held against them.
    """

    encoder: SentenceTransformer
    of_sources: bool = False


def computing_dtype(dtype: EncoderDtype, device: torch.device) -> torch.dtype:
    """What the encoder computes in on `device`; auto takes bfloat16 only where it is hardware.

    Raises:
        UserError: There is no such dtype.
    """
    if dtype not in get_args(EncoderDtype):
        raise UserError(f"dtype is {dtype!r} for the encoder: choose one of {', '.join(get_args(EncoderDtype))}")
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def frozen_encoder(name: str, dtype: torch.dtype) -> SentenceTransformer:
    """The encoder in eval mode, frozen, on the CPU; the global random state is left as it was.

    Its first module, the transformer, computes in `dtype`; what follows gets and computes float32.
    """
    path = micro.ENCODER if name == micro.NAME else Path(name)
    if name != micro.NAME:
        check_encoder(name)
    from sentence_transformers import SentenceTransformer

    # Building a model draws its weights before they are overwritten, and the run's random numbers are not ours to use.
    with torch.random.fork_rng(devices=[]):
        try:
            encoder = SentenceTransformer(
                str(path) if path.exists() else name,
                device="cpu",
                local_files_only=path.exists(),
                model_kwargs={"dtype": dtype},
            )
        except Exception as error:
            reason = reason_of(error)
            raise UserError(
                f"encoder {name!r} could not be loaded ({type(error).__name__}: {reason}): name a SentenceTransformer "
                "folder or a hub id"
            ) from error
    check_weights(name, encoder)
    first, *others = encoder
    for module in others if dtype == torch.bfloat16 else [first, *others]:
        module.float()
    first.register_forward_hook(_widen)
    return encoder.eval().requires_grad_(False)


def _widen(module: torch.nn.Module, args: tuple[Any, ...], features: dict[str, Any]) -> dict[str, Any]:
    """Floating point features as float32."""
    return {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }


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


def length_limit(encoder: SentenceTransformer) -> int | None:
    """How many tokens of a text it reads; None if all, which some say by a number that no text reaches."""
    limit = encoder.max_seq_length
    return None if limit is None or limit > _ANY else int(limit)


def set_length_limit(encoder: SentenceTransformer, tokens: int) -> bool:
    """Have it read so many tokens; whether it can be told, which an encoder without a transformer cannot."""
    try:
        encoder.max_seq_length = tokens
    except AttributeError:
        return False
    return True


def overlong(encoder: SentenceTransformer, texts: Sequence[str]) -> list[bool]:
    """Which texts are longer than it reads, by the tokens that it makes of them: its prompt and chat template too."""
    from transformers import PreTrainedTokenizerBase  # takes seconds, which settings that are refused do not wait for

    limit = length_limit(encoder)
    if not texts or limit is None or not isinstance(encoder.tokenizer, PreTrainedTokenizerBase):
        return [False] * len(texts)
    read = encoder.preprocess(
        list(texts),
        prompt=encoder.prompts.get(encoder.default_prompt_name or ""),
        processing_kwargs={"text": {"truncation": False, "verbose": False}},
    )
    longer: list[bool] = (read["attention_mask"].sum(dim=1) > limit).tolist()
    return longer


def reads(encoder: SentenceTransformer) -> bool:
    """Whether it has positions for as many tokens as it is set to read; RoBERTa's can use two fewer than it counts."""
    limit = length_limit(encoder)
    if limit is None:
        return True
    try:
        encoder.encode(" ".join(["a"] * limit), show_progress_bar=False)
    except (IndexError, RuntimeError):
        return False
    return True
