"""`lsemrl experiment`: all stages of an experiment, for every seed."""

from __future__ import annotations

from pathlib import Path

from lsemrl.config_files import CONFIGS, config_path
from lsemrl.errors import UserError
from lsemrl.experiment.dry_run import print_plan
from lsemrl.experiment.read import read_experiment
from lsemrl.experiment.run import run_experiment
from lsemrl.finite import check_seed


def experiment(
    *,
    config: Path,
    overlay: Path | None = None,
    output: Path | None = None,
    seeds: list[int] | None = None,
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Run what is not complete yet.

    Args:
        config: Its YAML file, as in configs/experiment/.
        overlay: YAML file with another world for it, as configs/paper/qwen3_4b.yaml.
        output: Folder of all runs, in place of the file's.
        seeds: In place of the file's.
        jobs: Runs at a time.
        dry_run: Print what would be run, and why, and run nothing.
    """
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; give at least 1")
    for seed in seeds or ():
        check_seed(seed, "--seeds")
    world = None if overlay is None else Path(config_path(overlay))
    plan = read_experiment(config, CONFIGS, overlay=world, output=output, seeds=seeds)
    if dry_run:
        print_plan(plan, parallel=jobs)
    elif status := run_experiment(plan, parallel=jobs):
        raise SystemExit(status)
