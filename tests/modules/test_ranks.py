"""Two gloo ranks end where one process does on the same global batches, and go on from each other's checkpoints."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lsemrl.modules.base import PolicyModule
from lsemrl.modules.snapshot import read_snapshot
from own_text import write_own_text

SCRIPT = Path(__file__).with_name("ranks.py")
OWN = ("timing/", "tokens_per_second", "padding/")
"""Seconds, and how full each rank's own micro-batches are."""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}


def train(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=300,
        # Lightning would seed ranks, and not one process, by what an earlier test left in the environment.
        env={**_environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value and not name.startswith(OWN)}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def own_text(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_own_text(tmp_path_factory.mktemp("own") / "own.jsonl", tiny_model))


@pytest.fixture(scope="module", params=["lora", "full"])
def one(request: Any, tiny_model: str, own_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What is trained, and the folder of a run in one process."""
    folder = tmp_path_factory.mktemp("one")
    train(folder, tiny_model, str(folder), "one", request.param, own_text)
    return request.param, folder


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "fsdp_streamed"])
def test_two_ranks_end_as_one_process(
    layout: str, one: tuple[str, Path], tiny_model: str, own_text: str, tmp_path: Path
) -> None:
    trained, alone = one
    train(tmp_path, tiny_model, str(tmp_path), layout, trained, own_text)
    mine, expected = weights(tmp_path), weights(alone)
    assert mine.keys() == expected.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    rows = metrics(tmp_path)
    assert len(rows) == len(metrics(alone))
    for row, other in zip(rows, metrics(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert {"timing/waiting", "timing/communication"} <= set(next(csv.reader(file)))
    # What one rank wrote or two, the other number can read: whole tensors by name.
    for step in (2, 4):
        kept = [read_snapshot(folder / "checkpoints" / f"step_{step}") for folder in (tmp_path, alone)]
        assert [len(state["ranks"]) for state in kept] == [2, 1]
        assert kept[0]["rows"] == kept[1]["rows"] == (0 if step == 4 else 8)
        files = [folder / "checkpoints" / f"step_{step}" / "optimizer.safetensors" for folder in (tmp_path, alone)]
        moments = [load_file(file) for file in files]
        for name, value in moments[0].items():
            torch.testing.assert_close(value, moments[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("first", "then"), [("fsdp", "one"), ("one", "fsdp")])
def test_a_run_goes_on_with_another_layout(
    first: str, then: str, one: tuple[str, Path], tiny_model: str, own_text: str, tmp_path: Path
) -> None:
    trained, alone = one
    begun = alone
    if first != "one":
        begun = tmp_path / "begun"
        train(begun, tiny_model, str(begun), first, trained, own_text)
    folder = tmp_path / "then"
    train(folder, tiny_model, str(folder), then, trained, own_text, str(begun / "checkpoints" / "step_2"))
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-5, atol=1e-5)


def test_every_rank_and_every_step_draws_of_a_seed_of_its_own() -> None:
    places = [SimpleNamespace(rollout_step=step, global_rank=rank) for step in range(50) for rank in range(16)]
    seeds = [PolicyModule.rollout_seed(place) for place in places]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(places)
