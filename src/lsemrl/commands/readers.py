"""Whether the model and the encoder that a project is to name read its rows; weights of the model are not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsemrl import micro
from lsemrl.commands.quiet import loading, quiet
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from lsemrl.rewards.encoder import EncoderUse


def policy_of(model: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer of `model`.

    Raises:
        UserError: There is none.
    """
    loading(model)
    from lsemrl.modules.pretrained import read_config_and_tokenizer  # transformers, for which no mistake waits

    return read_config_and_tokenizer(str(micro.POLICY) if model == micro.NAME else model, trust=False)


def reach_of(config: PretrainedConfig) -> int | None:
    """How many tokens a model is sure to read; None if without end."""
    from lsemrl.modules.families import reach

    bound = reach(config)
    return bound.sure if bound else None


def encoder_by_name(encoder: str, *, of_sources: bool = False) -> dict[str, EncoderUse]:
    """What `--encoder` names, as `legibility.look` takes it; `of_sources` where it reads these too.

    Raises:
        UserError: There is no such encoder.
    """
    from lsemrl.rewards.encoder import EncoderUse
    from lsemrl.rewards.semantic import SemanticSimilarity

    similarity = SemanticSimilarity(encoder=encoder, dtype="float32")
    return {f"--encoder {encoder!r}": EncoderUse(similarity.encoder, of_sources=of_sources)}


def told_of_reading(
    model: str, tokenizer: PreTrainedTokenizerBase, encoder: str, examples: Sequence[Example]
) -> list[str]:
    """What `lsemrl fit` will say of how `tokenizer` and `encoder` read `examples`, as far as anything is lost.

    Args:
        model: The policy, whose tokenizer it is.
        encoder: The embedded one stands in for another, and is not looked at; "" is none.

    Raises:
        UserError: They read too little, or there is no such encoder.
    """
    from lsemrl.modules.legibility import look

    encoders: dict[str, EncoderUse] = {}
    if encoder not in ("", micro.NAME):
        loading(encoder)
        quiet()
        encoders = encoder_by_name(encoder)
    seen = look(model, tokenizer, examples, encoders, learned=True)
    if seen.refusals:
        raise UserError(seen.refusals[0])
    return [line for line in seen.lines if line.startswith(("warning: ", "note: "))]
