"""Runs an experiment: each run a child process with its own folder and log, skipped where it is already complete."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rich.console import Console

from lsemrl.durations import spoken
from lsemrl.experiment.children import Child, claimed, environment, listening, write_pids
from lsemrl.experiment.plan import Experiment, Run, changed
from lsemrl.experiment.progress import LAST_LINES, Display, shown, tell
from lsemrl.experiment.reports import write_reports
from lsemrl.experiment.schedule import parents_of, seconds_until_all_end
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
        _write_index(experiment, crew.runs)
        with shown(console, len(crew.jobs)) as display:
            crew.show = display
            try:
                while not signals and crew.step():
                    time.sleep(_POLL)
            finally:
                crew.stop(signals)
        status = crew.conclude(signals)
    return status or write_reports(experiment, prefix, console)


@dataclass(eq=False)
class _Job:
    """A run, and how it goes.

    Attributes:
        number: Of all runs, from 1.
        run: What is to be made.
        stands: What is to be done about it.
        parents: The jobs of the runs it builds on.
        status: How it goes.
        expected: Seconds it is likely to take; None where nobody knows.
    """

    number: int
    run: Run
    stands: Standing
    parents: Sequence[_Job]
    status: Status
    expected: float | None = None

    @property
    def open(self) -> bool:
        """Whether it waits or is at work."""
        return self.status in ("waiting", "running")

    def left(self, spent: float) -> float:
        """The seconds that are left of those it is expected to take, after so many; 0 where that is not known."""
        return max((self.expected or 0.0) - spent, 0.0) if self.open else 0.0


class _Crew:
    """The runs of an experiment and the children at work on them."""

    def __init__(
        self, experiment: Experiment, parallel: int, prefix: tuple[str, ...], console: Console, lock: int
    ) -> None:
        self.experiment, self.parallel, self.prefix, self.lock = experiment, parallel, prefix, lock
        self._say = partial(tell, console)
        self.show: Display = Display()
        self.runs = experiment.runs()
        standings = [standing(run, experiment.name) for run in self.runs]
        self.jobs: list[_Job] = []
        self._parents = parents_of(self.runs)
        for run, stands, parents in zip(self.runs, standings, self._parents, strict=True):
            if stands.ended:
                finish(run, seconds=0.0, peak_bytes=0, resumed=True)  # by which no estimate goes
            self.jobs.append(
                _Job(
                    number=len(self.jobs) + 1,
                    run=run,
                    stands=stands,
                    parents=[self.jobs[at] for at in parents],
                    status="skipped" if stands.complete else "waiting",
                )
            )
        self.children: list[tuple[_Job, Child]] = []
        self._reckon()
        settled = sum(job.status == "skipped" for job in self.jobs)
        self._say(f"{experiment.name}: {len(self.jobs)} runs, {settled} of them complete and unchanged")
        if experiment.remark:
            self._say(experiment.remark)

    def step(self) -> bool:
        """Note what has ended, start what can be started; whether there is anything left to wait for."""
        for job, child in list(self.children):
            if ended := child.ended():
                self.children.remove((job, child))
                self._note(job, child, *ended)
        for job in self.jobs:
            if job.status != "waiting":
                continue
            before = [parent.status for parent in job.parents]
            if any(status in ("failed", "not run") for status in before):
                job.status = "not run"
                self._say(f"{job.run.name} is not run: what it builds on failed")
            elif len(self.children) < self.parallel and all(status in _READY for status in before):
                self._start(job)
        self._tick()
        return bool(self.children)

    def stop(self, signals: Sequence[int]) -> None:
        """End the children, which may first finish a step and save it; by force where another signal comes."""
        for _, child in self.children:
            child.signal(signal.SIGTERM)
        if self.children:
            self._say("waiting for the steps at work to end and to be saved; once more (Ctrl-C) ends them at once")
        while self.children:
            for job, child in list(self.children):
                if ended := child.ended():
                    self.children.remove((job, child))
                    if ended[0] == 0:
                        self._note(job, child, *ended)
                elif len(signals) > 1:
                    child.signal(signal.SIGKILL)
            time.sleep(_POLL)

    def conclude(self, signals: Sequence[int]) -> int:
        """Say how it went; the exit status."""
        told = ", ".join(f"{number} {status}" for status, number in Counter(job.status for job in self.jobs).items())
        left = [job.run.name for job in self.jobs if job.status in ("failed", "not run")]
        if signals:
            self._say(f"stopped by {signal.Signals(signals[0]).name}; the same command goes on from here")
            return 128 + signals[0]
        self._say(f"{self.experiment.name}: {told}; everything is in {self.experiment.output}")
        if left:
            self._say(f"missing: {', '.join(left)}; the same command tries them again")
        return 1 if left else 0

    def _start(self, job: _Job) -> None:
        run = job.run
        if others := changed(run):
            job.status = "not run"
            self._say(
                f"{run.name} is not run: {', '.join(others)} changed since this was started; the same command runs it "
                "by what is there now"
            )
            return
        with told(run.folder):
            if job.stands.twin and adopt(run, self.experiment.name, job.stands.twin):
                job.status = "copied"
                self._say(f"{self._named(job)}: copied from {job.stands.twin}")
                return
            if job.stands.twin:
                reason = f"{job.stands.twin} is gone, or of another run by now"
                job.stands = Standing(complete=False, reason=reason)
                self._reckon()
            begin(run, self.experiment.name)
            words = (*run.command, *job.stands.adds)
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
        self.children.append((job, Child(process=process, log=log)))
        write_pids(self.lock, [os.getpid(), *(child.process.pid for _, child in self.children)])
        job.status = "running"
        if not self.show.live:
            self._say(f"{self._named(job)}: started ({job.stands.reason})")

    def _note(self, job: _Job, child: Child, code: int, peak_bytes: int) -> None:
        run, resumed = job.run, job.stands.goes_on
        reason: str | None = f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
        if code == 0:
            reason = finish(run, seconds=child.seconds, peak_bytes=peak_bytes, resumed=resumed)
        if reason is None:
            job.status = "done"
            self._reckon()
            left = "" if self.show.live else self._left()
            self._say(f"{run.name}: done in {spoken(child.seconds)}{left and f'; {left}'}")
            return
        job.status = "failed"
        log = run.folder / LOG
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        self._say(f"{run.name} failed after {spoken(child.seconds)}: {reason}; the end of {log}:")
        self._say("\n".join(f"    {line}" for line in lines))

    def _named(self, job: _Job) -> str:
        return f"[{job.number}/{len(self.jobs)}] {job.run.name}"

    def _tick(self) -> None:
        working = ", ".join(self._named(job) for job, _ in self.children)
        settled = sum(not job.open for job in self.jobs)
        shares = sum(min(child.seconds / job.expected, 0.95) for job, child in self.children if job.expected)
        self.show.update(working, settled + shares, self._left())

    def _left(self) -> str:
        """The time left as far as it is known."""
        open_ = [job for job in self.jobs if job.open]
        unknown = sum(job.expected is None for job in open_)
        if unknown == len(open_):
            return f"{unknown} of unknown duration left" if unknown else ""
        besides = f" and {unknown} of unknown duration" if unknown else ""
        spent = {job.number: child.seconds for job, child in self.children}
        seconds = seconds_until_all_end(
            [job.left(spent.get(job.number, 0.0)) for job in self.jobs],
            self._parents,
            self.parallel,
            [job.number - 1 for job, _ in self.children],
        )
        return f"about {spoken(seconds)}{besides} left"

    def _reckon(self) -> None:
        """What each run is likely to take, from what is complete by now."""
        speed = pace(self.runs)
        for job in self.jobs:
            job.expected = 0.0 if job.stands.twin else estimate(job.run, speed).seconds


def _write_index(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Say in experiment.json what the folders beside it are, for whoever reads the results."""
    stages = [
        {name: getattr(stage, name) for name in ("name", "verb", "after", "label", "description")}
        | {"seeds": [run.seed for run in runs if run.stage is stage]}
        for stage in experiment.stages
    ]
    index: dict[str, Any] = {"name": experiment.name, "description": experiment.description}
    index |= {"seeds": experiment.seeds, "folder": "{stage}/seed_{seed}", "stages": stages}
    write_json(experiment.output / "experiment.json", index)
