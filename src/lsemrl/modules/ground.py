"""What a run stands on besides its configuration: models, tokenizers and rows, which may change where they lie."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lsemrl.contents import content_of
from lsemrl.languages import Language
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.pretrained import fingerprint
from lsemrl.rewards.base import Reward
from lsemrl.rewards.coverage import Coverage
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.rewards.semantic import SemanticSimilarity
from lsemrl.types import Example, UserError

_TRIED = 64  # rows


def encoders_of(parts: Mapping[str, Reward]) -> dict[str, EncoderUse]:
    """Sentence encoders of parts of a reward, by the field that names each and its value."""
    return {
        f"rewards.{name}.encoder {part.name!r}": EncoderUse(part.encoder, part.against == "source")
        for name, part in parts.items()
        if isinstance(part, SemanticSimilarity | Coverage)
    }


def languages_of(parts: Mapping[str, Reward]) -> dict[str, Language]:
    """Languages that parts of a reward judge by, a user's own parts too, by the field that names each."""
    named = {f"rewards.{name}.language": getattr(part, "language", None) for name, part in parts.items()}
    return {field: language for field, language in named.items() if isinstance(language, Language)}


def given_to(rewards: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a configuration gives parts of a reward that are classes of the user's own, by its field.

    Args:
        rewards: The parts by their names, each as class_path and init_args.
    """
    own = {name: part for name, part in rewards.items() if not part["class_path"].startswith("lsemrl.")}
    given = {name: part.get("init_args") or {} for name, part in own.items()}
    return {f"rewards.{name}.{field}": str(value) for name in given for field, value in given[name].items()}


def ground(
    policy: Policy,
    rows: Iterable[Example],
    encoders: Mapping[str, EncoderUse],
    languages: Mapping[str, Language],
    given: Mapping[str, str],
) -> dict[str, str]:
    """Hashes of what a run stands on, by the field that names it.

    Args:
        policy: What is trained.
        rows: What it is trained on.
        encoders: Of rewards and metrics, by their fields.
        languages: Likewise; what counts is what identifies them.
        given: See `given_to`; what counts is the content of a file or model that is named.
    """
    found = {
        "policy.model": policy.fingerprint,
        "policy's tokenizer": tokenizer_fingerprint(policy.tokenizer, [*rows][:_TRIED]),
        "what ends a text": repr(policy.eos_ids()),
    }
    if policy.adapter:
        found["policy.adapter"] = adapter_fingerprint(policy.adapter, policy.settings.adapter_scale)
    found |= {field: content for field, text in given.items() if (content := content_of(text))}
    found |= {field: fingerprint(one.encoder) for field, one in encoders.items()}
    identities = {f"{field}.identifier": language.identity for field, language in languages.items()}
    return found | {field: identity for field, identity in identities.items() if identity}


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
    before, now = _by_field(before), _by_field(now)
    # What is there at all the configuration tells, and an earlier lsemrl knew of less; but no run, however it is
    # configured, goes on from what began with another adapter.
    for field in sorted(before.keys() & now.keys() | {"policy.adapter"}):
        if before.get(field) != now.get(field) and (same_run or field.startswith("policy")):
            raise UserError(
                f"{field} is not what it was when {str(folder)!r} was written; restore it, or set checkpoints.resume "
                "to never to begin anew"
            )


def checksum_of(rows: Iterable[Example]) -> str:
    """What tells rows from others, and from the same in another order."""
    digest = hashlib.sha256()
    for example in rows:
        digest.update(repr((example.id, example.prompt, example.references)).encode())
    return digest.hexdigest()[:16]


def _by_field(found: Mapping[str, str]) -> dict[str, str]:
    """What `ground` found, however the encoders were typed."""
    return {re.sub(r"(?<=\.encoder) .*", "", field): value for field, value in found.items()}


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Example]) -> str:
    """By its words, by what ends and pads a text, and by how it cuts `rows`."""
    texts = [text for row in rows for text in (row.prompt, row.reference)]
    special = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    facts = [sorted(tokenizer.get_vocab().items()), special, [tokenizer(text)["input_ids"] for text in texts]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
