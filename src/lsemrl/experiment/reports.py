"""What is made of an experiment's measurements once all are there: verdicts of RL against SFT, and the tax report."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence

from rich.console import Console

from lsemrl.experiment.children import environment
from lsemrl.experiment.plan import JUDGED, REPORTS, Experiment
from lsemrl.experiment.progress import LAST_LINES, tell
from lsemrl.runs import PREDICTIONS


def commands(experiment: Experiment) -> Iterator[tuple[str, ...]]:
    """The words of `lsemrl` for every report, in order."""
    arms = {stage.name: stage.arm for stage in experiment.stages}
    for plan in experiment.reports:
        folder = experiment.output / REPORTS / plan.name
        measured = [str(experiment.folder(stage, seed)) for stage in plan.stages for seed in experiment.seeds]
        searched = list(dict.fromkeys(measured))  # one of the base serves all seeds
        if plan.judge:
            pair = [next(stage for stage in plan.stages if arms[stage] == arm) for arm in JUDGED]
            for seed in experiment.seeds:
                files = (
                    f"{arm}={experiment.folder(stage, seed) / PREDICTIONS}"
                    for arm, stage in zip(JUDGED, pair, strict=True)
                )
                judged = folder / "judge" / f"seed_{seed}"
                yield ("judge", *files, "--oracle", f"--task={plan.judge}", f"--output={judged}")
                searched.append(str(judged))
        paths = [word for path in plan.paths for word in ("--path", *path)]
        yield (
            "tax",
            *searched,
            "--output",
            str(folder),
            *paths,
            *(["--against", *plan.against] if plan.against else []),
        )


def write_reports(experiment: Experiment, prefix: Sequence[str], console: Console) -> int:
    """Make every report; the exit status: 1 if one failed, which is told with the end of what it printed."""
    status = 0
    for words in commands(experiment):
        done = subprocess.run(
            [*prefix, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment()
        )
        lines = (done.stdout + done.stderr).strip().splitlines()
        if done.returncode:
            status = 1
            tell(console, "\n".join((f"failed: {shlex.join(('lsemrl', *words))}", *lines[-LAST_LINES:])))
        elif words[0] == "tax":
            tell(console, f"report: {lines[-1]}")
    return status
