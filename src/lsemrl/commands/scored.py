"""The parts of a run's reward, made again to score what is said to somebody who brings a reference.

A run's folder may be somebody else's, and a class_path is code of whoever wrote it: only rewards of lsemrl are made,
chosen by name and from plain values. Nothing is written where the folder says, and no device is taken from it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lsemrl import rewards
from lsemrl.commands.trained import UNREADABLE, Trained, check_links
from lsemrl.errors import reason_of
from lsemrl.languages import Language
from lsemrl.reading import user_path
from lsemrl.rewards import Chrf, Coverage, Reward, RewardMix, SemanticSimilarity
from lsemrl.rewards.oracle import OracleMeaning
from lsemrl.types import Completion, Example

_REWARDS: dict[str, type[Reward]] = {
    name: kind
    for name, kind in {**vars(rewards), "OracleMeaning": OracleMeaning}.items()
    if isinstance(kind, type) and issubclass(kind, Reward) and kind is not Reward
}
"""What a part may be."""
_PLAIN = (str, int, float, bool, type(None))
_NOT_ITS_OWN = ("cache_dir", "device")
"""Settings that are of the machine, and would have somebody else's folder name a place to write to."""


def parts_of(run: Trained) -> tuple[RewardMix, list[str]]:
    """The parts of a run's reward, or chrF where it has none that can be made, and a line for each that is left out."""
    said = run.config.get("model", {}).get("init_args", {}).get("rewards") or {}
    parts: dict[str, Reward] = {}
    left_out = []
    for name, part in said.items() if isinstance(said, dict) else ():
        try:
            parts[str(name)] = _made(run.folder, part)
        except UNREADABLE as error:
            left_out.append(f"{name} is left out: {reason_of(error, 300)}")
    return RewardMix(parts or {"chrf": Chrf()}), left_out


def score(mix: RewardMix, source: str, said: str, reference: str, *, pair: bool) -> str:
    """Each part of the reward of an answer, by its name, in a line.

    Args:
        mix: The parts.
        source: What was asked.
        said: The answer.
        reference: What it is held against.
        pair: As in `Example`.

    Raises:
        UserError: A part fails.
    """
    example = Example(id="0", prompt=source, source=source, references=(reference,), pair=pair)
    parts = mix([Completion(text=said, ended=True, example=example)], 1).parts_N
    return ", ".join(
        f"{name} {'does not apply' if math.isnan(value_N[0]) else f'{value_N[0]:.4f}'}"
        for name, value_N in parts.items()
    )


def _made(folder: Path, part: Any) -> Reward:
    module, _, last = str(part["class_path"]).rpartition(".")
    kind = _REWARDS.get(last)
    if kind is None or module not in ("lsemrl.rewards", kind.__module__):
        raise ValueError(f"it is of the class {part['class_path']!r}, and only lsemrl's own are made from a folder")
    given = {key: value for key, value in (part.get("init_args") or {}).items() if key not in _NOT_ITS_OWN}
    if isinstance(given.get("language"), dict):
        given["language"] = _profile(folder, given["language"])
    for key, value in given.items():
        if not isinstance(value, (*_PLAIN, Language)):
            raise ValueError(f"its {key} is {type(value).__name__}, and no text or number")
    if kind is Coverage and given.get("floor") is None:
        raise ValueError("its floor is what the rows of the run say, which are not read here")
    if kind is SemanticSimilarity:
        given["cache_dir"] = "none"
    if "encoder" in given:
        check_links(folder, [Path(str(given["encoder"]))])
    return kind(**given)


def _profile(folder: Path, said: dict[str, Any]) -> Language:
    named = said.get("identifier")
    if named is not None:
        place = user_path(str(named))
        if not place.is_dir():  # fastText's own code would read it
            raise ValueError(f"its identifier is {str(named)!r}, which is no folder of fit-language")
        check_links(folder, [place])
    return Language(**{**said, "scripts": tuple(said.get("scripts") or ())})
