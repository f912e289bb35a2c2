"""Every shipped configuration runs through the command line, on the embedded models, for a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsemrl.cli import main
from lsemrl.micro import corpus
from lsemrl.training import CONFIGS

HEADLINES = Path(__file__).parents[2] / "shared" / "data" / "tibetan_headlines.jsonl"
OVERLAYS = {"headline.yaml": ["grpo.yaml"], "replay.yaml": ["sft.yaml"]}
FILES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("experiment", "measure", "paper") and path.name != "reward.yaml"
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
        rows = (tmp_path / "version_0" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 4
        assert set(json.loads(rows[0])) == {"id", "source", "output", "references"}
    else:
        assert "meaning_f1" in capsys.readouterr().out


@pytest.mark.skipif(not HEADLINES.is_file(), reason="the real Tibetan headlines are not here (../shared/data)")
def test_real_tibetan_headlines(tmp_path: Path) -> None:
    words = ["fit", "--config", str(CONFIGS / "real" / "tibetan_headlines.yaml"), f"--data.source.path={HEADLINES}"]
    folder = run(
        [*words, "--data.batch_size=1", "--model.sampling.max_new_tokens=8", "--trainer.limit_val_batches=1"], tmp_path
    )
    assert (folder / "samples.csv").is_file()
