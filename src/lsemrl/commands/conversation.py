"""Lines answered one by one, as their tokens come, and scored against a reference that follows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import TextIO

from lsemrl.commands.answers import check_one_input, fault, load, one_each, say
from lsemrl.commands.scored import parts_of, score
from lsemrl.commands.trained import Trained
from lsemrl.foreign import visible
from lsemrl.modules.policy import Policy
from lsemrl.rewards import RewardMix
from lsemrl.types import UserError

_SCORED = "="
"""What a line begins with that is a reference."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}\r"
"""What the next token may make into something else, at the end of a text."""


class _Stopped(Exception):
    """Ctrl-C during an answer."""


class Conversation:
    """What answers, and what it said last.

    Args:
        run: What was taken up.
        side_by_side: Whether the base answers too.
        greedy: Take the likeliest token, rather than draw as the run drew.
        seed: Of the drawing; the next line's is one higher.
        out: Where answers go.
        at_prompt: Whether somebody sits there: Ctrl-C then stops an answer, and a mistake costs a line.

    Raises:
        UserError: The run's task has several inputs, or a model cannot be read.
    """

    def __init__(
        self, run: Trained, *, side_by_side: bool, greedy: bool, seed: int, out: TextIO, at_prompt: bool
    ) -> None:
        check_one_input(run)
        self.run, self.seed, self.out, self.at_prompt = run, seed, out, at_prompt
        self.sampling = one_each(run.sampling, greedy=greedy)
        policy = load(Policy(run.policy))
        self.speakers: dict[str, tuple[Policy, Callable[[], AbstractContextManager[None]]]] = {
            "trained": (policy, nullcontext)
        }
        if side_by_side:
            base = (load(Policy(run.base)), nullcontext) if run.base else (policy, policy.base)
            self.speakers = {"base": base, **self.speakers}
        self.text = ""
        self.said: dict[str, str] = {}

    def go(self, texts: Iterable[str]) -> None:
        """Answer or score every line; a blank one says nothing.

        Raises:
            UserError: A line that cannot be answered, where nobody is there to type another.
        """
        for text in texts:
            try:
                if text.lstrip().startswith(_SCORED):
                    self._score(text.lstrip()[len(_SCORED) :].strip())
                elif text.strip():
                    self._answer(text)
                else:
                    print(file=self.out, flush=True)
            except UserError as error:
                if not self.at_prompt:
                    raise
                print(f"lsemrl: {visible(str(error))}", file=sys.stderr)

    def _answer(self, text: str) -> None:
        self.text, self.said = text, {}
        for name, (policy, mode) in self.speakers.items():
            wrong = ""
            growing = _Growing(self.out, self._head(name))
            with mode(), _until_stopped() if self.at_prompt else nullcontext(lambda: None) as check:

                def told(so_far: str, growing: _Growing = growing, check: Callable[[], None] = check) -> None:
                    growing.show(so_far)
                    check()

                with suppress(_Stopped):  # what was said until then is the answer
                    (one,) = say(policy, self.run.data.plan, [text], self.sampling, self.seed, told)
                    growing.said, wrong = one.text, fault(one, self.sampling)
            growing.end()
            if wrong:
                print(f"lsemrl: {self._head(name)}the answer was {wrong}", file=sys.stderr)
            self.said[name] = growing.said
        self.seed += 1

    def _score(self, reference: str) -> None:
        if not self.said:
            raise UserError("a line that begins with = scores the answer before it, and there is none; ask first")
        if not reference:
            raise UserError("a line that begins with = scores the answer before it; write the reference behind it")
        for name, said in self.said.items():
            line = score(self.mix, self.text, said, reference, pair=self.run.data.plan.task.pairs)
            print(f"{self._head(name)}{visible(line)}", file=self.out, flush=True)

    @cached_property
    def mix(self) -> RewardMix:
        """The parts of the reward; made when they are first asked for, since an encoder takes its time."""
        mix, left_out = parts_of(self.run)
        for line in left_out:
            print(f"lsemrl: {visible(line)}", file=sys.stderr)
        return mix

    def _head(self, name: str) -> str:
        return f"{name}: " if len(self.speakers) > 1 else ""


class _Growing:
    """One answer: on a terminal as it grows, fit for it; elsewhere in a line when it is whole, as the model said it."""

    def __init__(self, out: TextIO, head: str) -> None:
        self.said = ""
        self._out, self._head, self._terminal, self._shown = out, head, out.isatty(), ""

    def show(self, so_far: str) -> None:
        """Write what is new."""
        self.said = so_far
        fit = visible(so_far.rstrip(_UNFINISHED))
        if self._terminal and fit.startswith(self._shown):
            self._write(fit[len(self._shown) :])
            self._shown = fit

    def end(self) -> None:
        """Write the rest; the whole once more, where what was shown turned out to be a thought."""
        if self._terminal:
            whole = visible(self.said)
            self._write(whole[len(self._shown) :] if whole.startswith(self._shown) else f"\n{whole}")
        else:
            self._write(" ".join(self.said.splitlines()))
        self._write("\n")

    def _write(self, text: str) -> None:
        self._out.write(self._head + text)
        self._out.flush()
        self._head = ""  # which waits for the first token: there may be a mistake instead


@contextmanager
def _until_stopped() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C is told by the function that is given, between two tokens; a second one breaks off at once."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    def check() -> None:
        if stopped:
            raise _Stopped

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
