"""How a file or a folder is written: aside, and under its own name once all of it is on the disk.

So a full disk, a kill or two writers at once leave what was there or what is new, never half of it. Whatever keeps
something from being written is told in one sentence. Imports nothing heavy, for the command line stands on it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lsemrl.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROCESS = secrets.token_hex(4)  # a pid alone comes again
_ASIDE = re.compile(r"\.(?P<kind>new|old)-(?P<node>.+)-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-(?P<name>.+)")


def full_disk(error: BaseException) -> str | None:
    """Why `error` says that a disk takes no more; None if it says something else."""
    number = _number(error)
    return os.strerror(number) if number in _FULL else None


@contextmanager
def told(path: Path, field: str = "") -> Iterator[None]:
    """Turn what keeps `path` from being written, by us or by a library, into a sentence.

    Args:
        path: What is written in the block.
        field: Where the user named it, such as --output; empty for a file of a name of ours.

    Raises:
        UserError: It cannot be written.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        what = f"{field} is {str(path)!r}, which" if field else repr(str(path))
        remedy = "make room, and run the same command again" if number in _FULL else "mend that, or name another place"
        raise UserError(f"{what} cannot be written to ({os.strerror(number)}); {remedy}") from error


def try_folder(folder: Path, field: str) -> None:
    """Try, before hours of work, whether files can be made in a folder, and leave nothing behind.

    Raises:
        UserError: They cannot.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with told(folder, field):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = _aside(folder / "trial", "new")
            trial.touch()
            trial.unlink()
        finally:
            for path in missing:
                with suppress(OSError):
                    path.rmdir()


def make_folder(folder: Path, field: str = "") -> None:
    """Make a folder where it is missing.

    Raises:
        UserError: It cannot be made.
    """
    with told(folder, field):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path, field: str = "") -> Iterator[TextIOWrapper]:
    """A text file in UTF-8, which takes the place of `path` when the block ends without an error.

    Args:
        path: In a folder that exists. A link is followed; a pipe or a device is written to as it is.
        field: As for `told`.

    Raises:
        UserError: It cannot be written; what was there stays.
    """
    with told(path, field):
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            with _text(path, "w") as file:
                yield file
            return
        if mode is not None and (stat.S_ISDIR(mode) or not os.access(path, os.W_OK)):
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EACCES, "")
        place = Path(os.path.realpath(path))
        part = _aside(place, "new")
        try:
            with _text(part, "x") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                part.chmod(stat.S_IMODE(mode))
            part.replace(place)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        _sync_folder(place.parent)


def write_text(path: Path, text: str, field: str = "") -> None:
    """Write a whole file in UTF-8, in a folder that exists.

    Raises:
        UserError: It cannot be written; what was there stays.
    """
    with replacing(path, field) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, in a folder that exists.

    Raises:
        UserError: It cannot be written; what was there stays.
    """
    with replacing(path) as file:
        file.buffer.write(content)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], field: str = "") -> None:
    """Write JSONL, a line for each row, in a folder that exists.

    Raises:
        UserError: It cannot be written; what was there stays.
    """
    with replacing(path, field) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append(path: Path, content: str | bytes) -> None:
    """Add to the end of a file, all or nothing; it and its folder are made where they are missing.

    Raises:
        UserError: It cannot be written; it ends where it ended.
    """
    left = memoryview(content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
            except BaseException:
                file.truncate(end)
                raise


def replace_folder(folder: Path, fill: Callable[[Path], object], field: str = "") -> None:
    """Write a folder whole, in the place of the one before it.

    A kill between the two renames leaves the old folder under another name; the next who writes beside it puts it back.

    Args:
        folder: Made, with those above it.
        fill: Writes the files into the empty folder it is given.
        field: As for `told`.

    Raises:
        UserError: It cannot be written; what was there stays.
    """
    folder = Path(os.path.realpath(folder))
    with told(folder, field):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise OSError(errno.ENOTDIR, "")
        part = _aside(folder, "new")
        try:
            part.mkdir()
            fill(part)
            _sync_all(part)
            _exchange(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _sync_folder(folder.parent)


def is_free(folder: Path, but: Collection[str] = ()) -> bool:
    """Whether `folder` is missing, or holds nothing `but` files of these names and what killed writers left."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name in but or _ASIDE.fullmatch(path.name) for path in folder.iterdir())


def fill_folder(folder: Path, fill: Callable[[Path], object], field: str = "") -> None:
    """Write into a folder that is the user's own, and free: everything or, after an error, nothing.

    Args:
        folder: Made where it is missing; never renamed, for it may be where a shell stands or a disk is mounted.
        fill: Writes the files into the empty folder it is given.
        field: As for `told`.

    Raises:
        UserError: It cannot be written.
    """
    with told(folder, field):
        folder.mkdir(parents=True, exist_ok=True)
        part = _aside(folder / "all", "new")
        try:
            part.mkdir()
            fill(part)
            _sync_all(part)
            for path in list(part.iterdir()):
                path.rename(folder / path.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _sync_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill leaves no half of it under its name."""
    gone = _aside(folder, "new")
    folder.rename(gone)
    shutil.rmtree(gone)


def set_aside(path: Path) -> Path:
    """Rename what cannot be read to NAME.damaged, or the next free name like it, and return that."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged_{number}")
    return path.rename(aside)


def _exchange(part: Path, folder: Path) -> None:
    while True:
        old = _aside(folder, "old")
        with suppress(FileNotFoundError):
            folder.rename(old)
        try:
            part.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was faster: ours is the newer
                continue
            with suppress(OSError):
                old.rename(folder)
            raise
        finally:
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
        return


def _number(error: BaseException) -> int | None:
    """What the system said; libraries in Rust and shutil write it into their own errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
    return int(found[1]) if found else None


def _text(path: Path, mode: str) -> TextIOWrapper:
    file = path.open(mode, encoding="utf-8", errors="backslashreplace", newline="")
    assert isinstance(file, TextIOWrapper)
    return file


def _aside(path: Path, kind: str) -> Path:
    """A name beside `path` that no other writer has."""
    _sweep(path.parent)
    name = path.name if kind == "old" else secrets.token_hex(4)
    return path.with_name(f".{kind}-{platform.node()}-{os.getpid()}-{_PROCESS}-{name}")


@cache  # once a process: what it leaves itself, it takes away itself
def _sweep(folder: Path) -> None:
    """Delete what killed writers left in `folder`, and put back what they had moved out of the way."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _ASIDE.fullmatch(path.name)
            if not found or found["node"] != platform.node() or _is_at_work(int(found["pid"]), found["process"]):
                continue
            if found["kind"] == "old" and not path.with_name(found["name"]).exists():
                path.rename(path.with_name(found["name"]))
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_at_work(pid: int, process: str) -> bool:
    if pid == os.getpid():
        return process == _PROCESS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            _sync_folder(path)
        elif not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems sync no folders
        _sync(folder)
