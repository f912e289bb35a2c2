"""Every shipped configuration runs through the command line, on the embedded models, for a step."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file

from forks import Fork, ranks
from lsemrl.as_typed import take_text_as_typed
from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.data.base import Data
from lsemrl.micro import corpus
from matrix import slow_but

HEADLINES = Path(__file__).parents[2] / "shared" / "data" / "tibetan_headlines.jsonl"
OVERLAYS = {"headline.yaml": ["grpo.yaml"], "replay.yaml": ["sft.yaml"], "anchor.yaml": ["sft.yaml"]}
RANKS = ("ddp.yaml", "fsdp.yaml")
FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("experiment", "measure", "paper", "pidgin") and path.name not in ("reward.yaml", *RANKS)
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


@pytest.mark.parametrize("name", slow_but(FILES, ["anchor.yaml", "grpo.yaml", "replay.yaml"]))
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
        words += [f"--data.{part}.micro={{train: 40, validation: 4, test: 4}}" for part in ("main", "replay")]
    else:
        words += [*SMALL, "--data.splits.cold_start_count=8"]
    if name == "anchor.yaml":
        own = tmp_path / "own.jsonl"
        main(["rehearse", "--output", str(own), "--rows=12", "--batch-size=16", "--max-new-tokens=24", "--top-k=0"])
        words += [f"--model.anchor.path={own}"]
    folder = run(words, tmp_path / "runs")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "val/chrf" in (folder / "metrics.csv").read_text().splitlines()[0]
    assert list(folder.glob("events.out.tfevents.*"))


def of_ranks(name: str, folder: Path) -> list[str]:
    words = ["fit", "--config", str(CONFIGS / "grpo.yaml"), "--config", str(CONFIGS / name), *SMALL]
    words += [f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    words += ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--checkpoints.monitor=null"]
    words += ["--data.splits.cold_start_count=8", "--model.sampling={num_generations: 2, max_new_tokens: 6}"]
    return words


def steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def until(path: Path, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not path.exists() and alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.slow  # 20 and 30 seconds
@pytest.mark.parametrize("name", RANKS)
def test_several_ranks_share_one_folder_and_go_on_after_a_kill(name: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = [*of_ranks(name, runs), "--trainer.max_steps=4", "--checkpoints.every_n_steps=2"]
    words += ["--model.rewards={chrf: {class_path: waiting.Waiting}}"]
    kept = runs / "version_0" / "checkpoints" / "step_2"
    if name == "ddp.yaml":  # as a user starts it: the second rank is started by the first
        (tmp_path / "lsemrl").write_text("from lsemrl.cli.main import main\n\nmain()\n")  # what pip installs
        path = {"PYTHONPATH": os.pathsep.join(sys.path), "PL_GLOBAL_SEED": None}
        begun = [Fork(words, environment=path, folder=tmp_path)]
    else:
        words += ["--model.policy.dtype=bfloat16", "--trainer.precision=bf16-mixed"]  # as one would on a GPU
        begun = ranks(words, folder=tmp_path)
    until(kept, lambda: all(rank.poll() is None for rank in begun))
    for rank in begun:
        rank.kill()
    assert [rank.end().returncode for rank in begun] == [-signal.SIGKILL] * len(begun)
    (tmp_path / "go").touch()
    done = [rank.end() for rank in ranks(words, folder=tmp_path)]
    assert [rank.returncode for rank in done] == [0, 0], done[0].stderr[-3000:]
    assert "going on from" in done[0].stderr
    assert [path.name for path in runs.iterdir()] == ["version_0"]
    adapter = load_file(runs / "version_0" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert steps(runs / "version_0") == list(range(4))


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
    words = [*of_ranks("ddp.yaml", tmp_path / "runs"), "--trainer.max_steps=6"]
    done = [
        rank.end() for rank in ranks([*words, "--model.rewards={chrf: {class_path: failing.Failing}}"], folder=tmp_path)
    ]
    assert [rank.returncode for rank in done] == [2, 2], done[0].stderr[-3000:]
    told = {line for rank in done for line in rank.stderr.splitlines() if line.startswith("lsemrl: error:")}
    assert len(told) == 1
    assert "reward 'chrf'" in told.pop()


@pytest.mark.slow  # 11 seconds
def test_a_slurm_job_on_two_nodes_is_queued_again_when_its_time_is_up(tmp_path: Path) -> None:
    """Two tasks as srun would start them, each a node of its own; SLURM itself is not here."""
    asked, program, runs = tmp_path / "asked", tmp_path / "bin" / "scontrol", tmp_path / "runs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    program.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [*of_ranks("ddp.yaml", runs), "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.max_steps=5"]
    words += ["--model.rewards={chrf: {class_path: waiting.Waiting}}"]
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "tibetan",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": str(port),
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
    }
    places = [{**job, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in range(2)]
    tasks = [Fork(words, environment=place, folder=tmp_path) for place in places]
    until(runs / "version_0" / "metrics.csv", lambda: all(task.poll() is None for task in tasks))
    for task in tasks:
        os.kill(task.pid, signal.SIGUSR1)
    (tmp_path / "go").touch()
    ended = [task.end() for task in tasks]
    assert [task.returncode for task in ended] == [128 + signal.SIGUSR1] * 2, ended[0].stderr
    assert asked.read_text() == "requeue 4711\n"
    assert 0 < len(steps(runs / "version_0")) < 5
    again = [fork.end() for fork in [Fork(words, environment=place, folder=tmp_path) for place in places]]
    assert [fork.returncode for fork in again] == [0, 0], again[0].stderr
    assert "going on from" in again[0].stderr
    assert [path.name for path in runs.iterdir()] == ["version_0"]
    assert steps(runs / "version_0") == list(range(5))


@pytest.mark.parametrize("overlay", ["headline.yaml", "paper/headline.yaml"])
def test_headlines_over_a_wording_of_translation_are_asked_for_by_their_own(overlay: str) -> None:
    take_text_as_typed()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Data, "data")
    words = ["--data=lsemrl.data.translation.TranslationData", "--data.template.template=Translate: {source}"]
    found = parser.parse_args([*words, f"--config={CONFIGS / overlay}"])
    assert parser.instantiate_classes(found).data.plan.resolved_template().template == "藏文标题：{source}"


@pytest.mark.slow
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
def test_the_other_verbs(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    words = [verb, "--config", str(CONFIGS / "sft.yaml"), *SMALL, "--trainer.accelerator=cpu"]
    main([*words, f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks=null"])
    if verb == "predict":
        rows = (tmp_path / "predict_0" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert yaml.safe_load((tmp_path / "predict_0" / "config.yaml").read_text())["data"]
        assert len(rows) == 4 and not [each for each in recwarn if "returned None" in str(each.message)]
        assert set(json.loads(rows[0])) == {"id", "source", "output", "ended", "references"}
    else:
        assert "meaning_f1" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not HEADLINES.is_file(), reason="the real Tibetan headlines are not here (../shared/data)")
def test_real_tibetan_headlines(tmp_path: Path) -> None:
    with HEADLINES.open(encoding="utf-8") as file:
        (tmp_path / "first.jsonl").write_text("".join(islice(file, 200)), encoding="utf-8")
    words = ["fit", "--config", str(CONFIGS / "real" / "tibetan_headlines.yaml")]
    words += [f"--data.source.path={tmp_path / 'first.jsonl'}"]
    folder = run([*words, "--data.batch_size=1", "--model.sampling.max_new_tokens=8"], tmp_path)
    assert (folder / "samples.csv").is_file()
