"""Runs an experiment: each run a child process with its own folder and log, skipped where it is already complete."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from rich.console import Console

from lsemrl.durations import spoken
from lsemrl.experiment.children import Child, claimed, environment, listening, write_pids
from lsemrl.experiment.plan import Experiment, Run, changed
from lsemrl.experiment.progress import LAST_LINES, Display, shown, tell
from lsemrl.experiment.reports import write_reports
from lsemrl.experiment.state import LOG, Standing, adopt, begin, estimate, finish, pace, standing
from lsemrl.files import append, told
from lsemrl.json_records import write_json

PREFIX = (sys.executable, "-m", "lsemrl")
"""What makes a command of a run's words."""
_POLL = 0.1

Status = Literal["waiting", "running", "done", "copied", "skipped", "failed", "not run"]
_READY = ("done", "copied", "skipped")
"""What a run that builds on it may start after."""


def run_experiment(
    experiment: Experiment, *, parallel: int = 1, prefix: Sequence[str] = PREFIX, console: Console | None = None
) -> int:
    """Run what is not complete; a failure is reported, and what does not build on it goes on.

    SIGINT, SIGTERM and SIGHUP end the children; another call goes on from there.

    Args:
        experiment: See there.
        parallel: Runs at a time.
        prefix: Put before a run's words to make its command.
        console: Where to report.

    Returns:
        The exit status: 0, 1 if a run failed, 128 + the signal if one came.

    Raises:
        UserError: A folder cannot be written to, is in use, or holds something else.
    """
    console = console or Console()
    with claimed(experiment.output) as lock, listening() as signals:
        crew = _Crew(experiment, parallel, tuple(prefix), console, lock)
        _write_index(experiment)
        with shown(console, len(crew.runs)) as display:
            crew.show = display
            try:
                while not signals and crew.step():
                    time.sleep(_POLL)
            finally:
                crew.stop(signals)
        status = crew.conclude(signals)
    return status or write_reports(experiment, prefix, console)


class _Crew:
    """The runs of an experiment and the children at work on them."""

    def __init__(
        self, experiment: Experiment, parallel: int, prefix: tuple[str, ...], console: Console, lock: int
    ) -> None:
        self.experiment, self.parallel, self.prefix, self.lock = experiment, parallel, prefix, lock
        self._say = partial(tell, console)
        self.show: Display = Display()
        self.runs = experiment.runs()
        self.standings = [standing(run, experiment.name) for run in self.runs]
        for run, stands in zip(self.runs, self.standings, strict=True):
            if stands.ended:
                finish(run, seconds=0.0, peak_bytes=0, resumed=True)  # by which no estimate goes
        self.status: dict[tuple[str, int], Status] = {
            _key(run): "skipped" if stands.complete else "waiting"
            for run, stands in zip(self.runs, self.standings, strict=True)
        }
        self.children: list[Child] = []
        self.expected: dict[tuple[str, int], float | None] = {}
        self._reckon()
        settled = list(self.status.values()).count("skipped")
        self._say(f"{experiment.name}: {len(self.runs)} runs, {settled} of them complete and unchanged")
        if experiment.remark:
            self._say(experiment.remark)

    def step(self) -> bool:
        """Note what has ended, start what can be started; whether there is anything left to wait for."""
        for child in list(self.children):
            ended = child.ended()
            if ended:
                self.children.remove(child)
                self._note(child, *ended)
        for run, stands in zip(self.runs, self.standings, strict=True):
            if self.status[_key(run)] != "waiting":
                continue
            parents = [self.status[(name, run.seed)] for name in run.stage.parents]
            if any(status in ("failed", "not run") for status in parents):
                self.status[_key(run)] = "not run"
                self._say(f"{run.name} is not run: what it builds on failed")
            elif len(self.children) < self.parallel and all(status in _READY for status in parents):
                self._start(run, stands)
        self._tick()
        return bool(self.children)

    def stop(self, signals: Sequence[int]) -> None:
        """End the children, which may first finish a step and save it; by force where another signal comes."""
        for child in self.children:
            child.signal(signal.SIGTERM)
        if self.children:
            self._say("waiting for the steps at work to end and to be saved; once more (Ctrl-C) ends them at once")
        while self.children:
            for child in list(self.children):
                ended = child.ended()
                if ended:
                    self.children.remove(child)
                    if ended[0] == 0:
                        self._note(child, *ended)
                elif len(signals) > 1:
                    child.signal(signal.SIGKILL)
            time.sleep(_POLL)

    def conclude(self, signals: Sequence[int]) -> int:
        """Say how it went; the exit status."""
        told = ", ".join(f"{number} {status}" for status, number in Counter(self.status.values()).items())
        left = [run.name for run in self.runs if self.status[_key(run)] in ("failed", "not run")]
        if signals:
            self._say(f"stopped by {signal.Signals(signals[0]).name}; the same command goes on from here")
            return 128 + signals[0]
        self._say(f"{self.experiment.name}: {told}; everything is in {self.experiment.output}")
        if left:
            self._say(f"missing: {', '.join(left)}; the same command tries them again")
        return 1 if left else 0

    def _start(self, run: Run, stands: Standing) -> None:
        at = self.runs.index(run)
        if others := changed(run):
            self.status[_key(run)] = "not run"
            self._say(
                f"{run.name} is not run: {', '.join(others)} changed since this was started; the same command runs it "
                "by what is there now"
            )
            return
        with told(run.folder):
            if stands.twin and adopt(run, self.experiment.name, stands.twin):
                self.status[_key(run)] = "copied"
                self._say(f"[{at + 1}/{len(self.runs)}] {run.name}: copied from {stands.twin}")
                return
            if stands.twin:
                stands = self.standings[at] = Standing(
                    complete=False, reason=f"{stands.twin} is gone, or of another run by now"
                )
                self._reckon()
            begin(run, self.experiment.name)
            words = (*run.command, *stands.adds)
            append(run.folder / LOG, f"$ {shlex.join(('lsemrl', *words))}\n")
            log = (run.folder / LOG).open("ab")
        process = subprocess.Popen(
            [*self.prefix, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A group of its own: a Ctrl-C reaches us alone, and a signal of ours reaches whatever it has started.
            start_new_session=True,
            # The lock lives as long as any who holds it, so that nobody works beside a child that we left behind.
            pass_fds=(self.lock,),
            env=environment(self.parallel),
        )
        self.children.append(Child(run=run, standing=stands, process=process, log=log))
        write_pids(self.lock, [os.getpid(), *(child.process.pid for child in self.children)])
        self.status[_key(run)] = "running"
        if not self.show.live:
            self._say(f"[{at + 1}/{len(self.runs)}] {run.name}: started ({stands.reason})")

    def _note(self, child: Child, code: int, peak_bytes: int) -> None:
        run, resumed = child.run, child.standing.goes_on
        reason: str | None = f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        if code == 0:
            reason = finish(run, seconds=child.seconds, peak_bytes=peak_bytes, resumed=resumed)
        if reason is None:
            self.status[_key(run)] = "done"
            self._reckon()
            left = "" if self.show.live else self._left()
            self._say(f"{run.name}: done in {spoken(child.seconds)}{left and f'; {left}'}")
            return
        self.status[_key(run)] = "failed"
        log = run.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        self._say(f"{run.name} failed after {spoken(child.seconds)}: {reason}; the end of {log}:")
        self._say("\n".join(f"    {line}" for line in lines))

    def _tick(self) -> None:
        working = [f"[{self.runs.index(child.run) + 1}/{len(self.runs)}] {child.run.name}" for child in self.children]
        settled = sum(status not in ("waiting", "running") for status in self.status.values())
        shares = 0.0
        for child in self.children:
            expected = self.expected[_key(child.run)]
            shares += min(child.seconds / expected, 0.95) if expected else 0.0
        self.show.update(", ".join(working), settled + shares, self._left())

    def _left(self) -> str:
        """The time left as far as it is known."""
        working = {_key(child.run): child.seconds for child in self.children}
        open_ = [key for key, status in self.status.items() if status in ("waiting", "running")]
        expected = [(key, self.expected[key]) for key in open_]
        known = [max(seconds - working.get(key, 0.0), 0.0) for key, seconds in expected if seconds is not None]
        unknown = len(open_) - len(known)
        if not known:
            return f"{unknown} of unknown duration left" if unknown else ""
        besides = f" and {unknown} of unknown duration" if unknown else ""
        seconds = max(sum(known) / min(self.parallel, len(open_)), self._longest(working))
        return f"about {spoken(seconds)}{besides} left"

    def _longest(self, working: Mapping[tuple[str, int], float]) -> float:
        """The seconds that the longest line of runs takes that wait for each other."""
        ends: dict[tuple[str, int], float] = {}
        for run in self.runs:  # parents come before children
            key = _key(run)
            before = max((ends[(name, run.seed)] for name in run.stage.parents), default=0.0)
            own = (self.expected[key] or 0.0) if self.status[key] in ("waiting", "running") else 0.0
            ends[key] = before + max(own - working.get(key, 0.0), 0.0)
        return max(ends.values())

    def _reckon(self) -> None:
        """What each run is likely to take, from what is complete by now."""
        speed = pace(self.runs)
        self.expected = {
            _key(run): 0.0 if stands.twin else estimate(run, self.runs, speed).seconds
            for run, stands in zip(self.runs, self.standings, strict=True)
        }


def _write_index(experiment: Experiment) -> None:
    """Say in experiment.json what the folders beside it are, for whoever reads the results."""
    stages = [
        {name: getattr(stage, name) for name in ("name", "verb", "after", "label", "description")}
        for stage in experiment.stages
    ]
    index: dict[str, Any] = {"name": experiment.name, "description": experiment.description}
    index |= {"seeds": experiment.seeds, "folder": "{stage}/seed_{seed}", "stages": stages}
    write_json(experiment.output / "experiment.json", index)


def _key(run: Run) -> tuple[str, int]:
    return run.stage.name, run.seed
