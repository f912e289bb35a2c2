"""Texts to token ids.

Special tokens are in the prompt's text already (see `prompts`), so nothing is added to it. In a target they are read as
plain text: a reference that quotes the EOS must not end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lsemrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        # Set by its name it would not be special before it is saved and read again, and a target could quote it.
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(known[0])})
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


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that are no text of a user's: ends of turns and their like."""
    return {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, split_special_tokens: bool) -> list[list[int]]:
    if not texts:  # which a tokenizer does not take
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens, padding=False, verbose=False
    )
    return cast(list[list[int]], encoded["input_ids"])
