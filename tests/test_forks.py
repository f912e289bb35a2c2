"""A fork is as good as a process of its own, so that other tests may take one for the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import content

from forks import Fork, script
from lsemrl.config_files import CONFIGS
from small_run import SMALL

WORDS = ["fit", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, "--data.splits.cold_start_count=8"]
WORDS += ["--data.batch_size=2", "--data.num_workers=1", "--model.sampling={num_generations: 2, max_new_tokens: 6}"]


@pytest.mark.slow
def test_it_says_and_writes_the_same_bits(tmp_path: Path) -> None:
    words = [*WORDS, "--trainer.default_root_dir=runs", "--trainer.max_steps=2"]
    (tmp_path / "own").mkdir()
    (tmp_path / "fork").mkdir()
    real = subprocess.run(
        [sys.executable, "-m", "lsemrl", *words], cwd=tmp_path / "own", capture_output=True, text=True
    )
    fork = Fork(words, folder=tmp_path / "fork").end()
    assert real.returncode == fork.returncode == 0, real.stderr + fork.stderr
    assert fork.stdout == real.stdout
    assert "Seed set to 1" in fork.stderr and "Seed set to 1" in real.stderr  # by Lightning's own log
    written, expected = (content(tmp_path / name / "runs" / "version_0") for name in ("fork", "own"))
    assert written == expected and any(name.endswith("adapter_model.safetensors") for name in written)


def test_a_mistake_is_told_in_the_same_sentence() -> None:
    done = Fork([*WORDS, "--model.loss.beta=-1"]).end()
    assert done.returncode == 2, done
    assert done.stderr.splitlines()[-1] == "lsemrl: error: beta is -1.0: set it to 0 or more"


SHOW = """
import os, sys, time, torch
print(sys.argv[1], os.environ.get("SHOWN"), os.environ.get("PL_GLOBAL_SEED"), os.getcwd(), torch.get_num_threads())
if sys.argv[1] == "wait":
    time.sleep(60)
"""


def test_it_has_its_own_surroundings_and_ends_by_a_signal(tmp_path: Path) -> None:
    surroundings = {"SHOWN": "yes", "PL_GLOBAL_SEED": None, "OMP_NUM_THREADS": "2"}
    done = Fork([SHOW, "a"], script, surroundings, tmp_path).end()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"a yes None {tmp_path} 2\n", "")
    assert "SHOWN" not in os.environ
    fork = Fork([SHOW, "wait"], script)
    assert fork.poll() is None and os.getpgid(fork.pid) in (fork.pid, os.getpgid(0))
    fork.kill()
    assert fork.end().returncode == -signal.SIGKILL
