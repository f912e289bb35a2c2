"""Where a run stands, from what its folder holds, and the records that are kept there.

`stage.json` says from the start whose folder it is and what is being made there; `done.json`, written last, that it was
made. Both are replaced whole, so that a kill leaves the old one or the new one.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lsemrl import __version__
from lsemrl.errors import UserError
from lsemrl.experiment.plan import ADAPTER, VERBS, Run
from lsemrl.files import fill_folder, told
from lsemrl.json_records import write_json
from lsemrl.runs import checkpoints, has_finished, numbered

LOG = "log.txt"
_STARTED, _DONE = "stage.json", "done.json"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is to be done about a run.

    Attributes:
        complete: Nothing: its folder holds what it would make.
        reason: Why, for people.
        checkpoint: Where an earlier attempt will be taken up.
        ended: Whether nobody was there to record that it is complete.
        twin: The folder of another experiment's run that did the very same, to be copied.
    """

    complete: bool
    reason: str
    checkpoint: Path | None = None
    ended: bool = False
    twin: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run is likely to take.

    Attributes:
        seconds: None where nothing is known.
        peak_bytes: Most memory of its process; None where it has not been measured.
        source: Where this is from, for people.
    """

    seconds: float | None
    peak_bytes: int | None
    source: str


def standing(run: Run, experiment: str) -> Standing:
    """Whether `run` is complete and, if not, why and from where it is to be run.

    Raises:
        UserError: Its folder holds something else.
    """
    started, done = _read(run.folder / _STARTED), _read(run.folder / _DONE)
    if not _is_own(run, experiment, started):
        owner = f"of experiment {started.get('experiment')!r}" if started else "that no experiment has made"
        raise UserError(
            f"output holds {str(run.folder)!r}, a folder {owner}, not of {experiment!r}; name another output, or move "
            "the folder"
        )
    if not started:
        return _new(run, "new")
    for part, meaning in (("settings", "its settings"), ("data", "its data"), ("parents", "what it builds on")):
        if started["hashes"].get(part) != run.hashes[part]:
            return _new(run, f"{meaning} changed")
    if done and done["hash"] == run.hashes["all"]:
        if not _is_whole(run.folder, run):
            return _new(run, f"its {VERBS[run.stage.verb].leaves} is gone")
        return Standing(complete=True, reason="complete and unchanged")
    if run.stage.verb == "fit" and _has_ended(run):
        return Standing(complete=True, reason="came to its end after its experiment was killed", ended=True)
    checkpoint = _last_checkpoint(run) if run.stage.verb == "fit" else None
    if checkpoint:
        return Standing(
            complete=False,
            reason=f"not finished; goes on from {checkpoint.relative_to(run.folder)}",
            checkpoint=checkpoint,
        )
    return Standing(complete=False, reason="not finished; starts again")


def _new(run: Run, reason: str) -> Standing:
    """To be run from its beginning, unless an experiment beside this one has done the same already."""
    output = run.folder.parents[1]
    for path in sorted(output.parent.glob(f"*/*/{run.folder.name}/{_DONE}")):
        done, whole = _read(path), _is_whole(path.parent, run)
        if done and done["hash"] == run.hashes["all"] and whole and path.parents[2].resolve() != output.resolve():
            return Standing(complete=False, reason=f"{reason}; a copy of {path.parent}", twin=path.parent)
    return Standing(complete=False, reason=reason)


def _is_whole(folder: Path, run: Run) -> bool:
    """Whether what `run` leaves is in `folder`."""
    return (folder / VERBS[run.stage.verb].leaves).exists()


def _is_own(run: Run, experiment: str, started: Mapping[str, Any] | None) -> bool:
    if started is None:
        return not run.folder.exists() or (run.folder.is_dir() and not any(run.folder.iterdir()))
    identity = {"experiment": experiment, "stage": run.stage.name, "seed": run.seed}
    return all(started.get(name) == value for name, value in identity.items())


def _has_ended(run: Run) -> bool:
    """Whether the last attempt left an adapter and nothing to do, though its runner was killed."""
    newest = max(numbered(run.folder), key=_version, default=None)
    return newest is not None and (newest / ADAPTER).exists() and has_finished(newest)


def _version(folder: Path) -> int:
    return int(folder.name.removeprefix("version_"))


def _last_checkpoint(run: Run) -> Path | None:
    """Where `lsemrl fit` will find that it can go on."""
    found = [checkpoint for folder in numbered(run.folder) for checkpoint in checkpoints(folder)[-1:]]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def begin(run: Run, experiment: str) -> None:
    """Prepare the folder for an attempt.

    What another configuration made, or what is left of a complete run, is never deleted; it moves out of the output, to
    <output>.superseded, so that nobody who looks through the output for results finds it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    started = _read(run.folder / _STARTED)
    if started and started["hashes"] == run.hashes and not (run.folder / _DONE).exists():
        return
    if started:
        output = run.folder.parents[1]
        old = output.with_name(f"{output.name}.superseded") / run.folder.relative_to(output)
        old.mkdir(parents=True, exist_ok=True)
        place = old / str(len(list(old.iterdir())) + 1)
        place.mkdir()
        for path in list(run.folder.iterdir()):
            if path.name != _STARTED:
                path.rename(place / path.name)
        write_json(place / _STARTED, started)
    identity = {"experiment": experiment, "stage": run.stage.name, "seed": run.seed}
    write_json(run.folder / _STARTED, {**identity, "label": run.stage.label, "hashes": run.hashes})


def adopt(run: Run, experiment: str, twin: Path) -> None:
    """Make `run` complete with what another experiment made by the very same settings, data, parents and seed."""
    begin(run, experiment)
    own = shutil.ignore_patterns(_STARTED, _DONE)
    fill_folder(run.folder, lambda part: shutil.copytree(twin, part, symlinks=True, ignore=own, dirs_exist_ok=True))
    write_json(run.folder / _DONE, {**(_read(twin / _DONE) or {}), "copied_from": str(twin)})


def finish(run: Run, *, seconds: float, peak_bytes: int, resumed: bool) -> str | None:
    """Record that `run` is complete; what is missing, if it has not left what it should."""
    if run.stage.verb == "fit":
        left = (folder / ADAPTER for folder in numbered(run.folder) if (folder / ADAPTER).exists())
        newest = max(left, key=lambda path: _version(path.parent), default=None)
        link = run.folder / ADAPTER
        with told(link):
            link.unlink(missing_ok=True)
            if newest:
                link.symlink_to(newest.relative_to(run.folder), target_is_directory=True)
    if not _is_whole(run.folder, run):
        return f"it left no {VERBS[run.stage.verb].leaves}"
    write_json(
        run.folder / _DONE,
        {
            "hash": run.hashes["all"],
            "seconds": round(seconds, 1),
            "resumed": resumed,
            "peak_bytes": peak_bytes,
            "versions": _versions(),
        },
    )
    return None


def estimate(run: Run, siblings: Sequence[Run]) -> Estimate:
    """What `run` will take: as the same stage took with another seed, else as the experiment states it."""
    for sibling in siblings:
        if sibling.stage.name != run.stage.name:
            continue
        started, done = _read(sibling.folder / _STARTED), _read(sibling.folder / _DONE)
        alike = started and all(started["hashes"].get(part) == run.hashes[part] for part in ("settings", "data"))
        if alike and done and not done["resumed"]:
            return Estimate(seconds=done["seconds"], peak_bytes=done["peak_bytes"], source=f"as seed {sibling.seed}")
    return Estimate(seconds=run.seconds, peak_bytes=None, source="" if run.seconds is None else "as stated")


def _versions() -> dict[str, str]:
    found = {"lsemrl": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "lightning", "sentence-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); restore it, or move its folder away") from error
    if not isinstance(record, dict) or (path.name == _STARTED and "hashes" not in record):
        raise UserError(f"{str(path)!r} is no record of an experiment; move its folder away")
    return record
