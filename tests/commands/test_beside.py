"""Work side by side: everything is told to whoever waits, and nothing is left at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lsemrl.commands.beside import aside, side_by_side
from lsemrl.errors import UserError
from works import counted, failing, telling


class Heard:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done = 0.0

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, cost: float) -> None:
        self.done += cost


def gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_results_come_in_order_and_words_to_whom_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    heard = [Heard(), Heard()]
    found = side_by_side([partial(counted, "a", 3), partial(counted, "b", 1)], heard)
    assert [name for name, _ in found] == ["a", "b"]
    assert len({pid for _, pid in found} | {os.getpid()}) == 3
    assert [each.said for each in heard] == [["a 0", "a 1", "a 2", ""], ["b 0", ""]]
    assert [each.done for each in heard] == [3, 1]
    printed = capsys.readouterr().out
    assert all(f"{name} {how}\n" in printed for name in "ab" for how in ("printed", "warned"))


def test_one_alone_is_done_here() -> None:
    assert side_by_side([partial(counted, "a", 1)], [Heard()]) == [("a", os.getpid())]


@pytest.mark.parametrize(("cores", "here"), [(2, False), (1, True)])
def test_what_is_done_aside_is_done_elsewhere_where_there_is_a_core(
    cores: int, here: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    with aside(partial(counted, "a", 0, Heard())) as result:
        assert (result()[1] == os.getpid()) == here
    assert capsys.readouterr().out.startswith("a printed\n")


def test_what_fails_aside_fails_where_it_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("1")
    work = partial(failing, "is refused", tmp_path / "ready", Heard())
    with aside(work) as result, pytest.raises(UserError, match="lr is -1"):
        result()


def test_nobody_waits_for_what_is_done_aside_of_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(UserError, match="of its own"), aside(partial(telling, file, Heard())):
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        raise UserError("a mistake of its own")
    assert gone(int(file.read_text()))


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ("is refused", UserError, "lr is -1; give a number above 0"),
        ("no pickle", RuntimeError, "Local: what nobody can unpickle"),
        ("dies", RuntimeError, "exit status 3"),
    ],
)
def test_where_one_fails_the_other_is_ended(how: str, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(error, match=sentence):
        side_by_side([partial(telling, file), partial(failing, how, file)], [Heard(), Heard()])
    assert gone(int(file.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_at_work_behind_whoever_waited(number: signal.Signals, tmp_path: Path) -> None:
    """After a kill they find nobody to tell that they are at work."""
    files = [tmp_path / "one", tmp_path / "two"]
    script = Path(__file__).parents[1] / "works.py"
    process = subprocess.Popen(
        [sys.executable, script, *files],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    pids = [int(_appears(file)) for file in files]
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 30
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _appears(file: Path) -> str:
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
    return file.read_text()
