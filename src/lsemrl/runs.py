"""The folders of runs: a new one, or the one that an interrupted run of the same command left behind.

A training run's folder holds run.json, written whole before anything else, which says what is being run and whether it
has ended; and a lock, held as long as the process lives, so that nobody takes up a run that is still at work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError
from lsemrl.files import set_aside, told
from lsemrl.json_records import write_json
from lsemrl.places import first_change, wherever
from lsemrl.reading import Unreadable, read_yaml

CHECKPOINTS, SAMPLES, SKIPPED, ALARMS = "checkpoints", "samples.csv", "skipped.jsonl", "alarms.jsonl"
METRICS, PREDICTIONS = "metrics.csv", "predictions.jsonl"
CONFIG, ADAPTER, BEST = "config.yaml", "adapter", "best"
KEPT = (ADAPTER, BEST)
"""What a run leaves for others."""
AUTO, NEVER = "auto", "never"
"""Values of checkpoints.resume that are no folder."""
APPENDED = (SAMPLES, SKIPPED, ALARMS)
"""Files in a run's folder that steps append to."""
_ANEW = (CONFIG, SAMPLES, METRICS, "events.out.tfevents.*")
"""Of what is in a run's folder, what a run that begins there writes anew and nobody was told to read."""
_RECORD, _LOCK, _ROOT = "run.json", ".lock", "trainer.default_root_dir"

log = logging.getLogger(__name__)

_held: list[int] = []  # descriptors of locks: closing one would let go of its lock


def check_finished(folder: Path) -> None:
    """Refuse what is no folder of a finished run.

    Raises:
        UserError: It lacks config.yaml or adapter/.
    """
    if not is_finished(folder):
        raise UserError(
            f"RUN is {str(folder)!r}, which holds no finished run ({CONFIG} and {ADAPTER}/); name a folder such as "
            "runs/grpo/version_0"
        )


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end in `folder`; its adapter is the last thing that is put there."""
    return (folder / CONFIG).is_file() and (folder / ADAPTER).is_dir()


def newest_run(root: Path) -> Path | None:
    """The run that was finished last of all under `root`, however deep; None if there is none."""
    found = [path.parent for path in root.rglob(CONFIG) if is_finished(path.parent)]
    return max(found, key=lambda folder: ((folder / ADAPTER).stat().st_mtime_ns, str(folder)), default=None)


def new_folder(root: Path, name: str = "version", field: str = "trainer.default_root_dir") -> Path:
    """Make the next free folder NAME_N under `root`, whoever else is doing the same.

    Args:
        root: Made where it is missing.
        name: Of the folder, before its number.
        field: Where the user named `root`.

    Raises:
        UserError: `root` cannot be written to.
    """
    with told(root, field):
        while True:
            root.mkdir(parents=True, exist_ok=True)
            folder = root / f"{name}_{max(map(_number, numbered(root, name)), default=-1) + 1}"
            # Another start may have made it meanwhile, or a trial may have taken `root` away again.
            with suppress(FileExistsError, FileNotFoundError):
                folder.mkdir()
                return folder


def find_run(root: Path, config: Mapping[str, Any], named: Path | None = None) -> Path | None:
    """The newest checkpoint of an interrupted run of a configuration under `root`, of several that which came furthest.

    Its folder is held until this process ends.

    Args:
        root: Where the folders of runs are.
        config: The run's whole configuration, as it would be saved.
        named: The folder of a run with checkpoints, which is taken in place of one that is looked for.

    Raises:
        UserError: `root` cannot be written to; or `named` has ended, is at work, or does another thing.
    """
    with told(root, _ROOT):
        folder = _taken(named, config) if named else _left(root, _identity(config))
        return checkpoints(folder)[-1] if folder and checkpoints(folder) else None


def begin_run(root: Path, config: Mapping[str, Any], *, resume: bool) -> Path:
    """Take a folder for a run that begins, and hold it until this process ends.

    Args:
        root: Made where it is missing.
        config: As for `find_run`.
        resume: Whether the folder of a run of the same configuration may be taken that left nothing to go on from, or
            to read.

    Raises:
        UserError: `root` cannot be written to.
    """
    identity = _identity(config)
    with told(root, _ROOT):
        folder = _left(root, identity) if resume else None
        if folder and _emptied(folder):
            return folder
        folder = new_folder(root)
        _lock(folder)
        try:
            write_json(folder / _RECORD, {"identity": identity, "finished": False})
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def finish_run(folder: Path, steps: int) -> None:
    """Record that the run in `folder` has ended, after so many rollout steps; the same command begins another."""
    record = _record(folder)
    if record is not None:
        write_json(folder / _RECORD, {**record, "finished": True, "rollout_step": steps})


def has_finished(folder: Path) -> bool:
    """Whether the run in `folder` is known to have come to its end; a look only, which holds and mends nothing."""
    return bool(_recorded(folder).get("finished"))


def steps_taken(folder: Path) -> int:
    """The rollout steps of the run in `folder`, if it has come to its end; 0 where that is not known."""
    steps = _recorded(folder).get("rollout_step")
    return steps if isinstance(steps, int) else 0


def _recorded(folder: Path) -> dict[str, Any]:
    """What is being run in `folder`, as it is written there; empty where that cannot be read."""
    try:
        return dict(json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def furthest_run(root: Path) -> Path | None:
    """The unfinished run under `root` that has saved most; a look only, which holds and mends nothing."""
    saved = (folder for folder in numbered(root) if checkpoints(folder) and not has_finished(folder))
    return max(saved, key=_progress, default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (folder / CHECKPOINTS).glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The rollout step that a checkpoint stands before, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def file_sizes(folder: Path) -> dict[str, int]:
    """How long the files are that steps append to, once they are on the disk.

    Raises:
        UserError: They cannot be brought there.
    """
    found = {}
    for name in APPENDED:
        path = folder / name
        if path.is_file():
            with told(path), path.open("ab") as file:
                os.fsync(file.fileno())
                found[name] = file.tell()
    return found


def truncate_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Drop what was appended after a checkpoint; a file that is not as it was then is set aside.

    Raises:
        UserError: They cannot be written to.
    """
    for name in APPENDED:
        path, size = folder / name, sizes.get(name, 0)
        with told(path):
            if not size:
                path.unlink(missing_ok=True)
            elif not path.exists():
                log.warning("%s is gone: it is begun again", path)
            elif _ends_at(path, size):
                os.truncate(path, size)
            else:
                kept = set_aside(path)
                log.warning("%s is not as its checkpoint left it: kept as %s, and begun again", path, kept)


def is_rank_zero() -> bool:
    """Whether this process is the first of a run's, as torchrun, SLURM or Lightning started it."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"


def _identity(config: Mapping[str, Any]) -> str:
    root = os.path.realpath((config.get("trainer") or {}).get("default_root_dir") or ".")
    kept = wherever(config, root)
    begun = (config.get("checkpoints") or {}).get("resume", AUTO)
    if begun not in (AUTO, NEVER):
        kept["resume"] = os.path.relpath(os.path.realpath(begun), root)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:32]


def numbered(root: Path, name: str = "version") -> list[Path]:
    """The folders NAME_N under `root` by their numbers, and no copies of them under other names."""
    found = (path for path in root.glob(f"{name}_*") if path.name[len(name) + 1 :].isdecimal())
    return sorted(found, key=_number)


def later_run(folder: Path) -> Path | None:
    """The last finished run that is numbered beside the one in `folder`, and after it; None if there is none."""
    beside = numbered(folder.parent)
    later = beside[beside.index(folder) + 1 :] if folder in beside else []
    return next(filter(is_finished, reversed(later)), None)


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])


def _progress(folder: Path) -> tuple[int, int]:
    return max(map(step_of, checkpoints(folder)), default=-1), _number(folder)


def _taken(run: Path, config: Mapping[str, Any]) -> Path:
    """`run`, held from here on.

    Raises:
        UserError: It has ended, another process is at work on it, or it was begun with another configuration.
    """
    if has_finished(run):
        raise UserError(f"checkpoints.resume is {str(run)!r}, a run that has ended; name one of its {CHECKPOINTS}/")
    if not _lock(run):
        raise UserError(f"checkpoints.resume is {str(run)!r}, a run that is at work; wait for it, or end it")
    if change := first_change(_configuration(run), config):
        field, before, now = change
        raise UserError(
            f"checkpoints.resume is {str(run)!r}, a run that was begun with {field} {before!r} and not {now!r}; give "
            f"that as it was, or name one of its {CHECKPOINTS}/, from which a new run goes on"
        )
    return run


def _configuration(run: Path) -> dict[str, Any]:
    """As the run was begun with; empty where that cannot be read."""
    try:
        return dict(read_yaml(run / CONFIG))
    except (Unreadable, TypeError, ValueError):
        return {}


def _left(root: Path, identity: str) -> Path | None:
    """The folder of an unfinished run that nobody is at work on, held from here on: that which has come furthest."""
    for folder in sorted(numbered(root), key=_progress, reverse=True):
        record = _record(folder)
        if record is None or record["identity"] != identity or record["finished"] or not _lock(folder):
            continue
        if (record := _record(folder)) and not record["finished"]:  # by whoever held it until now
            return folder
    return None


def _record(folder: Path) -> dict[str, Any] | None:
    """What is being run in `folder`; None where that is not known.

    A record that cannot be read is set aside, and made again from the configuration beside it.
    """
    path, record = folder / _RECORD, _recorded(folder)
    if {"identity", "finished"} <= record.keys():
        return record
    if not checkpoints(folder) or not _lock(folder):
        return None
    config = _configuration(folder)
    if not config:
        log.warning(
            "%s cannot be read, nor %s beside it: the run is left as it is; --checkpoints.resume names a checkpoint "
            "of it to go on from",
            path,
            CONFIG,
        )
        return None
    record = {"identity": _identity(config), "finished": (folder / ADAPTER).exists()}
    kept = f"kept as {set_aside(path)}" if path.exists() else "it is gone"
    log.warning("%s cannot be read (%s): made again from %s", path, kept, CONFIG)
    write_json(path, record)
    return record


def _lock(folder: Path) -> bool:
    """Hold `folder` until this process ends; False if another does."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Not flock: a data worker would inherit it, and hold it for seconds after this process was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return False
    except OSError:  # some file systems have no locks
        pass
    _held.append(descriptor)
    return True


def _emptied(folder: Path) -> bool:
    """Delete what a run that begins in `folder` writes anew; False, and nothing is touched, if there is more."""
    there = [path for path in folder.iterdir() if path.name not in (_RECORD, _LOCK)]
    if not all(path.is_file() and any(map(path.match, _ANEW)) for path in there):
        return False
    for path in there:
        path.unlink()
    return True


def _ends_at(path: Path, size: int) -> bool:
    """Whether a line of `path` ends at `size`."""
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
