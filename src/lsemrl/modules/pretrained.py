"""What is read beside a model's weights: its tokenizer, and what tells it from others."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from lsemrl.data.tokens import complete_tokenizer
from lsemrl.errors import reason_of
from lsemrl.modules.base_model import read_config, refusal
from lsemrl.modules.quantization import plain_weight
from lsemrl.types import UserError

_PIECE = 1 << 24
"""Numbers that are rounded at a time."""


def fingerprint(model: nn.Module) -> str:
    """A short hash of all weights that tells one model from another, the same in float32 and bfloat16.

    That of a model of 4 bits is that of the plain model it computes as. A few seconds for a billion.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        weight = plain_weight(parameter).detach()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        for piece in weight.flatten().split(_PIECE):
            digest.update(piece.to(torch.bfloat16).view(torch.int16).cpu().numpy())
    return digest.hexdigest()[:16]


def read_config_and_tokenizer(path: str, *, trust: bool) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """What a model is, and its tokenizer, ready to end and pad texts.

    Args:
        path: A folder or a hub id.
        trust: Whether code that comes with it may run.

    Raises:
        UserError: They cannot be read, are of no model that can be trained here, nothing says how a text ends, or the
            model does not embed every token.
    """
    config = read_config(path, trust=trust)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except Exception as error:
        raise refusal(path, error) from error
    complete_tokenizer(tokenizer, declared_eos(config, _generation_config(path)))
    check_vocabulary(f"policy.model {path!r}", tokenizer, config.get_text_config().vocab_size)
    tokenizer.padding_side = "left"
    return config, tokenizer


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer with ids beyond the `rows` of the embeddings; fewer are usual.

    Raises:
        UserError: There are such ids.
    """
    beyond = sorted(token for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        raise UserError(
            f"the tokenizer of {name} has {len(beyond):,} tokens (such as {beyond[0]!r}) beyond the {rows:,} rows of "
            "the model's embeddings; save the model after resize_token_embeddings(len(tokenizer)), or take the tokens "
            "out of the tokenizer"
        )


def declared_eos(config: PretrainedConfig, generation: GenerationConfig | None) -> list[int]:
    """The ids that end a text by what a model says of itself, its generation's settings first."""
    own = config.get_text_config().eos_token_id
    return [*as_ids(generation.eos_token_id if generation else None), *as_ids(own)]


def _generation_config(path: str) -> GenerationConfig | None:
    with contextlib.suppress(OSError, ValueError):  # few models lack the file, and they may
        return GenerationConfig.from_pretrained(path)
    return None


def as_ids(declared: int | list[int] | None) -> list[int]:
    """What a configuration holds of one id, several or none."""
    return declared if isinstance(declared, list) else [] if declared is None else [declared]


def adapter_tokenizer(folder: Path, base: PreTrainedTokenizerBase, *, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer beside an adapter, where its tokens, its end of texts or its template are others, else `base`.

    A template that it does not have is that of `base`.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return base
    try:
        own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = reason_of(error)
        raise UserError(
            f"the tokenizer in policy.adapter {str(folder)!r} cannot be read ({reason}); export it again, or delete it "
            "there if it is that of policy.model"
        ) from error
    complete_tokenizer(own, as_ids(base.eos_token_id))
    own.padding_side = "left"
    own.chat_template = own.chat_template or base.chat_template

    def said(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
        return tokenizer.get_vocab(), tokenizer.eos_token_id, tokenizer.chat_template

    return base if said(own) == said(base) else own
