"""Results that are kept until all are there: whole lines of one command, by one process at a time."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsemrl.errors import UserError
from lsemrl.unfinished import Unfinished

ASKED = {"rows": 3}


@contextmanager
def unfinished(output: Path, asked: dict[str, int], batch_size: int = 1) -> Iterator[Unfinished]:
    with Unfinished(output) as part:
        part.take_up(asked, batch_size)
        yield part


def stopped(output: Path, *lines: str, asked: dict[str, int] = ASKED) -> Path:
    with pytest.raises(ZeroDivisionError), unfinished(output, asked) as part:
        for line in lines:
            part.add(line)
        raise ZeroDivisionError
    return part.path


def test_it_is_gone_once_its_block_ends(tmp_path: Path) -> None:
    with unfinished(tmp_path / "out", ASKED) as part:
        part.add("one")
        assert part.path.read_text() == '{"rows": 3}\none\n'
    assert not list(tmp_path.iterdir())
    stopped(tmp_path / "out")  # nothing was done
    assert not list(tmp_path.iterdir())


def test_what_was_done_is_taken_up_in_order(tmp_path: Path) -> None:
    path = stopped(tmp_path / "out", "one", "two", "three")
    with pytest.raises(ZeroDivisionError), unfinished(tmp_path / "out", ASKED, batch_size=2) as part:
        assert [part.take(), part.take(), part.take()] == ["one", "two", None]
        part.add("other")
        raise ZeroDivisionError
    assert path.read_text() == '{"rows": 3}\none\ntwo\nother\n'


def test_what_is_given_is_gone_on_from_where_nothing_is_here(tmp_path: Path) -> None:
    for left, taken in ((["one"], ["one", None]), ([], ["given", "too", None])):
        stopped(tmp_path / "out", *left)
        with Unfinished(tmp_path / "out") as part:
            part.take_up(ASKED, given=["given", "too"])
            assert [part.take() for _ in taken] == taken
            part.add("more")
            assert part.path.read_text().split() == ['{"rows":', "3}", *part.lines]
    with pytest.raises(ZeroDivisionError), Unfinished(tmp_path / "out") as part:
        part.take_up(ASKED, given=["given", "too"])
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())  # it lies elsewhere


@pytest.mark.parametrize("torn", ["thr", "th\u00e9".encode()[:-1]])
def test_half_a_line_is_none(torn: str | bytes, tmp_path: Path) -> None:
    path = stopped(tmp_path / "out", "one", "two")
    with path.open("ab") as file:
        file.write(torn.encode() if isinstance(torn, str) else torn)
    with unfinished(tmp_path / "out", ASKED) as part:
        assert part.lines == ["one", "two"]
        assert path.read_text() == '{"rows": 3}\none\ntwo\n'


def test_a_kill_in_the_first_line_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").write_text('{"ro')
    with unfinished(tmp_path / "out", ASKED) as part:
        assert part.lines == [] and part.path.read_text() == '{"rows": 3}\n'


def test_what_is_of_another_command_stays(tmp_path: Path) -> None:
    path = stopped(tmp_path / "out", "one")
    with pytest.raises(UserError, match="another command worked out"):
        unfinished(tmp_path / "out", {"rows": 4}).__enter__()
    path.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="is not as it was written; move it away"):
        unfinished(tmp_path / "out", ASKED).__enter__()
    assert path.read_bytes() == b"\xff\n"


def test_what_fails_before_it_is_taken_up_leaves_what_there_was(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Unfinished(tmp_path / "out"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    path = stopped(tmp_path / "out", "one")
    with pytest.raises(ZeroDivisionError), Unfinished(tmp_path / "out"):
        raise ZeroDivisionError
    with unfinished(tmp_path / "out", ASKED) as part:
        assert part.lines == ["one"]
    assert not path.exists()


def test_a_file_system_may_have_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with unfinished(tmp_path / "out", ASKED) as part:
        part.add("one")
        assert part.lines == ["one"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with unfinished(tmp_path / "out", ASKED) as part:
        part.add("one")
        with pytest.raises(UserError, match=r"another process is at work on .*; wait for it, or end it"):
            Unfinished(tmp_path / "out")
        part.add("two")
        assert part.path.read_text() == '{"rows": 3}\none\ntwo\n'
