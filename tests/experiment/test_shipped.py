"""The verb itself, the shipped experiments, and a small one that is really run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from experiment.world import World
from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.experiment.plan import Stage
from lsemrl.experiment.read import read_experiment
from matrix import slow_but

FILES = sorted((CONFIGS / "experiment").glob("*.yaml"))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a mistake gives."""
    with pytest.raises(SystemExit) as exit_:
        main(["experiment", *words])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_eight_experiments_are_there() -> None:
    assert [path.stem for path in FILES] == [
        "anchor",
        "few_pairs",
        "few_shot",
        "main",
        "normalization",
        "rates",
        "reward_ablation",
        "tradeoff",
    ]


@pytest.mark.parametrize("path", slow_but(FILES, FILES[:2]), ids=lambda path: path.stem)
def test_it_is_planned_and_its_longest_commands_are_understood(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["experiment", "--config", str(path), "--output", str(tmp_path / "out"), "--dry-run"])
    shown = capsys.readouterr().out
    experiment = read_experiment(path, CONFIGS)
    # The base is measured once.
    count = sum(1 if stage.verb == "measure" and not stage.parents else 3 for stage in experiment.stages)
    assert experiment.seeds == (1, 2, 3)
    assert f"to run: {count} of {count}; about" in shown
    assert "unknown" not in shown
    # Whatever is trained is measured, or trained further.
    assert {stage.name for stage in experiment.stages if stage.verb == "fit"} <= {
        stage.after for stage in experiment.stages
    }
    runs = experiment.runs()
    for verb in ("fit", "measure"):
        longest = max((run for run in runs if run.stage.verb == verb), key=lambda run: len(run.command))
        with pytest.raises(SystemExit) as exit_:
            main([*longest.command, "--print_config"])
        assert exit_.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        policy = config["policy"] if verb == "measure" else config["model"]["init_args"]["policy"]
        assert policy["model"] == "micro"
        if longest.stage.after:
            assert policy["adapter"] == str(experiment.folder(longest.stage.after, longest.seed) / "adapter")


_SHARES = {"half": 1 / 2, "a quarter of": 1 / 4, "an eighth of": 1 / 8, "twice": 2, "four times": 4}


def _rate(stage: Stage) -> float:
    """What it is trained at: as it says, or as its first file does."""
    own = yaml.safe_load(stage.configs[0].read_text())["model"]["init_args"]["optimizer"]["lr"]
    return float(stage.overrides.get("model.optimizer.lr", own))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_an_arm_is_called_is_so_in_another_world(path: Path) -> None:
    for overlay in (None, CONFIGS / "paper" / "qwen3_4b.yaml"):
        stages = read_experiment(path, CONFIGS, overlay=overlay).stages
        said = [str(stage.overrides.get(field)) for stage in stages for field in ("label", "trained_by")]
        assert not [text for text in said if re.search(r"\de-\d", text)]
        rates = {stage.name: _rate(stage) for stage in stages if stage.verb == "fit"}
        names = {stage.after: stage.overrides.get("label") or "" for stage in stages if stage.verb == "measure"}
        for name, label in names.items():
            found = re.search(r"(half|a quarter of|an eighth of|twice|four times) the rate", label)
            assert found or "rate" not in label
            if found:
                whole = "headline_weak_rl" if "headline" in name else "rl" if name.startswith("rl") else "sft"
                assert rates[name] == pytest.approx(_SHARES[found[1]] * rates[whole])


@pytest.mark.slow
def test_a_small_one_is_really_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "small.yaml", tmp_path / "out"
    small = {
        "trainer.max_steps": 1,
        "trainer.max_epochs": -1,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 0,
        "trainer.callbacks": None,
        "trainer.enable_progress_bar": False,
        "data.micro": {"train": 40, "validation": 4, "test": 4},
        "data.splits.cold_start_count": 8,
        "data.batch_size": 2,
    }
    small["model.metrics.names"] = ["chrf"]  # an encoder takes seconds to import
    stages = [{"name": "sft", "verb": "fit", "configs": ["sft.yaml"]}]  # test_run.py has several, of a stand-in
    path.write_text(yaml.safe_dump({"overrides": {"fit": small}, "stages": stages, "seeds": [3]}, sort_keys=False))
    main(["experiment", "--config", str(path), "--output", str(output)])
    assert "1 done" in capsys.readouterr().out
    config = yaml.safe_load((output / "sft" / "seed_3" / "version_0" / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert (output / "sft" / "seed_3" / "adapter" / "adapter_model.safetensors").is_file()
    done = json.loads((output / "sft" / "seed_3" / "done.json").read_text())
    assert done["peak_bytes"] > 1e8  # of the child, which reads torch, not of a launcher
    main(["experiment", "--config", str(path), "--output", str(output), "--dry-run"])
    assert "to run: 0 of 1" in capsys.readouterr().out


def test_mistakes_on_the_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config is 'lost.yaml', which cannot be read (No such file" in told(capsys, "--config", "lost.yaml")
    twice = ["--config", str(world.write()), "--config", str(world.file), "--dry-run"]
    assert f"--config is given twice ({world.file}, {world.file}); give it once" in told(capsys, *twice)
    assert "--jobs is 0; give at least 1" in told(capsys, "--config", str(world.write()), "--jobs", "0")
    assert "names 'rl.yaml', and there is no such file" in told(capsys, "--config", str(world.file))
    stages = [{"name": "a", "verb": "fit", "configs": ["sft.yaml"]}]
    assert "name each seed once" in told(capsys, "--config", str(world.write(stages=stages)), "--seeds", "1", "1")
    assert "config_version in" in told(capsys, "--config", str(world.write(config_version=99)))


def test_a_failure_is_the_exit_status(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{"name": "a", "verb": "fit", "configs": ["sft.yaml"], "overrides": {"model.loss.bta": 1}}]
    with pytest.raises(SystemExit) as exit_:
        main(["experiment", "--config", str(world.write(stages=stages))])
    assert exit_.value.code == 1
    assert "a seed 1 failed" in (shown := capsys.readouterr().out)
    assert "--model.loss.bta=1 (the nearest is model" in shown


def test_a_module_of_ones_own_hides_none_and_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    Path("random.py").write_text("raise RuntimeError('mine')\n")
    Path("mine.py").write_text("from lsemrl.rewards import Reward\nclass Mine(Reward): pass\n")
    overrides = {"model.rewards": {"mine": {"class_path": "mine.Mine"}}}
    stages = [{"name": "a", "verb": "fit", "configs": ["grpo.yaml"], "overrides": overrides}]
    with pytest.raises(SystemExit):
        main(["experiment", "--config", str(world.write(stages=stages))])
    log = (world.output / "a" / "seed_1" / "log.txt").read_text()
    assert "mine.Mine is abstract" in log and "RuntimeError" not in log
