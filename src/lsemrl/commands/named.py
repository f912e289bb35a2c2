"""What RUN names: a run, an adapter or a model, told by which files are there, before torch is imported.

A folder may be somebody else's: of what is in it, only the name of an adapter's base is read here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsemrl import micro
from lsemrl.errors import UserError
from lsemrl.foreign import visible
from lsemrl.modules.policy_settings import ADAPTER_CONFIG
from lsemrl.reading import Unreadable, read_json, user_path
from lsemrl.runs import ADAPTER, CHECKPOINTS, CONFIG, KEPT, checkpoints, is_finished, newest_run

NEWEST = "newest"
"""What is written in place of a run to mean the one that was finished last."""
_BASE, _MERGED, _MODEL, _PASSPORT = "base", "merged", "config.json", "lsemrl.json"
READ_AS = ("quantization", "dtype")
"""What the passport says of how a base in 4 bits was read."""
_HUB_ID = re.compile(r"([\w-][\w.-]*)/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model, with or without an adapter, of which nothing says what task it was trained on.

    Attributes:
        name: Folder, hub id or "micro", as in `PolicySettings.model`.
        adapter: Folder of the adapter; None without one.
        folder: What was named, out of which nothing may lead; None where that is no folder.
        read_as: Fields of `PolicySettings`, where the adapter is of a base in 4 bits.
    """

    name: str
    adapter: Path | None = None
    folder: Path | None = None
    read_as: Mapping[str, str] = field(default_factory=dict)


def find(run: str, root: Path) -> Path | Model:
    """The folder of a finished run, weights in the folder of one (`run_of`), or a model.

    Args:
        run: RUN as it was typed.
        root: Where "newest" is looked for.

    Raises:
        UserError: There is nothing of that name, or nothing in it that could answer.
    """
    if run == NEWEST:
        newest = newest_run(root)
        if newest is None:
            elsewhere = next((near for near in sorted(Path().glob("*/runs")) if newest_run(near)), None)
            remedy = f"give --root {elsewhere}" if elsewhere else "name a run, or by --root the folder of runs"
            raise UserError(f"RUN is {NEWEST!r}, and there is no finished run under --root {str(root)!r}; {remedy}")
        return newest
    if run == micro.NAME:
        return Model(name=run)
    folder = user_path(run)
    if not _is_folder(folder):
        if _is_hub_id(run, root):
            return Model(name=run)
        raise UserError(
            f"RUN is {run!r}, and there is no such folder; name a run, an adapter or a model, `{NEWEST}` for the run "
            "that was finished last, or a hub id such as Qwen/Qwen3-0.6B"
        )
    if is_finished(folder):
        return folder
    made = (folder / ADAPTER).resolve().parent
    if is_finished(made) and made.is_relative_to(folder.resolve()):
        return made  # to which an experiment's stage has a link
    for inner in (folder, folder / ADAPTER, Path(os.path.realpath(folder))):  # the last where that link was named
        if run_of(inner) and any((inner / name).is_file() for name in (ADAPTER_CONFIG, _MODEL)):
            return inner
    for inner in (folder, folder / ADAPTER):
        if (inner / ADAPTER_CONFIG).is_file():
            return adapter_in(inner, folder)
    for inner in (folder, folder / _MERGED, folder / ADAPTER):  # the last after full fine-tuning
        if (inner / _MODEL).is_file():
            return Model(name=str(inner), folder=folder)
    newest = newest_run(folder)
    remedy = f"name one of those inside, such as {newest}" if newest else "name a folder such as runs/grpo/version_0"
    if left := checkpoints(folder):
        remedy = f"let its command go on to the end, or name a checkpoint of it, such as {left[-1]}"
    raise UserError(
        f"RUN is {run!r}, which holds no finished run ({CONFIG} and {ADAPTER}/), no adapter and no model; {remedy}"
    )


def tell(run: str, found: Path | Model) -> None:
    """Say, on standard error, which run is the newest, or that a model does not know how texts were worded.

    Args:
        run: RUN as it was typed.
        found: See `find`.
    """
    if run == NEWEST:
        print(f"{NEWEST}: {found}", file=sys.stderr)
    if isinstance(found, Model):
        line = (
            f"{run} is no run: a text is the whole instruction, and needs the words that training put around it, if any"
        )
        print(visible(line), file=sys.stderr)


def run_of(weights: Path) -> Path | None:
    """The run in whose folder weights lie: its adapter/, its best/, or those of a checkpoint; None of others."""
    above = weights.parents
    places = [above[0]] if weights.name in KEPT else []
    if weights.name == ADAPTER and len(above) > 2 and above[1].name == CHECKPOINTS:
        places.append(above[2])
    return next((folder for folder in places if (folder / CONFIG).is_file()), None)


def adapter_in(adapter: Path, folder: Path) -> Model:
    """An adapter on the base that it names.

    Of an exported folder that is base/ beside it, wherever the folder was moved to.

    Args:
        adapter: With adapter_config.json, and the passport if it is ours.
        folder: What was named.

    Raises:
        UserError: It names no base that is there.
    """
    named = [_field(adapter / ADAPTER_CONFIG, "base_model_name_or_path"), _field(adapter / _PASSPORT, "base")]
    beside = adapter.parent / _BASE
    if Path(named[0]).name == _BASE and (beside / _MODEL).is_file():
        return Model(name=str(beside), adapter=adapter, folder=adapter.parent)
    for name in filter(None, named):
        if name == micro.NAME or _is_folder(user_path(name)) or (_is_hub_id(name) and not base_was_folder(adapter)):
            read_as = {each: said for each in READ_AS if (said := _field(adapter / _PASSPORT, each))}
            name = name if name == micro.NAME else str(user_path(name))
            return Model(name=name, adapter=adapter, folder=folder, read_as=read_as)
    raise UserError(
        f"RUN is {str(folder)!r}, an adapter whose base is not here: base_model_name_or_path in its {ADAPTER_CONFIG} "
        f"is {named[0]!r}; write there a folder or a hub id"
    )


def base_was_folder(adapter: Path) -> bool:
    """Whether an adapter says that its base was a folder, for whose name no hub is to be asked."""
    return _field(adapter / _PASSPORT, "base_is") == "folder"


def _field(path: Path, name: str) -> str:
    """A text in a JSON file; empty where there is none."""
    if not path.is_file():
        return ""
    try:
        said: Any = read_json(path)
    except Unreadable as reason:
        raise UserError(f"'{path}' cannot be read ({reason}); export the adapter again") from None
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, str) else ""


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # too long for a name, or none at all
        return False


def _is_hub_id(name: str, *folders: Path) -> bool:
    """Whether `name` is OWNER/NAME, where OWNER is no folder here: then a folder was meant, which is not there."""
    found = _HUB_ID.fullmatch(name)
    return found is not None and not Path(found[1]).exists() and Path(found[1]) not in folders
