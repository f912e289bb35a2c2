"""The best of a group, and that SFT takes it as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import short_runs
from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands import best_rows
from lsemrl.commands.best_rows import FILE, _best, write_best
from lsemrl.config_files import CONFIGS
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.modules import base
from lsemrl.modules.policy import Policy
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.types import Completion, Example, PromptBatch, Rewards, Rollouts, Sequences, UserError

SMALL = [
    "--data.micro={train: 12, validation: 4, test: 4}",
    "--data.splits.cold_start_count=6",
    "--data.batch_size=4",
    "--trainer.accelerator=cpu",
]


def rollouts(*groups: tuple[tuple[str, bool], ...]) -> Rollouts:
    completions = tuple(
        Completion(text=text, ended=ended, example=Example(id=f"r{at}", prompt="p", source=f"s{at}", references=("x",)))
        for at, group in enumerate(groups)
        for text, ended in group
    )
    nothing = torch.zeros(len(completions), 1, dtype=torch.long)
    sequences = Sequences(
        prompt_ids_BP=nothing,
        prompt_mask_BP=nothing.bool(),
        prompt_of_N=nothing[:, 0],
        completion_ids_NT=nothing,
        completion_mask_NT=nothing.bool(),
    )
    ended_N = torch.tensor([one.ended for one in completions])
    return Rollouts(
        completions=completions,
        sequences=sequences,
        ended_N=ended_N,
        logprobs_NT=nothing.float(),
        num_generations=len(groups[0]),
        slots=1,
    )


def rewards(total: list[float], shut: Sequence[int] = ()) -> Rewards:
    """Those of a mix whose gates are shut for the completions `shut`."""
    total_N = torch.tensor(total)
    open_N = torch.tensor([at not in shut for at in range(len(total))])
    return Rewards(total_N=total_N, plain_N=total_N, parts_N={}, open_N=open_N)


def test_what_a_gate_shuts_out_is_not_the_best_of_anything() -> None:
    """A group that it shuts out whole has totals of 0, as one has that earned no more."""
    drawn = rollouts(
        (("a", True), ("b", True)),  # both shut out
        (("c", True), ("d", True)),  # one shut out: the other
        (("e", True), ("f", True)),  # both earned nothing: the first
        (("g", False), ("h", True)),  # cut or shut out
        (("i", False), ("", True)),  # nothing was said
    )
    rows, left = _best(drawn, rewards([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], {0, 1, 2, 7}), "zh", "bo")
    assert [row["bo"] for row in rows] == ["d", "e"] and list(left.values()) == [1, 0, 2]


def test_what_was_drawn_before_an_interruption_is_kept(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also memory that ran out meanwhile, which is not to run out once more."""
    asked: list[tuple[int, int]] = []

    def drawn(policy: Policy, prompts: PromptBatch, sampling: Sampling, seed: int, parts: int) -> Rollouts:
        asked.append((seed, parts))
        if parts == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(asked) == stop:
            raise KeyboardInterrupt
        return sample(policy, prompts, sampling, seed, parts)

    def best(folder: str) -> str:
        data = TranslationData(micro=MicroRows(train=6, validation=1, test=1), batch_size=2)
        return write_best(short_runs.grpo(tiny_model), data, tmp_path / folder, {"seed": 5}).read_text(encoding="utf-8")

    monkeypatch.setattr(Policy, "eos_ids", lambda policy: [*range(0, 1000, 5)])  # so that some end
    monkeypatch.setattr(base, "sample", drawn)
    stop = 0
    whole = best("whole")
    assert "of the best of 4, " in (said := capsys.readouterr().out) and "of its group, as far as" in said
    seeds, asked = [seed for seed, _ in asked], []
    stop = 4
    with pytest.raises(UserError, match=r"interrupted; what was done is in .*best_of\.jsonl\.unfinished"):
        best("parts")
    assert not (tmp_path / "parts" / FILE).exists()
    stop, asked = 0, []
    assert best("parts") == whole
    assert asked == [(seeds[-1], 2)] and "2 batches were answered already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [FILE]


def test_what_decides_is_the_same_however_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(best_rows, "write_best", lambda module, data, folder, each: asked.append(each))
    monkeypatch.chdir(tmp_path)
    Path("cold").symlink_to(micro.COLD_START)
    for at, size in (("", 4), (f"{tmp_path}/", 4), ("", 3)):
        words = [f"--model.policy.adapter={at}cold", f"--trainer.default_root_dir={at}out"]
        words += [f"--model.sampling.num_generations={size}"]
        main(["best-of", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, *words])
    assert asked[0] == asked[1] != asked[2] and "cold" not in json.dumps(asked)


def test_the_best_is_one_that_was_said_to_its_end() -> None:
    drawn = rollouts(
        (("a", True), ("b", True), ("c", False)),  # the best was cut
        (("d", True), (" ", True), ("e", True)),  # the best is silence
        (("f", False), ("", True), ("g", True)),  # what is left has no reward
        (("h", True), ("i", True), ("j", True)),  # a tie: the first
    )
    total = [1.0, 2.0, 3.0, 0.0, 5.0, -1.0, 1.0, 1.0, math.nan, 0.5, 0.5, 0.5]
    rows, left = _best(drawn, rewards(total), "zh", "bo")
    assert list(left.values()) == [0, 1, 0]
    assert [(row["id"], row["zh"], row["bo"], row["reward"]) for row in rows] == [
        ("r0", "s0", "b", 2.0),
        ("r1", "s1", "d", 0.0),
        ("r3", "s3", "h", 0.5),
    ]
    assert rows[0]["mean_reward"] == 1.5  # of those among which it was chosen


@pytest.mark.slow
def test_from_the_configuration_of_a_grpo_run_to_sft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo, where = ["best-of", "--config", str(CONFIGS / "grpo.yaml"), *SMALL], "--trainer.default_root_dir"
    for folder in ("one", "again"):
        main([*grpo, where, str(tmp_path / folder)])
    assert "6 of 6 rows kept" in capsys.readouterr().out
    text = (tmp_path / "one" / FILE).read_text(encoding="utf-8")
    assert text == (tmp_path / "again" / FILE).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(row["reward"] >= row["mean_reward"] - 1e-6 for row in rows)
    assert any(row["reward"] > row["mean_reward"] + 0.1 for row in rows)
    source = f"--data.source.path={tmp_path / 'one' / FILE}"
    held_out = ['--data.validation={"path": "micro:validation"}', '--data.test={"path": "micro:test"}']
    quick = ["--trainer.max_steps=1", "--trainer.callbacks=null", "--trainer.enable_progress_bar=false"]
    sft = ["fit", "--config", str(CONFIGS / "sft.yaml"), *SMALL, source, *held_out, *quick]
    main([*sft, "--trainer.limit_val_batches=0", where, str(tmp_path / "sft")])
    assert (tmp_path / "sft" / "version_0" / "adapter" / "adapter_model.safetensors").is_file()


def test_rows_of_ones_own_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE).write_text('{"precious": "rows"}\n')
    with pytest.raises(SystemExit):
        main(["best-of", "--config", str(CONFIGS / "grpo.yaml"), *SMALL, "--trainer.default_root_dir", str(tmp_path)])
    assert "holds rows of another kind, and would be replaced; move it away" in capsys.readouterr().err
    assert "precious" in (tmp_path / FILE).read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--config", str(CONFIGS / "sft.yaml")],
            "model.class_path is 'lsemrl.modules.sft.SFT'; give lsemrl.modules.grpo.GRPO",
        ),
        (
            ["--config", str(CONFIGS / "grpo.yaml"), "--trainer.default_root_dir", "/dev/null/x"],
            "trainer.default_root_dir is '/dev/null/x', which cannot be written to",
        ),
        (
            ["--config", str(CONFIGS / "grpo.yaml"), "--model.samples", "1"],
            "unrecognized arguments: --model.samples=1 (the nearest is model.sampling); lsemrl best-of --config FILE ",
        ),
    ],
)
def test_mistakes(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["best-of", *words])
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
