"""What a model may be called: a folder that is there, or an id of the hub. Told before anything heavy is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lsemrl.errors import UserError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def check_encoder(name: str) -> None:
    """Refuse what can be no sentence encoder.

    Args:
        name: A folder or a hub id.

    Raises:
        UserError: A folder of something else, or neither.
    """
    there = os.path.exists(name)  # unlike Path's, whatever the name
    if there and not (Path(name) / "modules.json").is_file():
        raise UserError(
            f"encoder is {name!r}, which is no SentenceTransformer folder (it has no modules.json): name a folder "
            "written by SentenceTransformer.save, or a hub id"
        )
    if not there and not _HUB_ID.fullmatch(name):
        raise UserError(
            f"encoder is {name!r}, and there is no such folder: name a SentenceTransformer folder or a hub id"
        )


def check_model(name: str) -> None:
    """Refuse what can be no language model.

    Args:
        name: A folder or a hub id.

    Raises:
        UserError: A folder without a configuration; neither; or an id that is not at hand, where the hub may not be
            asked.
    """
    if os.path.exists(name):
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"policy.model is {name!r}, which is no model's folder (it has no config.json); name a folder written "
                "by save_pretrained, or a hub id"
            )
        return
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"policy.model is {name!r}, and there is no such folder; name a model's folder or a hub id")
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE and not os.path.isdir(os.path.join(HF_HUB_CACHE, f"models--{name.replace('/', '--')}")):
        raise UserError(
            f"policy.model is {name!r}, and there is no such folder, nor that model in {HF_HUB_CACHE!r}, while "
            "HF_HUB_OFFLINE keeps it from being fetched; name a model's folder"
        )
