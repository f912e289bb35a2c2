"""The configurations for Nigerian Pidgin, through the command line, on models and rows that fit into a test.

Models and data lie where the configurations look for them, in the formats that they are published in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.data.rehearsal import read_rehearsal
from lsemrl.evaluation.measurement import FILE, Measured
from lsemrl.experiment.read import read_experiment
from two_languages import sentences

PIDGIN = CONFIGS / "pidgin"
SMALL = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models and data under the configurations' names, and the identifier; the current one."""
    home = tmp_path_factory.mktemp("home")
    (home / "pidgin" / "mafand").mkdir(parents=True)
    for name, model in (("smollm2", micro.POLICY), ("minilm", micro.ENCODER)):
        (home / "pidgin" / name).symlink_to(model)
    for name, count in (("train", 120), ("dev", 4), ("test", 8)):
        pairs = zip(*(sentences(code, count, words=6, seed=count) for code in ("en", "pcm")), strict=True)
        lines = [json.dumps({"translation": {"en": en, "pcm": pcm}}) for en, pcm in pairs]
        (home / "pidgin" / "mafand" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    passages = [
        {"context": context, "qas": [{"id": context, "question": "which", "answers": [{"text": context.split()[0]}]}]}
        for context in sentences("en", 16)
    ]
    questions = {"data": [{"paragraphs": passages}]}
    (home / "pidgin" / "xquad_en.json").write_text(json.dumps(questions), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        main(["fit-language", "--config", str(PIDGIN / "language.yaml")])
        yield home


def fit(*words: str, names: tuple[str, ...]) -> Path:
    configs = [word for name in names for word in ("--config", str(PIDGIN / f"{name}.yaml"))]
    root = Path("runs") / "-".join(names)
    main(["fit", *configs, *SMALL, f"--trainer.default_root_dir={root}", *words])
    return next(root.glob("version_*")) / "adapter"


@pytest.mark.slow
def test_it_learns_is_rewarded_and_measured_as_configured(home: Path) -> None:
    main(["rehearse", "--config", str(PIDGIN / "rehearse.yaml"), "--rows=8", "--max-new-tokens=24", "--top-k=8"])
    asking = [word for name in ("rehearse", "questions") for word in ("--config", str(PIDGIN / f"{name}.yaml"))]
    main(["rehearse", *asking, "--rows=2", "--max-new-tokens=24", "--top-k=8"])
    assert any("which" in row.prompt for row in read_rehearsal(Path("pidgin/asked.jsonl")))
    anchor = '--model.anchor={"path": "pidgin/own.jsonl", "rows": 2, "top_k": 8}'
    cold = fit("--data.splits.part=cold_start", "--data.splits.cold_start_count=40", anchor, names=("sft",))
    fit("--data.main.batch_size=4", names=("sft", "replay"))
    rl = fit(f"--model.policy.adapter={cold}", "--data.splits.cold_start_count=40", anchor, names=("grpo",))
    fit(f"--model.policy.adapter={cold}", "--data.splits.cold_start_count=40", names=("grpo", "guarded"))
    Path("pidgin/mono.txt").write_text("\n".join(sentences("en", 20, words=6, seed=7)), encoding="utf-8")
    fit(f"--model.policy.adapter={cold}", anchor, names=("grpo", "untranslated"))
    small = ["--tau.policy=null", "--data.splits.cold_start_count=40", "--train.batch_size=16"]
    main(["fit-reward", "--config", str(PIDGIN / "reward.yaml"), *small])
    assert {"encoder", "reward.yaml", "calibration.md"} <= {path.name for path in Path("runs/pidgin/reward").iterdir()}
    words = ["--target_rows=2", "--general_rows=2", "--max_new_tokens=4", "--device=cpu"]
    main(
        [
            "measure",
            "--config",
            str(PIDGIN / "measure.yaml"),
            *words,
            "--arm=rl",
            f"--policy.adapter={rl}",
            "--output=m",
        ]
    )
    measured = Measured.read(Path("m") / FILE)
    assert measured.general_name.endswith("QA") and "leak" in measured.general
    assert set(measured.data) == {"target", "general", "text"}


@pytest.mark.parametrize("name", ["experiment", "to_english"])
def test_the_experiments_measure_whatever_is_trained(name: str) -> None:
    stages = read_experiment(PIDGIN / f"{name}.yaml", CONFIGS).stages
    trained = {stage.name for stage in stages if stage.verb == "fit"}
    assert trained == {stage.after for stage in stages if stage.verb == "measure" and stage.after}
    told = "model.rewards.language.init_args.language"
    rewarded = [stage for stage in stages if stage.name.startswith("rl") and stage.verb == "fit"]
    assert all(any(key.startswith(told) for key in stage.overrides) for stage in rewarded)
    assert {f"{arm}{held}" for arm in ("cold_start", "rl", "sft") for held in ("", "_anchored")} <= trained


@pytest.mark.slow
def test_the_other_direction_is_learned_and_measured(home: Path) -> None:
    main(["fit-language", "--config", str(PIDGIN / "language.yaml"), "--to=en", "--output=pidgin/english"])
    language = '{"code": "en", "identifier": "pidgin/english"}'
    turned = ["source_field=pcm", "target_field=en"]
    data, target = ([f"--{part}.{word}" for word in turned] for part in ("data", "target"))
    sft = fit(*data, f"--model.metrics.language={language}", names=("sft",))
    rewarded = f"--model.rewards.language.init_args.language={language}"
    counts = "--data.splits.cold_start_count=40"
    rl = fit(f"--model.policy.adapter={sft}", *data, counts, rewarded, names=("grpo",))
    words = [*target, f"--metrics.language={language}", "--target_rows=2", "--general_rows=2", "--max_new_tokens=4"]
    given = ["--arm=rl", f"--policy.adapter={rl}", "--output=to_english", "--device=cpu", "--num_beams=2"]
    main(["measure", "--config", str(PIDGIN / "measure.yaml"), *words, *given])
    measured = Measured.read(Path("to_english") / FILE)
    assert (measured.task, measured.conditions["num_beams"]) == ("pcm-en", 2) and "leak" not in measured.general
