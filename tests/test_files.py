"""Files and folders are whole, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from full_disk import full_disk
from lsemrl import files
from lsemrl.errors import UserError
from lsemrl.files import (
    append,
    make_folder,
    remove_folder,
    replace_folder,
    replacing,
    set_aside,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)

    return write


def kill_in(call: str, folder: Path) -> None:
    """Run `call` in a process that is killed where it renames for the second time."""
    code = f"""
import os, signal
from pathlib import Path
from lsemrl.files import *
renamed, rename = [], Path.rename
def rename_or_die(path, target):
    renamed.append(path)
    if len(renamed) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = rename_or_die
folder = Path({str(folder)!r})
{call}
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "བོད།\n")
    path.chmod(0o640)
    write_text(path, "half a character \ud800 is written out")
    assert path.read_text(encoding="utf-8") == "half a character \\ud800 is written out"
    assert path.stat().st_mode & 0o777 == 0o640
    write_bytes(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_full_disk_leaves_the_old_file_and_is_told(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with full_disk(size), pytest.raises(UserError) as error:
        write_text(path, "much that is new")
    assert str(error.value) == (
        f"'{path}' cannot be written to (File too large); make room, and run the same command again"
    )
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_only_at_the_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(UserError, match=r"a\.txt' cannot be written to \(Disk quota exceeded\); make room"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_link_is_followed_and_a_device_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
    write_text(Path(os.devnull), "gone")
    assert Path(os.devnull).is_char_device()


def test_what_no_file_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        tmp_path: "Is a directory",
        tmp_path / "file" / "a": "Not a directory",
        tmp_path / "none" / "a": "No such file or directory",
        tmp_path / ("a" * 300): "File name too long",
    }
    for path, reason in cases.items():
        sentence = (
            rf"^--output is '{re.escape(str(path))}', which cannot be written to \({reason}\); mend that, or name"
        )
        with pytest.raises(UserError, match=sentence):
            write_text(path, "new", "--output")
    with pytest.raises(UserError, match=r"output is .* cannot be written to \(File exists\)"):
        make_folder(tmp_path / "file", "output")
    assert names(tmp_path) == ["file"]


def test_a_library_in_rust_is_understood(tmp_path: Path) -> None:
    sentence = r"'.*tokenizer.json' cannot be written to \(No space left on device\)"
    with pytest.raises(UserError, match=sentence), files.told(tmp_path / "tokenizer.json"):
        raise Exception("No space left on device (os error 28)")


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "a.txt"):
        raise KeyError("x")


@pytest.mark.parametrize("size", [5, 7])
def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path, size: int) -> None:
    path = tmp_path / "new" / "a.txt"
    append(path, "one\n")
    append(path, b"\xff")
    with full_disk(size), pytest.raises(UserError, match=r"a\.txt' cannot be written to"):
        append(path, "three\n")
    assert path.read_bytes() == b"one\n\xff"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        replace_folder(tmp_path / "up" / "best", fill(text))
    assert (tmp_path / "up" / "best" / "inner" / "a.txt").read_text() == "new"
    assert names(tmp_path / "up") == ["best"]
    remove_folder(tmp_path / "up" / "best")
    assert names(tmp_path / "up") == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    replace_folder(tmp_path / "best", fill("old"))
    with full_disk(3), pytest.raises(UserError, match=r"best' cannot be written to \(File too large\)"):
        replace_folder(tmp_path / "best", fill("newer"))
    assert (tmp_path / "best" / "inner" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["best"]


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_folder(tmp_path / "best", fill("old"))
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name.startswith(".new"):
            raise OSError(errno.EIO, "")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match="best' cannot be written to"):
        replace_folder(tmp_path / "best", fill("new"))
    assert (tmp_path / "best" / "b.txt").read_text() == "old"
    assert names(tmp_path) == ["best"]


def test_a_kill_between_two_renames_loses_neither_folder(tmp_path: Path) -> None:
    replace_folder(tmp_path / "best", fill("old"))
    kill_in("replace_folder(folder / 'best', lambda part: (part / 'b.txt').write_text('new'))", tmp_path)
    assert not (tmp_path / "best").exists()
    files._sweep.cache_clear()
    write_text(tmp_path / "other", "")  # whoever writes beside it
    assert (tmp_path / "best" / "b.txt").read_text() == "old"
    assert names(tmp_path) == ["best", "other"]


WAITS = """
import sys
from pathlib import Path
from lsemrl.files import replacing
with replacing(Path(sys.argv[1])) as file:
    print(flush=True)
    sys.stdin.read()
    file.write("theirs")
"""


def test_what_a_killed_writer_left_is_swept_and_what_one_at_work_has_is_not(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    killed, other = (
        subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "a")], stdin=pipe, stdout=pipe) for _ in "ab"
    )
    for process in (killed, other):
        assert process.stdout is not None and process.stdout.readline()
    killed.kill()
    killed.communicate()
    assert len(names(tmp_path)) == 2
    files._sweep.cache_clear()
    write_text(tmp_path / "a", "ours")
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "a").read_text() == "ours"
    other.communicate()
    assert other.returncode == 0
    assert (tmp_path / "a").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_what_cannot_be_read_is_kept_under_a_name_of_its_own(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        (tmp_path / "a.csv").write_text(text)
        set_aside(tmp_path / "a.csv")
    assert names(tmp_path) == ["a.csv.damaged", "a.csv.damaged_2", "a.csv.damaged_3"]
    assert (tmp_path / "a.csv.damaged_2").read_text() == "second"
