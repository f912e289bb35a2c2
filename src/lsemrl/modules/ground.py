"""What a run stands on besides its configuration: models and tokenizers, which may change where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.pretrained import fingerprint
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.types import Example, UserError

_TRIED = 64  # rows


def ground(policy: Policy, rows: Iterable[Example], encoders: Mapping[str, EncoderUse]) -> dict[str, str]:
    """Hashes of what a run stands on, by the field that names it.

    Args:
        policy: What is trained.
        rows: What it is trained on.
        encoders: Of rewards and metrics, by their fields.
    """
    found = {
        "policy.model": policy.fingerprint,
        "policy's tokenizer": _tokenizer_fingerprint(policy.tokenizer, [*rows][:_TRIED]),
    }
    if policy.adapter:
        found["policy.adapter"] = adapter_fingerprint(policy.adapter, policy.settings.adapter_scale)
    return found | {field: fingerprint(one.encoder) for field, one in encoders.items()}


def check_ground(before: Mapping[str, str], now: Mapping[str, str], folder: Path, *, same_run: bool) -> None:
    """Refuse to go on from the checkpoint in `folder` where something has changed under it.

    Args:
        before: When the checkpoint was written.
        now: As it is found.
        folder: Of the checkpoint.
        same_run: Whether it is the run itself that goes on; another may be paid and scored by other encoders.

    Raises:
        UserError: The first field that does not name what it named.
    """
    for field in sorted(before.keys() | now.keys()):
        if before.get(field) != now.get(field) and (same_run or field.startswith("policy")):
            raise UserError(
                f"{field} is not what it was when {str(folder)!r} was written; restore it, or set checkpoints.resume "
                "to never to begin anew"
            )


def _tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Example]) -> str:
    """By its words, by what ends and pads a text, and by how it cuts `rows`."""
    texts = [text for row in rows for text in (row.prompt, row.reference)]
    special = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    facts = [sorted(tokenizer.get_vocab().items()), special, [tokenizer(text)["input_ids"] for text in texts]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
