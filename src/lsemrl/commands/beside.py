"""Pieces of work side by side, each in a process of its own that says how far it is and ends with this one."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lsemrl.commands.demo_progress import Shown

T = TypeVar("T")


def side_by_side(works: Sequence[Callable[[Shown], T]], shown: Sequence[Shown]) -> list[T]:
    """Do all pieces of work at the same time; a single one in this process.

    Args:
        works: The pieces, and what they return: whatever can be pickled.
        shown: Whom each tells how far it is.

    Returns:
        What they returned, in order.

    Raises:
        BaseException: What the first raised that failed, of which the others are ended.
    """
    if len(works) == 1:
        return [works[0](shown[0])]
    fresh = multiprocessing.get_context("spawn")  # a fork would copy threads of torch that are not there
    pipes = [fresh.Pipe(duplex=False) for _ in works]
    children = [
        fresh.Process(target=_child, args=(work, theirs)) for work, (_, theirs) in zip(works, pipes, strict=True)
    ]
    done: dict[int, T] = {}
    try:
        with _share_of_cores(len(works)):
            for child, (_, theirs) in zip(children, pipes, strict=True):
                child.start()
                theirs.close()  # so that a child that dies is heard of
        while open_ := [at for at in range(len(works)) if at not in done]:
            heard = wait([pipes[at][0] for at in open_])
            for at in (at for at in open_ if pipes[at][0] in heard):
                kind, content = _received(pipes[at][0], children[at])
                if kind == "done":
                    done[at] = content
                    shown[at].say("")
                elif kind == "say":
                    shown[at].say(content)
                elif kind == "advance":
                    shown[at].advance(content)
                else:
                    print(content, end="", flush=True)
    finally:
        for child in children:
            if child.is_alive() and len(done) < len(works):
                child.terminate()
        for child in children:
            if child.pid:
                child.join()
    return [done[at] for at in range(len(works))]


@contextmanager
def aside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Have work done while this process goes on with other things, where there is a core for it and a fork is safe.

    Args:
        work: What computes with no tensors, for threads of torch are not copied.

    Yields:
        What waits for it, and returns what it returned, which can be pickled, or raises what it raised.
    """
    if sys.platform != "linux" or (os.cpu_count() or 1) == 1:
        yield work
        return
    forked = multiprocessing.get_context("fork")
    pipe, theirs = forked.Pipe(duplex=False)
    child = forked.Process(target=_child, args=(lambda told: work(), theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # nothing is touched that threads may hold
        child.start()
    theirs.close()

    def result() -> T:
        while (heard := _received(pipe, child))[0] != "done":
            print(heard[1], end="", flush=True)
        returned: T = heard[1]
        return returned

    try:
        yield result
    finally:
        child.kill()
        child.join()


def _received(pipe: Connection, child: BaseProcess) -> tuple[str, Any]:
    """What a child says next; raises what it raised, or that it died."""
    try:
        kind, content = pipe.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"a process of ours ended by exit status {child.exitcode}") from None
    if kind == "failed":
        raise content
    return kind, content


@contextmanager
def _share_of_cores(parts: int) -> Iterator[None]:
    """Whoever is started now takes a share of the cores, for more threads than cores wait in vain."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // parts, 1))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


class _Told(io.TextIOBase):
    """Sends what is told, or printed, to the process that waits for it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def say(self, text: str) -> None:
        """See `Shown`."""
        self._pipe.send(("say", text))

    def advance(self, cost: float) -> None:
        """See `Shown`."""
        self._pipe.send(("advance", cost))

    def write(self, text: str) -> int:
        """Print it there, where a bar may stand."""
        self._pipe.send(("print", text))
        return len(text)


def _child(work: Callable[[Shown], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for us ends us
    told = _Told(pipe)
    try:
        with redirect_stdout(told), redirect_stderr(told):
            result = work(told)
        pipe.send(("done", result))
    except BrokenPipeError:
        sys.exit(1)  # nobody waits any longer
    except BaseException as error:
        error.add_note(traceback.format_exc())
        try:
            pipe.send(("failed", error))
        except (pickle.PicklingError, TypeError, AttributeError):
            pipe.send(("failed", RuntimeError(traceback.format_exc())))
