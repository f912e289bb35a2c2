"""Where a run stands, from what its folder holds, and the records that are kept there.

`stage.json` says from the start whose folder it is and what is being made there; `done.json`, written last, that it was
made. Both are replaced whole, so that a kill leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lsemrl import __version__
from lsemrl.errors import UserError
from lsemrl.experiment.plan import ADAPTER, VERBS, Run
from lsemrl.files import fill_folder, told
from lsemrl.json_records import write_json
from lsemrl.runs import checkpoints, furthest_run, has_finished, numbered

LOG = "log.txt"
_STARTED, _DONE = "stage.json", "done.json"
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    _STARTED: {"hashes": dict, "files": list},
    _DONE: {"hash": str, "seconds": (int, float), "peak_bytes": (int, float), "resumed": bool},
}
_TELLING = 300
"""Seconds of work that say how fast a machine is; a few say how fast it starts."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is to be done about a run.

    Attributes:
        complete: Nothing: its folder holds what it would make.
        reason: Why, for people.
        goes_on: Whether an earlier attempt is taken up.
        adds: The words by which it is, where the same command alone would look for one by where things lie.
        ended: Whether nobody was there to record that it is complete.
        twin: The folder of another run that did the very same, to be copied.
    """

    complete: bool
    reason: str
    goes_on: bool = False
    adds: tuple[str, ...] = ()
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
        whose = _identity(run, experiment)
        other = next((name for name in whose if started and started.get(name) != whose[name]), "experiment")
        owner = f"of {other} {started.get(other)!r}" if started else "that no experiment has made"
        back = " back: a stage copies what is complete under another name" if other == "stage" else ""
        raise UserError(
            f"output holds {str(run.folder)!r}, a folder {owner}, not of {whose[other]!r}; name another output, or "
            f"move the folder{back}"
        )
    if not started:
        return _new(run, "new")
    gone = [text for text in started["files"] if run.files.get(text, "") is None]
    if gone:
        raise UserError(
            f"{run.name} in {str(run.folder)!r} was made by {gone[0]!r}, which is not there; put it back, run this "
            "where it is found, or name another output"
        )
    for part, meaning in (("settings", "its settings"), ("data", "its data"), ("parents", "what it builds on")):
        if started["hashes"].get(part) != run.hashes[part]:
            return _new(run, f"{meaning} changed")
    if done and done["hash"] == run.hashes["all"]:
        if not _is_whole(run.folder, run):
            return _new(run, f"its {VERBS[run.stage.verb].leaves} is gone")
        return Standing(complete=True, reason="complete and unchanged")
    if run.stage.verb == "fit" and _has_ended(run):
        return Standing(complete=True, reason="came to its end after its experiment was killed", ended=True)
    stands = _new(run, "not finished")
    if stands.twin:
        return stands
    if run.stage.verb == "fit" and (left := furthest_run(run.folder)):
        reason = f"not finished; goes on from {checkpoints(left)[-1].relative_to(run.folder)}"
        return Standing(complete=False, reason=reason, goes_on=True, adds=(f"--checkpoints.resume={left}",))
    if VERBS[run.stage.verb].goes_on:
        return Standing(complete=False, reason="not finished; goes on from what is there", goes_on=True)
    return Standing(complete=False, reason="not finished; starts again")


def _new(run: Run, reason: str) -> Standing:
    """To be run from its beginning, unless the same was done: here under another name or before a change, or beside."""
    output, seed = _output(run), run.folder.name
    # Not by pathlib, which raises where others take a folder away meanwhile.
    beside = sorted(output.parent / found for found in glob(f"*/*/{seed}/{_DONE}", root_dir=output.parent))
    before = sorted(_superseded(output).glob(f"*/{seed}/*/{_DONE}"))
    for path in (*beside, *before):
        folder = path.parent
        if folder.resolve() != run.folder.resolve() and _has_done(folder, run):
            return Standing(complete=False, reason=f"{reason}; a copy of {folder}", twin=folder)
    return Standing(complete=False, reason=reason)


def _output(run: Run) -> Path:
    """The folder of all runs, which has a name and a parent however it was given."""
    return Path(os.path.abspath(run.folder)).parents[1]


def _superseded(output: Path) -> Path:
    return output.with_name(f"{output.name}.superseded")


def _has_done(folder: Path, run: Run) -> bool:
    """Whether what is in `folder` is what `run` would make."""
    done = _read(folder / _DONE)
    return bool(done and done["hash"] == run.hashes["all"]) and _is_whole(folder, run)


def _is_whole(folder: Path, run: Run) -> bool:
    """Whether what `run` leaves is in `folder`."""
    return (folder / VERBS[run.stage.verb].leaves).exists()


def _is_own(run: Run, experiment: str, started: Mapping[str, Any] | None) -> bool:
    if started is None:
        return not run.folder.exists() or (run.folder.is_dir() and not any(run.folder.iterdir()))
    return all(started.get(name) == value for name, value in _identity(run, experiment).items())


def _identity(run: Run, experiment: str) -> dict[str, Any]:
    return {"experiment": experiment, "stage": run.stage.name, "seed": run.seed}


def _has_ended(run: Run) -> bool:
    """Whether the last attempt left an adapter and nothing to do, though its runner was killed."""
    attempts = numbered(run.folder)
    return bool(attempts) and (attempts[-1] / ADAPTER).exists() and has_finished(attempts[-1])


def begin(run: Run, experiment: str, *, anew: bool = False) -> None:
    """Prepare the folder for an attempt.

    What another configuration made, or what is left of a complete run, is never deleted; it moves out of the output, to
    <output>.superseded, so that nobody who looks through the output for results finds it.

    Args:
        run: Whose folder.
        experiment: Of which.
        anew: Whether nothing is taken up of an earlier attempt at the same, which moves too.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    started = _read(run.folder / _STARTED)
    if started and started["hashes"] == run.hashes and not (anew or (run.folder / _DONE).exists()):
        return
    if started:
        output = _output(run)
        old = _superseded(output) / run.stage.name / run.folder.name
        old.mkdir(parents=True, exist_ok=True)
        place = old / str(max((int(path.name) for path in old.iterdir() if path.name.isdecimal()), default=0) + 1)
        place.mkdir()
        # What says that it is complete goes first: whoever copies it at this moment looks whether it is still there.
        for path in sorted(run.folder.iterdir(), key=lambda path: path.name != _DONE):
            if path.name != _STARTED:
                path.rename(place / path.name)
        write_json(place / _STARTED, started)
    files = sorted(text for text, digest in run.files.items() if digest)
    write_json(
        run.folder / _STARTED,
        {**_identity(run, experiment), "label": run.stage.label, "hashes": run.hashes, "files": files},
    )


class _Replaced(Exception):
    """What was being copied is no longer the same."""


def adopt(run: Run, experiment: str, twin: Path) -> bool:
    """Make `run` complete with what another one made by the very same settings, data, parents and seed.

    Returns:
        Whether it is: not where that has been replaced, or is gone, since it was found.
    """
    done = _read(twin / _DONE)
    if not _has_done(twin, run):
        return False
    begin(run, experiment, anew=True)

    def copy(part: Path) -> None:
        own = shutil.ignore_patterns(_STARTED, _DONE)
        try:
            shutil.copytree(twin, part, symlinks=True, ignore=own, dirs_exist_ok=True)
        except OSError:
            if _has_done(twin, run):
                raise
        if not _has_done(twin, run):
            raise _Replaced

    try:
        fill_folder(run.folder, copy)
    except _Replaced:
        return False
    write_json(run.folder / _DONE, {**(done or {}), "copied_from": str(twin)})
    return True


def finish(run: Run, *, seconds: float, peak_bytes: int, resumed: bool) -> str | None:
    """Record that `run` is complete; what is missing, if it has not left what it should."""
    if run.stage.verb == "fit":
        left = [folder / ADAPTER for folder in numbered(run.folder) if (folder / ADAPTER).exists()]
        link = run.folder / ADAPTER
        with told(link):
            link.unlink(missing_ok=True)
            if left:
                link.symlink_to(left[-1].relative_to(run.folder), target_is_directory=True)
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


def pace(runs: Sequence[Run]) -> float:
    """How long those of `runs` that are complete took, as a share of what is stated of them; 1 until they are some.

    The machine on which durations were measured and stated is another one.
    """
    took = stated = 0.0
    for run in runs:
        done = _read(run.folder / _DONE)
        if run.seconds is not None and done and not done["resumed"] and "copied_from" not in done:
            took, stated = took + done["seconds"], stated + run.seconds
    return took / stated if stated >= _TELLING else 1.0


def estimate(run: Run, pace: float) -> Estimate:
    """What `run` will take: as the same stage took with another seed, else as the experiment states it, at a `pace`."""
    for folder in sorted(run.folder.parent.glob("seed_*")):
        started, done = _read(folder / _STARTED), _read(folder / _DONE)
        alike = started and all(started["hashes"].get(part) == run.hashes[part] for part in ("settings", "data"))
        if alike and done and not done["resumed"]:
            source = f"as {folder.name.replace('_', ' ')}"
            return Estimate(seconds=done["seconds"], peak_bytes=done["peak_bytes"], source=source)
    if run.seconds is None:
        return Estimate(seconds=None, peak_bytes=None, source="")
    source = "as stated" if pace == 1 else f"{pace:.2g} of what is stated, as of runs so far"
    return Estimate(seconds=run.seconds * pace, peak_bytes=None, source=source)


def _versions() -> dict[str, str]:
    libraries = ("torch", "transformers", "peft", "lightning", "sentence-transformers")
    return {"lsemrl": __version__, "python": platform.python_version(), **{name: version(name) for name in libraries}}


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none.

    Raises:
        UserError: It cannot be read, or is not as it was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); restore it, or move its folder away") from error
    fields = record if isinstance(record, dict) else {}
    odd = [name for name, kind in _FIELDS[path.name].items() if not isinstance(fields.get(name), kind)]
    if odd or not all(isinstance(text, str) for text in fields.get("files", ())):
        raise UserError(
            f"{str(path)!r} is no record of an experiment ({odd[0] if odd else 'files'} is missing or damaged); "
            "restore it, or move its folder away"
        )
    return fields
