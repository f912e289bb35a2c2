"""Every shipped configuration runs through the command line, on the embedded models, for a step."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.micro import corpus

HEADLINES = Path(__file__).parents[2] / "shared" / "data" / "tibetan_headlines.jsonl"
OVERLAYS = {"headline.yaml": ["grpo.yaml"], "replay.yaml": ["sft.yaml"]}
RANKS = ("ddp.yaml", "fsdp.yaml")
FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("experiment", "measure", "paper") and path.name not in ("reward.yaml", *RANKS)
)
SMALL = ["--data.micro={train: 40, validation: 4, test: 4}", "--data.batch_size=2"]


def run(words: list[str], tmp_path: Path) -> Path:
    main(
        [
            *words,
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_steps=1",
            "--trainer.val_check_interval=1",
            "--trainer.limit_val_batches=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks=null",
        ]
    )
    return tmp_path / "version_0"


@pytest.mark.parametrize("name", FILES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    words = ["fit", *(word for file in (*OVERLAYS.get(name, []), name) for word in ("--config", str(CONFIGS / file)))]
    if name.startswith("real/"):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in corpus.headline("train", 60, seed=0))
        )
        words += [f"--data.source.path={rows}", "--data.batch_size=2"]
    elif name == "replay.yaml":
        words += ["--data.main.batch_size=2", "--model.max_new_tokens=4"]
    else:
        words += [*SMALL, "--data.splits.cold_start_count=8"]
    folder = run(words, tmp_path / "runs")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "val/chrf" in (folder / "metrics.csv").read_text().splitlines()[0]
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", RANKS)
def test_several_ranks_share_one_folder_and_go_on_after_a_kill(name: str, tmp_path: Path) -> None:
    words = ["--config", str(CONFIGS / "grpo.yaml"), "--config", str(CONFIGS / name), *SMALL]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    words += ["--trainer.max_steps=6", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    words += ["--checkpoints.every_n_steps=2", "--checkpoints.monitor=null", "--data.splits.cold_start_count=8"]
    if name == "fsdp.yaml":
        words += ["--model.policy.dtype=bfloat16", "--trainer.precision=bf16-mixed"]  # as one would on a GPU
    command = [sys.executable, "-m", "lsemrl", "fit", *words]
    settings: Any = {
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    killed = subprocess.Popen(command, **settings)
    kept = tmp_path / "version_0" / "checkpoints" / "step_2"
    end = time.monotonic() + 200
    while not kept.exists() and killed.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert kept.exists()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = subprocess.Popen(command, **settings)
    _, errors = done.communicate(timeout=300)
    assert done.returncode == 0, errors[-3000:]
    assert "going on from" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
    adapter = load_file(tmp_path / "version_0" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    with (tmp_path / "version_0" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(6)]


def test_a_reward_that_one_rank_cannot_give_stops_all_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import os\n"
        "from lsemrl.rewards import Chrf\n"
        "class Failing(Chrf):\n"
        "    def __call__(self, completions):\n"
        "        if os.environ['LOCAL_RANK'] == '1':\n"
        "            raise OSError('the judge has gone')\n"
        "        return super().__call__(completions)\n"
    )
    words = ["--config", str(CONFIGS / "grpo.yaml"), "--config", str(CONFIGS / "ddp.yaml"), *SMALL]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_steps=6", "--trainer.limit_val_batches=0", "--checkpoints.monitor=null"]
    words += ["--data.splits.cold_start_count=8", "--model.rewards={chrf: {class_path: failing.Failing}}"]
    done = subprocess.run(
        [sys.executable, "-m", "lsemrl", "fit", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    told = {line for line in done.stderr.splitlines() if line.startswith("lsemrl: error:")}
    assert len(told) == 1
    assert "reward 'chrf'" in told.pop()


def test_a_slurm_job_on_two_nodes_is_queued_again_when_its_time_is_up(tmp_path: Path) -> None:
    """Two tasks as srun would start them, each a node of its own; SLURM itself is not here."""
    asked, program = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--config", str(CONFIGS / "grpo.yaml"), "--config", str(CONFIGS / "ddp.yaml"), *SMALL]
    words += ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    words += ["--trainer.max_epochs=5", "--trainer.max_steps=30", "--trainer.limit_val_batches=0"]
    words += ["--trainer.enable_progress_bar=false", "--checkpoints.monitor=null", "--data.splits.cold_start_count=8"]
    words += [f"--trainer.default_root_dir={tmp_path / 'runs'}"]

    def srun() -> list[subprocess.Popen[str]]:
        job = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "tibetan",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_LOCALID": "0",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        }
        return [
            subprocess.Popen(
                [sys.executable, "-m", "lsemrl", "fit", *words],
                env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    tasks, end = srun(), time.monotonic() + 200
    metrics = tmp_path / "runs" / "version_0" / "metrics.csv"
    while not metrics.exists() and all(task.poll() is None for task in tasks) and time.monotonic() < end:
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    errors = [task.communicate(timeout=200)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [128 + signal.SIGUSR1] * 2, errors
    assert asked.read_text() == "requeue 4711\n"
    again = srun()
    errors = [task.communicate(timeout=300)[1] for task in again]
    assert [task.returncode for task in again] == [0, 0], errors
    assert "going on from" in errors[0]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["version_0"]
    with metrics.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(30)]


def test_headlines_by_sft_and_from_there_by_grpo(tmp_path: Path) -> None:
    small = [*SMALL, "--data.splits.cold_start_count=8"]
    configs = ["--config", str(CONFIGS / "sft.yaml"), "--config", str(CONFIGS / "headline.yaml")]
    cold = run(["fit", *configs, *small, "--data.splits.part=cold_start"], tmp_path / "sft")
    configs[1] = str(CONFIGS / "grpo.yaml")
    warm = run(
        ["fit", *configs, *small, "--data.splits.part=rl", f"--model.policy.adapter={cold / 'adapter'}"],
        tmp_path / "rl",
    )
    assert (warm / "adapter" / "adapter_model.safetensors").is_file()


def test_both_directions_of_translation(tmp_path: Path) -> None:
    words = ["--data.source_field=bo", "--data.target_field=zh", "--model.metrics.language=zh"]
    metrics = "--model.metrics.names=[chrf, language_rate, similarity]"
    run(["fit", "--config", str(CONFIGS / "sft.yaml"), *SMALL, *words, metrics], tmp_path)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_other_verbs(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [verb, "--config", str(CONFIGS / "sft.yaml"), *SMALL, "--trainer.accelerator=cpu"]
    main([*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks=null"])
    if verb == "predict":
        rows = (tmp_path / "predict_0" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert yaml.safe_load((tmp_path / "predict_0" / "config.yaml").read_text())["data"]
        assert len(rows) == 4
        assert set(json.loads(rows[0])) == {"id", "source", "output", "references"}
    else:
        assert "meaning_f1" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HEADLINES.is_file(), reason="the real Tibetan headlines are not here (../shared/data)")
def test_real_tibetan_headlines(tmp_path: Path) -> None:
    words = ["fit", "--config", str(CONFIGS / "real" / "tibetan_headlines.yaml"), f"--data.source.path={HEADLINES}"]
    folder = run(
        [*words, "--data.batch_size=1", "--model.sampling.max_new_tokens=8", "--trainer.limit_val_batches=1"], tmp_path
    )
    assert (folder / "samples.csv").is_file()
