"""One process at a time."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from lsemrl.errors import UserError
from lsemrl.locks import held


def test_one_process_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with held(tmp_path / "new" / "rows.jsonl"):
        with (
            pytest.raises(UserError, match=r"another process is at work on .*rows.jsonl'; wait for it, or end it"),
            held(tmp_path / "link" / "new" / "rows.jsonl"),
        ):
            pytest.fail("two of them")
        with held(tmp_path / "new" / "others.jsonl"):
            pass
        with pytest.raises(UserError, match="another process"), held(tmp_path / "new" / "rows.jsonl"):
            pytest.fail("the first one's lock is gone")
    with pytest.raises(ZeroDivisionError), held(tmp_path / "new" / "rows.jsonl"):
        raise ZeroDivisionError
    assert not list((tmp_path / "new").iterdir())


def test_a_file_that_was_taken_away_while_it_was_waited_for_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before ended between our opening the file and our locking it: a third would have made another."""
    path, beside, lock, gone = tmp_path / "own.jsonl", tmp_path / ".own.jsonl.lock", fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not gone:
            gone.append(beside.unlink())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with held(path):
        assert beside.exists()
        with pytest.raises(UserError, match="another process is at work"), held(path):
            pass
    assert not beside.exists()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"--output is .* cannot be written to"),
        held(tmp_path / "file" / "a", "--output"),
    ):
        pass


def test_a_file_system_may_have_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with held(tmp_path / "a"):
        pass
