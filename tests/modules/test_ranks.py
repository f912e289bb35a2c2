"""Two gloo ranks end where one process does on the same global batches, and go on from each other's checkpoints."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from forks import Fork, ranks
from lsemrl.modules.random_state import rollout_seed
from lsemrl.modules.snapshot import read_snapshot
from matrix import slow_but, slow_cases_but
from own_text import write_own_text
from rank_runs import add_up, train

OWN = ("timing/", "tokens_per_second", "padding/")
"""Seconds, and how full each rank's own micro-batches are."""


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


@pytest.fixture(scope="module")
def trained(tiny_model: str, own_text: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of LoRA or of all weights, in a layout, which goes on from a checkpoint if one is given."""

    @cache
    def folder(what: str, layout: str, resume: Path | None = None) -> Path:
        into = tmp_path_factory.mktemp("run")
        words = [tiny_model, str(into), layout, what, own_text, str(resume or "never")]
        alone = {"PL_GLOBAL_SEED": None}  # by which Lightning would seed, if an earlier test left it
        begun = [Fork(words, train, alone)] if layout == "one" else ranks(words, run=train)
        for done in [process.end() for process in begun]:
            assert done.returncode == 0, done.stderr[-3000:]
        return into

    return folder


@pytest.mark.parametrize(
    ("what", "layout"),
    [
        ("lora", "ddp"),
        ("full", "fsdp"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("lora", "fsdp"), ("lora", "fsdp_streamed"), ("full", "ddp")]
        ),
    ],
)
def test_two_ranks_end_as_one_process(what: str, layout: str, trained: Callable[..., Path]) -> None:
    shared, alone = trained(what, layout), trained(what, "one")
    mine, expected = weights(shared), weights(alone)
    assert mine.keys() == expected.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    rows = metrics(shared)
    assert len(rows) == len(metrics(alone))
    for row, other in zip(rows, metrics(alone), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)
    with (shared / "metrics.csv").open(newline="") as file:
        assert {"timing/waiting", "timing/communication"} <= set(next(csv.reader(file)))
    # What one rank wrote or two, the other number can read: whole tensors by name.
    for step in (2, 3):
        kept = [read_snapshot(folder / "checkpoints" / f"step_{step}") for folder in (shared, alone)]
        assert [len(state["ranks"]) for state in kept] == [2, 1]
        assert kept[0]["rows"] == kept[1]["rows"] == (0 if step == 3 else 8)
        files = [folder / "checkpoints" / f"step_{step}" / "optimizer.safetensors" for folder in (shared, alone)]
        moments = [load_file(file) for file in files]
        for name, value in moments[0].items():
            torch.testing.assert_close(value, moments[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("what", slow_but(["lora", "full"], ["lora"]))
@pytest.mark.parametrize(("first", "then"), slow_cases_but([("fsdp", "one"), ("one", "fsdp")], []))
def test_a_run_goes_on_with_another_layout(what: str, first: str, then: str, trained: Callable[..., Path]) -> None:
    folder = trained(what, then, trained(what, first) / "checkpoints" / "step_2")
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, weights(trained(what, "one"))[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp.yaml", "fsdp.yaml"])
def test_rows_that_ranks_cannot_share_alike_are_all_predicted_once_and_in_order(layout: str, tmp_path: Path) -> None:
    words = ["predict", "--config", "grpo.yaml", "--config", layout, "--trainer.accelerator=cpu", "--trainer.devices=2"]
    words += ["--data.micro={train: 20, validation: 4, test: 3}", "--data.splits.cold_start_count=8"]
    words += ["--data.batch_size=4", "--data.eval_batch_size=1", "--model.sampling.max_new_tokens=4"]
    words += ["--trainer.callbacks=null", "--trainer.enable_progress_bar=false"]
    for done in [each.end() for each in ranks([*words, f"--trainer.default_root_dir={tmp_path}"])]:
        assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "predict_0" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"test-{at}" for at in range(3)]


def test_gradients_add_up_where_ranks_reach_unlike_weights() -> None:
    for done in [each.end() for each in ranks([], run=add_up)]:
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.replace("None", "null")) == [[[1.0, 1.0]], [[10.0, 10.0]], None]


def test_every_rank_and_every_step_draws_of_a_seed_of_its_own() -> None:
    assert len({rollout_seed(step, rank) for step in range(50) for rank in range(16)}) == 50 * 16
