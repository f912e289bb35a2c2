"""Kills short runs at random moments and takes them up again; gives the command line bad inputs and reads its answers.

    python benchmarks/faults.py --kills 200 --results benchmarks/results
    python benchmarks/faults.py --kills 60 --layout fsdp --results benchmarks/results

A run is killed with SIGKILL, up to three times, while it samples, rewards, takes the second optimizer step on one
batch of rollouts, validates, or writes a checkpoint, and the same command goes on each time. At the end its folder is
compared with that of a run that nobody interrupted: adapters, moments, metrics (but seconds), samples, byte by byte.
Of two ranks (ddp, fsdp) the first, the second or both are killed; whoever is left must end by itself.
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
import socket
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import harness
from bad_inputs import CASES, Case, make_files

from lsemrl.config_files import CONFIGS

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
    "--model.sampling.num_generations=4",
    "--model.sampling.max_new_tokens=8",
    "--model.num_iterations=2",
    "--model.samples_every=1",
    "--model.policy.lora.dropout=0.2",
)
"""Two epochs of four batches, each learned from twice, checkpoints and validation out of step with each other."""
_LAYOUTS = {
    "one": (1, ("--data.batch_size=4",)),
    "ddp": (2, (f"--config={CONFIGS / 'ddp.yaml'}", "--data.batch_size=2")),
    "fsdp": (2, (f"--config={CONFIGS / 'fsdp.yaml'}", "--data.batch_size=2")),
}
"""Ranks, and what is added to the command."""
_PATIENCE = 60.0  # seconds that a rank may outlive another


@dataclass(frozen=True)
class Kill:
    """When and whom.

    Attributes:
        phase: Of the first rank.
        turn: At which of the phase's beginnings.
        after: Seconds after that.
        ranks: Who is killed.
    """

    phase: str
    turn: int
    after: float
    ranks: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Met:
    """What a kill met.

    Attributes:
        phase: Of the first rank.
        outlived: Seconds until the other ranks had ended too, infinite where they had to be killed; None if there were
            none.
    """

    phase: str
    outlived: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        kills: What each kill met.
        differences: Files that are not as in the uninterrupted run.
    """

    kills: tuple[Met, ...]
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


def run(words: tuple[str, ...], kill: Kill | None = None, ranks: int = 1) -> Met | None:
    """Run the command line in forks of this process, which has everything imported already.

    Args:
        words: After the program's name.
        kill: None lets the run end.
        ranks: Forks, which find each other as those that torchrun starts.

    Returns:
        What the kill met; None if the run ended before.

    Raises:
        RuntimeError: It ended by a fault of its own.
    """
    told, telling = os.pipe()
    port = _free_port()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        pids = [_fork(words, telling, rank, ranks, port, said.fileno()) for rank in range(ranks)]
        os.close(telling)
        try:
            codes = _follow(pids, told, kill)
        finally:
            os.close(told)
        if isinstance(codes, Met):
            return codes
        if any(codes):
            said.seek(0)
            raise RuntimeError(f"the run ended with exit codes {codes}, and said:\n{said.read()[-3000:]}")
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fork(words: tuple[str, ...], telling: int, rank: int, ranks: int, port: int, saying: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if ranks > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(value) for name, value in own.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.dup2(saying, 1)
        os.dup2(saying, 2)
        _tell_phases(telling, silent=rank > 0)
        from lsemrl.cli.main import main

        main(list(words))
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(status)


def _follow(pids: list[int], told: int, kill: Kill | None) -> Met | list[int]:
    """What the kill met, or the exit codes of those that ended before."""
    seen: Counter[str] = Counter()
    phase = "start"
    at: float | None = None
    while True:
        wait = None if at is None else max(at - time.monotonic(), 0.0)
        ready, _, _ = select.select([told], [], [], wait)
        if not ready:  # it is time
            assert kill is not None
            return Met(phase, _kill(pids, kill.ranks))
        byte = os.read(told, 1)
        if not byte:
            return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        phase = PHASES[byte[0]]
        seen[phase] += 1
        if kill and at is None and phase == kill.phase and seen[phase] == kill.turn:
            at = time.monotonic() + kill.after


def _kill(pids: list[int], ranks: tuple[int, ...]) -> float | None:
    """Kill some ranks; seconds until the others have ended, infinite if they do not."""
    began = time.monotonic()
    for rank in ranks:
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
    left = [pid for rank, pid in enumerate(pids) if rank not in ranks]
    for pid in left:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() - began > _PATIENCE:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return float("inf")
            time.sleep(0.01)
    return time.monotonic() - began if left else None


def _tell_phases(pipe: int, *, silent: bool) -> None:
    """Write a byte to `pipe` whenever a phase begins, or only hold it open."""
    from lsemrl.modules import base, checkpoints, grpo, policy, snapshot

    if silent:
        return

    def telling(owner: Any, name: str, phase: str) -> None:
        whole: Callable[..., Any] = getattr(owner, name)

        def told(*args: Any, **settings: Any) -> Any:
            os.write(pipe, bytes([PHASES.index(phase)]))
            return whole(*args, **settings)

        setattr(owner, name, told)

    telling(grpo.GRPO, "training_step", "sample")
    telling(grpo.GRPO, "reward", "reward")
    telling(grpo.GRPO, "update", "update")
    telling(grpo.GRPO, "step", "step")
    telling(base.PolicyModule, "validation_step", "validate")
    telling(checkpoints, "write_snapshot", "write")
    telling(snapshot, "_checksum", "fill")
    telling(policy.Policy, "save", "save")


def kill_chain(seed: int, root: Path, expected: dict[str, str], layout: str = "one", most: int = 3) -> Outcome:
    """One run, killed up to so many times."""
    draw = random.Random(seed)
    ranks, added = _LAYOUTS[layout]
    words = (*_RUN, *added, f"--trainer.default_root_dir={root}", f"--data.num_workers={int(seed % 8 == 0)}")
    victims = [(0,), (1,), (0, 1)] if ranks > 1 else [(0,)]
    kills: list[Met] = []
    while not _finished(root / "version_0"):
        kill = Kill(draw.choice(PHASES), draw.randint(1, 5), draw.random() ** 2 * 0.2, draw.choice(victims))
        met = run(words, kill if len(kills) < most else None, ranks)
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


def kill_campaign(kills: int, seed: int, jobs: int = 1, layout: str = "one") -> list[Outcome]:
    """Runs until they have been killed so many times together."""
    ranks, added = _LAYOUTS[layout]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks of a process with threads: none of ours is at work
        os.environ["XDG_CACHE_HOME"] = folder
        whole = Path(folder) / "whole"
        run((*_RUN, *added, f"--trainer.default_root_dir={whole}"), None, ranks)
        expected = content(whole / "version_0")
        seeds, most = iter(range(seed, seed + 10 * kills + 1)), min(3, kills)
        with ThreadPoolExecutor(jobs) as pool:
            while sum(len(outcome.kills) for outcome in outcomes) < kills:
                some = [next(seeds) for _ in range(jobs)]
                outcomes += pool.map(lambda one: kill_chain(one, Path(folder) / str(one), expected, layout, most), some)
                for outcome in outcomes[-jobs:]:
                    met = " ".join(one.phase for one in outcome.kills) or "not killed"
                    print(met, "->", ", ".join(outcome.differences) or "the same")
    return outcomes


def told_in_one_sentence(case: Case, files: dict[str, str]) -> str | None:
    """What is wrong with the answer to a bad input; None if nothing is. `files` are those of `make_files`."""
    from lsemrl.cli.main import main

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
            yield case, told_in_one_sentence(case, make_files(Path(folder)))


def main() -> int:
    """The whole campaign; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=_LAYOUTS, default="one", help="other than one: no bad inputs")
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; by default 2 of one process, or 1")
    parser.add_argument("--results", type=Path, default=None)
    options = parser.parse_args()
    import lsemrl.modules.checkpoints  # noqa: F401 - before the forks
    from lsemrl.cli import main  # noqa: F401

    alone = options.layout == "one"
    outcomes = kill_campaign(options.kills, options.seed, options.jobs or (2 if alone else 1), options.layout)
    met = [kill for outcome in outcomes for kill in outcome.kills]
    different = [outcome for outcome in outcomes if outcome.differences]
    print(f"\n{len(met)} kills of {len(outcomes)} runs, {len(different)} of which ended differently")
    rows = [
        {
            "what": f"killed in {phase}",
            "count": count,
            "wrong": sum(any(kill.phase == phase for kill in one.kills) for one in different),
        }
        for phase, count in sorted(Counter(kill.phase for kill in met).items())
    ]
    rows.append({"what": "runs that were killed", "count": len(outcomes), "wrong": len(different)})
    wrong: list[Any] = list(different)
    if alone:
        answers = [(case, answer) for case, answer in bad_inputs() if answer]
        for case, answer in answers:
            print(f"{' '.join(case.words)}: {answer}")
        print(f"{len(CASES)} bad inputs, {len(answers)} of them not told in one sentence with exit code 2")
        rows.append({"what": "bad inputs", "count": len(CASES), "wrong": len(answers)})
        wrong += answers
    else:
        left = sorted(kill.outlived for kill in met if kill.outlived is not None)
        print(f"ranks outlived the one that was killed by {median(left):.1f} s (median), {left[-1]:.1f} s at most")
        hung = sum(one == float("inf") for one in left)
        rows.append({"what": f"ranks left, {left[-1]:.1f} s at most", "count": len(left), "wrong": hung})
        wrong += [None] * hung
    if options.results:
        packages = ("lsemrl", "torch", "transformers", "peft", "lightning")
        name = "faults.csv" if alone else f"faults_{options.layout}.csv"
        harness.write_csv(options.results / name, harness.about(packages), rows)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
