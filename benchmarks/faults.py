"""Kills short runs at random moments and takes them up again; gives the command line bad inputs and reads its answers.

    python benchmarks/faults.py --kills 200 --results benchmarks/results

A run is killed with SIGKILL, up to three times, while it samples, rewards, takes the second optimizer step on one
batch of rollouts, validates, or writes a checkpoint, and the same command goes on each time. At the end its folder is
compared with that of a run that nobody interrupted: adapters, moments, metrics (but seconds), samples, byte by byte.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import select
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from bad_inputs import CASES, Case, make_files

from lsemrl.training import CONFIGS

PHASES = ("sample", "reward", "update", "step", "validate", "write", "fill", "save")
_RUN = (
    "fit",
    f"--config={CONFIGS / 'grpo.yaml'}",
    "--trainer.accelerator=cpu",
    "--trainer.callbacks=null",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=2",
    "--trainer.val_check_interval=3",
    "--trainer.num_sanity_val_steps=0",
    "--checkpoints.every_n_steps=2",
    "--checkpoints.monitor=val/chrf",
    "--data.micro={train: 24, validation: 4, test: 4}",
    "--data.splits.cold_start_count=8",
    "--data.batch_size=4",
    "--model.sampling.num_generations=4",
    "--model.sampling.max_new_tokens=8",
    "--model.num_iterations=2",
    "--model.samples_every=1",
    "--model.policy.lora.dropout=0.2",
)
"""Two epochs of four batches, each learned from twice, checkpoints and validation out of step with each other."""


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        kills: The phase that each kill met.
        differences: Files that are not as in the uninterrupted run.
    """

    kills: tuple[str, ...]
    differences: tuple[str, ...]


def content(folder: Path) -> dict[str, str]:
    """A fingerprint of every file of a run that must not depend on whether it was interrupted."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "tfevents" in name or path.name in (".lock", "config.yaml", "hparams.yaml", "run.json"):
            continue  # times, and where the run is
        if name == "metrics.csv":
            with path.open(newline="") as file:
                rows = [
                    {key: value for key, value in row.items() if not key.startswith(("timing/", "tokens_per_second"))}
                    for row in csv.DictReader(file)
                ]
            found[name] = hashlib.sha256(repr(rows).encode()).hexdigest()
        elif path.name == "state.json":
            state = json.loads(path.read_text())
            found[name] = hashlib.sha256(json.dumps({**state, "checksum": ""}).encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(words: tuple[str, ...], kill: tuple[str, int, float] | None = None) -> str | None:
    """Run the command line in a fork of this process, which has everything imported already.

    Args:
        words: After the program's name.
        kill: A phase, at which of its beginnings, and how many seconds after; None lets the run end.

    Returns:
        The phase it was in when it was killed; None if it ended before.
    """
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(told)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            _tell_phases(telling)
            from lsemrl.cli import main

            main(list(words))
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        finally:
            os._exit(status)
    os.close(telling)
    try:
        return _follow(pid, told, kill)
    finally:
        os.close(told)


def _follow(pid: int, told: int, kill: tuple[str, int, float] | None) -> str | None:
    seen: Counter[str] = Counter()
    phase = "start"
    at: float | None = None
    while True:
        wait = None if at is None else max(at - time.monotonic(), 0.0)
        ready, _, _ = select.select([told], [], [], wait)
        if not ready:  # it is time
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return phase
        byte = os.read(told, 1)
        if not byte:
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the run ended with exit status {os.waitstatus_to_exitcode(status)}")
            return None
        phase = PHASES[byte[0]]
        seen[phase] += 1
        if kill and at is None and phase == kill[0] and seen[phase] == kill[1]:
            at = time.monotonic() + kill[2]


def _tell_phases(pipe: int) -> None:
    """Write a byte to `pipe` whenever a phase begins."""
    from lsemrl.modules import base, checkpoints, grpo, policy, snapshot

    def telling(owner: Any, name: str, phase: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def told(*args: Any, **settings: Any) -> Any:
            os.write(pipe, bytes([PHASES.index(phase)]))
            return whole(*args, **settings)

        setattr(owner, name, told)

    telling(grpo, "sample", "sample")
    telling(grpo.GRPO, "compare", "reward")
    telling(grpo.GRPO, "update", "update")
    telling(grpo.GRPO, "step", "step")
    telling(base, "sample", "validate")
    telling(checkpoints, "write_snapshot", "write")
    telling(snapshot, "_checksum", "fill")
    telling(policy.Policy, "save", "save")


def kill_chain(seed: int, root: Path, expected: dict[str, str]) -> Outcome:
    """One run, killed up to three times."""
    draw = random.Random(seed)
    words = (*_RUN, f"--trainer.default_root_dir={root}", f"--data.num_workers={int(seed % 8 == 0)}")
    kills: list[str] = []
    while not _finished(root / "version_0"):
        kill = (draw.choice(PHASES), draw.randint(1, 5), draw.random() ** 2 * 0.2) if len(kills) < 3 else None
        met = run(words, kill)
        if met:
            kills.append(met)
    found = content(root / "version_0")
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if [path.name for path in root.iterdir()] != ["version_0"]:
        names.append("a second folder")
    return Outcome(tuple(kills), tuple(names))


def _finished(folder: Path) -> bool:
    """Whether a run has come to its end: a kill may come after that, while the process winds up."""
    try:
        return bool(json.loads((folder / "run.json").read_text())["finished"])
    except FileNotFoundError:
        return False


def kill_campaign(kills: int, seed: int, jobs: int = 1) -> list[Outcome]:
    """Runs until they have been killed so many times together."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks of a process with threads: none of ours is at work
        os.environ["XDG_CACHE_HOME"] = folder
        whole = Path(folder) / "whole"
        run((*_RUN, f"--trainer.default_root_dir={whole}"))
        expected = content(whole / "version_0")
        seeds = iter(range(seed, seed + 10 * kills + 1))
        with ThreadPoolExecutor(jobs) as pool:
            while sum(len(outcome.kills) for outcome in outcomes) < kills:
                some = [next(seeds) for _ in range(jobs)]
                outcomes += pool.map(lambda one: kill_chain(one, Path(folder) / str(one), expected), some)
                for outcome in outcomes[-jobs:]:
                    print(" ".join(outcome.kills) or "not killed", "->", ", ".join(outcome.differences) or "the same")
    return outcomes


def told_in_one_sentence(case: Case, folder: Path) -> str | None:
    """What is wrong with the answer to a bad input; None if nothing is."""
    from lsemrl.cli import main

    files = make_files(folder)
    words = [word.format(**files) for word in case.words]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        else:
            return "it was accepted"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("lsemrl: error: ")]
    if code != 2 or len(lines) != 1:
        return f"exit code {code} and {len(lines)} sentences"
    sentence = lines[0].removeprefix("lsemrl: error: ")
    if case.says.format(**files) not in sentence:
        return f"it says {sentence!r}, not {case.says!r}"
    return "a traceback" if "Traceback" in errors.getvalue() else None


def bad_inputs() -> Iterator[tuple[Case, str | None]]:
    """Every case, and what is wrong with its answer."""
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            yield case, told_in_one_sentence(case, Path(folder))


def main() -> int:
    """The whole campaign; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=None)
    options = parser.parse_args()
    import lsemrl.modules.checkpoints  # noqa: F401 - before the forks
    from lsemrl import cli  # noqa: F401

    outcomes = kill_campaign(options.kills, options.seed, options.jobs)
    phases = Counter(phase for outcome in outcomes for phase in outcome.kills)
    different = [outcome for outcome in outcomes if outcome.differences]
    print(f"\n{sum(phases.values())} kills of {len(outcomes)} runs, {len(different)} of which ended differently")
    wrong = [(case, answer) for case, answer in bad_inputs() if answer]
    for case, answer in wrong:
        print(f"{' '.join(case.words)}: {answer}")
    print(f"{len(CASES)} bad inputs, {len(wrong)} of them not told in one sentence with exit code 2")
    if options.results:
        rows = [
            {"what": f"killed in {phase}", "count": count, "wrong": sum(phase in one.kills for one in different)}
            for phase, count in sorted(phases.items())
        ]
        rows.append({"what": "runs that were killed", "count": len(outcomes), "wrong": len(different)})
        rows.append({"what": "bad inputs", "count": len(CASES), "wrong": len(wrong)})
        packages = ("lsemrl", "torch", "transformers", "peft", "lightning")
        harness.write_csv(options.results / "faults.csv", harness.about(packages), rows)
    return int(bool(different or wrong))


if __name__ == "__main__":
    raise SystemExit(main())
