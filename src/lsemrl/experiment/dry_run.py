"""What an experiment would run, and why."""

from __future__ import annotations

import shlex
from functools import partial

from rich.console import Console

from lsemrl.durations import spoken
from lsemrl.experiment.plan import Experiment
from lsemrl.experiment.progress import tell
from lsemrl.experiment.reports import commands
from lsemrl.experiment.schedule import parents_of, seconds_until_all_end
from lsemrl.experiment.state import estimate, pace, standing


def print_plan(experiment: Experiment, *, parallel: int, console: Console | None = None) -> None:
    """Print every run: whether and why it will be run, a rough duration where there is something to go by, its command.

    Args:
        experiment: See there.
        parallel: Runs at a time, for the duration of all.
        console: Where to print.

    Raises:
        UserError: A folder holds something else.
    """
    say = partial(tell, console or Console())
    runs = experiment.runs()
    seeds = ", ".join(map(str, experiment.seeds))
    say(
        f"{experiment.name}: {len(experiment.stages)} stages with seed {seeds}, {len(runs)} runs in {experiment.output}"
    )
    if experiment.remark:
        say(experiment.remark)
    standings = [standing(run, experiment.name) for run in runs]
    speed = pace(runs)
    seconds = [0.0] * len(runs)
    unknown, waiting, copies = 0, 0, 0
    for at, (run, stands) in enumerate(zip(runs, standings, strict=True), start=1):
        notes = [stands.reason]
        if stands.twin:
            copies += 1
        elif not stands.complete:
            waiting += 1
            expected = estimate(run, speed)
            if expected.seconds is None:
                unknown += 1
                notes.append("duration unknown")
            else:
                seconds[at - 1] = expected.seconds
                notes.append(f"about {spoken(expected.seconds)} ({expected.source})")
            if expected.peak_bytes is not None:
                notes.append(f"{expected.peak_bytes / 1e9:.1f} GB of memory ({expected.source})")
        act = "skip" if stands.complete else "copy" if stands.twin else "run"
        say(f"\n[{at}/{len(runs)}] {run.name}: {act}, {'; '.join(notes)}")
        say(f"  {shlex.join(('lsemrl', *run.command, *stands.adds))}")
    for words in commands(experiment):
        say(f"\nthen: {shlex.join(('lsemrl', *words))}")
    together = seconds_until_all_end(seconds, parents_of(runs), parallel)
    one = f"{spoken(sum(seconds))} one at a time"
    known = one if parallel == 1 else f"{spoken(together)}, {parallel} at a time ({one})"
    total = f"about {known}" if together else "duration unknown"
    besides = f", and {unknown} of unknown duration" if together and unknown else ""
    copied = f", to copy: {copies}" if copies else ""
    say(f"\nto run: {waiting} of {len(runs)}{copied}" + (f"; {total}{besides}" if waiting else ""))
