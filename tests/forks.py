"""Commands as processes that need not import: forks of a server that is itself a fork of pytest's worker.

A fork says, writes and ends as a process of its own does (test_forks.py); only the seconds of the imports are saved.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
import torch

from lsemrl.cli.main import main

_get_context = multiprocessing.get_context
_CONTEXT = _get_context("forkserver")
_CONTEXT.set_forkserver_preload(["preloaded"])


def start_server() -> None:
    """Before the first test: a process that has computed cannot be forked, for its threads are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork_with)
        forkserver.ensure_running()


def _fork_with(executable: str, words: list[str], descriptors: Sequence[int]) -> int:
    """Run `python -c` code in a fork that has nothing of this process but its memory and these descriptors."""
    pid = os.fork()
    if pid:
        return pid
    # Not closed but led nowhere: objects in this memory may yet write to their numbers.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) not in (nowhere, *descriptors):
            os.dup2(nowhere, int(name), inheritable=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", 1, closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, closefd=False, errors="backslashreplace")
    _log_as_a_process_of_its_own()
    # What this process does when it ends, such as to remove its folders, is not for the fork to do.
    atexit._clear()
    weakref.finalize._registry.clear()
    resource_tracker._resource_tracker._fd = None  # it leads nowhere now
    try:
        code, *sys.argv[1:] = words[words.index("-c") + 1 :]  # Python 3.14 gives what to call it by behind the code
        exec(code, {})
    finally:
        os._exit(0)  # or pytest would go on here


def _log_as_a_process_of_its_own() -> None:
    """Without pytest's handlers, for which Lightning went without one of its own; to the standard error of now."""
    logging.root.handlers.clear()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).addHandler(logging.StreamHandler())
        logging.getLogger(name).propagate = False
    for reference in logging._handlerList:
        handler = reference()
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr


def context(method: str) -> BaseContext:
    """What `multiprocessing.get_context` returns, but forks of the server in place of processes that import anew."""
    return _CONTEXT if method == "spawn" else _get_context(method)


class Fork:
    """A command at work in a process group of its own, much as `subprocess.Popen` would start it.

    Args:
        words: What is typed after the program's name.
        run: What is called with them.
        environment: Added to that of this process; what is None there is taken away.
        folder: Where it works; None is where this process does.
    """

    def __init__(
        self,
        words: Sequence[str],
        run: Callable[[list[str]], None] = main,
        environment: Mapping[str, str | None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._said = tempfile.TemporaryDirectory()
        self._output, self._errors = Path(self._said.name, "output"), Path(self._said.name, "errors")
        for file in (self._output, self._errors):
            file.touch()
        start_server()
        whole = {name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None}
        self._process = _CONTEXT.Process(
            target=_work, args=(run, list(words), whole, folder or Path.cwd(), self._output, self._errors)
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status once it has ended; minus the number of the signal that ended it."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill the process and its children."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not begun to lead a group
            os.kill(self.pid, signal.SIGKILL)

    def end(self, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """What it said, and its exit status; it is killed where it takes longer than so many seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
        output, errors = self._output.read_text(), self._errors.read_text()
        self._said.cleanup()
        assert self._process.exitcode is not None
        return subprocess.CompletedProcess([], self._process.exitcode, output, errors)


def ranks(
    words: Sequence[str], run: Callable[[list[str]], None] = main, folder: Path | None = None, count: int = 2
) -> list[Fork]:
    """A command as torchrun starts it on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "GROUP_RANK": "0"}
    place |= {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    unset = {"PL_GLOBAL_SEED": None}  # by which Lightning seeds; an earlier test may have left it
    return [
        Fork(words, run, {**place, **unset, "RANK": str(rank), "LOCAL_RANK": str(rank)}, folder)
        for rank in range(count)
    ]


def script(words: list[str]) -> None:
    """What `python -c` does."""
    sys.argv = ["-c", *words[1:]]
    exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})


def benchmark(words: list[str]) -> None:
    """What `python benchmarks/... .py` does, but that those whom it measures are forks in their turn."""
    import harness

    harness.START = "fork"
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _work(
    run: Callable[[list[str]], None],
    words: list[str],
    environment: dict[str, str],
    folder: Path,
    output: Path,
    errors: Path,
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # what a process begins with
    for descriptor, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["lsemrl", *words]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        run(words)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
