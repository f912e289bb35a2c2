"""`lsemrl fit-reward` as a user meets it."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from full_disk import full_disk
from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands import fitted_reward
from lsemrl.commands.fitted_reward import overlay
from lsemrl.commands.tau_settings import TauSettings
from lsemrl.config_files import CONFIGS
from lsemrl.data.sources import Source
from lsemrl.data.translation import Pairs
from lsemrl.locks import held
from lsemrl.micro import corpus
from lsemrl.modules.sampling import Sampling
from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.calibration import Calibration, Probe, calibrate
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.types import Completion, Example
from matrix import slow_but
from tiny import make_policy

GRPO = CONFIGS / "grpo.yaml"
QUICK = [
    "--train.fresh=false",
    "--train.lr=1e-4",
    "--train.device=cpu",
    "--train.epochs=1",
    "--train.batch_size=8",
    "--data.micro={train: 40, validation: 6, test: 6}",
    "--data.splits.cold_start_count=8",
    "--tau.sampling.max_new_tokens=16",
    f"--grpo={GRPO}",
]


def fit_reward(output: Path, *words: str) -> None:
    main(["fit-reward", "--config", str(CONFIGS / "reward.yaml"), *QUICK, f"--output={output}", *words])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(capsys: pytest.CaptureFixture[str], output: Path, *words: str) -> str:
    """The one sentence that a mistake gives."""
    with pytest.raises(SystemExit) as exit_:
        fit_reward(output, *words)
    assert exit_.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsemrl: error: ")]
    return line


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the shipped configuration writes, with fewer rows."""
    folder, measured = tmp_path_factory.mktemp("reward") / "new" / "folder", []

    def slowly(encoder: SentenceTransformer, texts: Probe) -> Calibration:
        measured.append(1000)
        return calibrate(encoder, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted_reward, "calibrate", slowly)
        patch.setattr(fitted_reward, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(measured)))
        fit_reward(folder)
    return folder


def test_what_is_written(fitted: Path) -> None:
    content = json.loads((fitted / "calibration.json").read_text(encoding="utf-8"))
    assert content["training_pairs"] == 40
    assert content["pairs"] == 12
    assert 0 < content["seconds"] < 1000  # without those of measuring
    assert len(content["tau"]["cosines"]) + content["tau"]["silent"] == 8
    assert min(content["tau"]["cosines"]) <= content["tau"]["value"] <= max(content["tau"]["cosines"])
    assert list(content["calibrations"]) == ["before", "after"]
    assert content["history"][-1]["step"] == 5
    assert "# Calibration" in (fitted / "calibration.md").read_text(encoding="utf-8")
    assert (fitted / "calibration.png").is_file()
    assert not (fitted / "encoder.unfinished").exists()
    assert yaml.safe_load((fitted / "config.yaml").read_text())["train"]["batch_size"] == 8
    reward = SemanticSimilarity(encoder=str(fitted / "encoder"), cache_dir="none")
    outputs = [row["bo"] for row in corpus.translation("test", 3, seed=0)]
    assert reward.similarity(outputs, [[text] for text in outputs]).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("size", slow_but([0, 1000, 100_000], [1000]))
def test_after_a_full_disk_the_same_command_goes_on(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    words = ["--train.epochs=0", "--tau.policy=null"]  # quick, with every file
    with full_disk(size):
        assert "cannot be written to (File too large); make room" in told(capsys, tmp_path, *words)
    assert not (tmp_path / "encoder").exists()
    fit_reward(tmp_path, *words)
    assert names(tmp_path) == names(fitted)


def test_two_processes_do_not_fit_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path / "reward"):
        assert "another process is at work on" in told(capsys, tmp_path / "reward")
    assert not names(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "notes.md", "version_0"])
def test_the_folder_of_something_else_is_left_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert "which holds something else; name a new folder" in told(capsys, tmp_path)
    assert names(tmp_path) == [name]


def test_the_overlay_keeps_the_other_rewards_in_a_grpo_run(fitted: Path, tmp_path: Path) -> None:
    tau = json.loads((fitted / "calibration.json").read_text(encoding="utf-8"))["tau"]["value"]
    words = ["fit", "--config", str(GRPO), "--config", str(fitted / "reward.yaml"), "--data.batch_size=2"]
    words += ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
    words += ["--data.micro={train: 20, validation: 4, test: 4}", "--data.splits.cold_start_count=8"]
    main([*words, f"--trainer.default_root_dir={tmp_path}"])
    saved = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())["model"]["init_args"]["rewards"]
    assert set(saved) == {"similarity", "language", "meaning"}
    assert saved["similarity"]["init_args"]["encoder"] == str(fitted / "encoder")
    assert saved["similarity"]["init_args"]["threshold"] == tau
    assert saved["similarity"]["init_args"]["weight"] == 1.5
    assert saved["language"]["init_args"]["language"] == "bo"
    assert "rewards/language/mean" in (tmp_path / "version_0" / "metrics.csv").read_text()


@pytest.mark.slow
def test_the_line_that_is_printed_does_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_reward(tmp_path / "reward", "--train.epochs=0")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "or add: " in line]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(GRPO), *line.partition("or add: ")[2].split(), "--print_config"])
    by_line = yaml.safe_load(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(GRPO), "--config", str(tmp_path / "reward" / "reward.yaml"), "--print_config"])
    assert by_line == yaml.safe_load(capsys.readouterr().out)
    assert by_line["model"]["init_args"]["rewards"]["similarity"]["init_args"]["threshold"] != 0.2


@pytest.mark.slow
def test_no_training_leaves_the_encoder_as_it_is(tmp_path: Path) -> None:
    fit_reward(tmp_path / "reward", "--train.epochs=0", "--train.fresh=false", "--tau.policy=null", "--grpo=null")
    content = json.loads((tmp_path / "reward" / "calibration.json").read_text(encoding="utf-8"))
    assert list(content["calibrations"]) == ["as it is"]
    assert content["tau"] is None
    assert not (tmp_path / "reward" / "reward.yaml").exists()
    kept, shipped = (
        SemanticSimilarity(encoder=name, cache_dir="none").encoder.state_dict()
        for name in (str(tmp_path / "reward" / "encoder"), micro.NAME)
    )
    assert all(torch.equal(kept[name], shipped[name]) for name in shipped)


@pytest.mark.slow
def test_rows_of_files_and_a_policy_of_ones_own(tmp_path: Path, tiny_model: str) -> None:
    rows = corpus.translation("train", 40, seed=3)
    for field in ("zh", "bo"):
        (tmp_path / f"a.{field}").write_text("".join(f"{row[field]}\n" for row in rows), encoding="utf-8")
    make_policy(tiny_model).save(tmp_path / "adapter")
    card = tmp_path / "adapter" / "adapter_config.json"
    assert json.loads(card.read_text())["base_model_name_or_path"] == tiny_model
    fit_reward(
        tmp_path / "reward",
        f"--data.source={{path: {tmp_path / 'a.zh'}, target_path: {tmp_path / 'a.bo'}}}",
        "--data.splits={validation_fraction: 0.2, test_fraction: 0.0, part: all, cold_start_count: 0}",
        f"--tau.policy={tmp_path / 'adapter'}",
        "--tau.rows=5",
        "--tau.sampling.temperature=0",
    )
    content = json.loads((tmp_path / "reward" / "calibration.json").read_text(encoding="utf-8"))
    assert content["training_pairs"] + content["pairs"] == 40
    assert len(content["tau"]["cosines"]) + content["tau"]["silent"] == 5


def test_rows_that_are_left_out_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps(row, ensure_ascii=False) for row in corpus.translation("train", 40, seed=0)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"zh": "a"}']), encoding="utf-8")
    source = f"--data.source={{path: {tmp_path / 'rows.jsonl'}, on_bad_row: skip}}"
    splits = "--data.splits={validation_fraction: 0.2, cold_start_count: 8}"
    fit_reward(tmp_path / "reward", source, splits, "--train.epochs=0", "--tau.policy=null")
    assert "1 bad rows are left out and listed in" in capsys.readouterr().out


def test_no_tau_is_derived_from_an_encoder_by_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, tmp_path, "--train.fresh=true", "--train.epochs=0")
    assert "no tau is derived, for the encoder tells a translation from any other sentence by chance (AUC 0." in said
    content = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert content["tau"] is None
    assert content["calibrations"]["as it is"]["figures"]["auc_shuffled"] < 0.7
    assert not (tmp_path / "reward.yaml").exists()


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        ((), {"temperature": 0.6, "top_p": 1.0, "max_new_tokens": 77}),
        (("--tau.sampling.max_new_tokens=9",), {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 9}),
    ],
)
def test_outputs_are_drawn_as_rl_draws_but_where_it_is_said(
    words: tuple[str, ...], drawn: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(GRPO.read_text(encoding="utf-8"))
    fields = {"num_generations": 4, "temperature": 0.6, "top_p": 1.0, "max_new_tokens": 77, "engine": "vllm"}
    content["model"]["init_args"]["sampling"] = fields
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    given: list[TauSettings] = []
    monkeypatch.setattr(fitted_reward, "adapt", lambda *, tau, **asked: given.append(tau))
    shipped = ["fit-reward", "--config", str(CONFIGS / "reward.yaml"), f"--grpo={tmp_path / 'grpo.yaml'}"]
    main([*shipped, f"--output={tmp_path / 'reward'}", *words])
    assert given[0].sampling == Sampling(num_generations=1, **drawn)  # type: ignore[arg-type]


def test_tau_is_of_what_the_reward_holds_outputs_against() -> None:
    row = corpus.translation("train", 1, seed=0)[0]
    example = Example(id="0", prompt="", source=str(row["zh"]), references=(str(row["bo"]),))
    outputs = [Completion(text=str(row["bo"]), ended=True, example=example)] * 3
    tau = TauSettings(policy="micro", sampling=Sampling(num_generations=1))
    part = {"init_args": {"encoder": "another", "threshold": 0.5, "against": "source", "weight": 2.0}}
    found = fitted_reward._tau(micro.NAME, outputs, tau, EncoderTraining(device="cpu"), part)
    across = SemanticSimilarity(cache_dir="none", device="cpu").similarity([str(row["bo"])], [[str(row["zh"])]])
    assert found.value == pytest.approx(float(across[0]), abs=1e-4) and found.value < 0.999
    same = fitted_reward._tau(micro.NAME, [*outputs, replace(outputs[0], text="དེབ།")], tau, EncoderTraining(), {})
    assert same.cosines[0] == 1.0  # with its reference


def test_an_encoder_without_the_script_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(micro.ENCODER, tmp_path / "blind")
    vocabulary = {piece: at for at, piece in enumerate(["[PAD]", "[UNK]", *"abc"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    blind = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    blind.save_pretrained(tmp_path / "blind")
    said = told(capsys, tmp_path / "reward", f"--encoder={tmp_path / 'blind'}")
    assert "has no token for 100.0% of the letters of sources" in said


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--encoder=nowhere/at/all", "encoder 'nowhere/at/all' could not be loaded"),
        (f"--encoder={CONFIGS}", "is neither a SentenceTransformer folder"),
        ("--tau.quantile=0", "tau.quantile is 0.0; it must be in (0, 1)"),
        ("--tau.quantile=1", "tau.quantile is 1.0; it must be in (0, 1)"),
        ("--tau.rows=0", "tau.rows is 0"),
        ("--tau.dtype=float16", "tau.dtype: Expected one of 'float32', 'bfloat16'"),
        ("--tau.policy=nowhere/at-all", "tau.policy is 'nowhere/at-all', which is neither an adapter nor a model"),
        ("--train.lr=-1", "train.lr is -1.0"),
        ("--train.lr=fast", "train.lr"),
        ("--train.learning_rate=1", "train.learning_rate"),
        ("--held_out=1", "held_out is 1"),
        ("--grpo=nowhere.yaml", "grpo is 'nowhere.yaml', which cannot be read"),
        (f"--grpo={CONFIGS / 'sft.yaml'}", "which holds no rewards"),
        ("--data.source.path=nowhere.jsonl", "'nowhere.jsonl', and there is no such file"),
        ("--data.target_field=tgt", "target_field is 'tgt', which has no wording of its own"),
        ("--data.micro={train: 40, validation: 0, test: 0}", "leaves no held-out pairs to measure on"),
        ("--data.micro={train: 40, validation: 1, test: 0}", "1 of 1 held-out pairs can be measured"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    word: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in told(capsys, tmp_path / "reward", word)


def test_a_pair_that_comes_again_counts_once(tmp_path: Path) -> None:
    for name, texts in {"rows": ("a", "a", " a", "c"), "held": ("d",)}.items():
        lines = [f'{{"zh": "{text}", "bo": "{text.strip()}{text.strip()}"}}\n' for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    source, held_out = (Source(path=str(tmp_path / f"{name}.jsonl")) for name in ("rows", "held"))
    pairs, _ = fitted_reward._pairs(Pairs(source=source, validation=held_out, test=held_out))
    assert pairs == [("a", "aa"), ("c", "cc")]


def test_a_single_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = told(capsys, tmp_path / "reward", "--data.splits.max_rows=1", "--tau.policy=null")
    assert "there are 1 different pairs to train on; give two or more" in sentence


def test_a_missing_field_of_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"zh": "a", "tibetan": "b"}\n')
    sentence = told(capsys, tmp_path / "reward", f"--data.source.path={tmp_path / 'rows.jsonl'}")
    assert "has the column 'bo' for the field 'bo'" in sentence


def test_folders_that_cannot_be_written(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "which cannot be written to" in told(capsys, tmp_path / "file" / "reward")
    before = (fitted / "calibration.json").read_bytes()
    assert "which holds an encoder already" in told(capsys, fitted)
    assert (fitted / "calibration.json").read_bytes() == before


def test_rewards_with_two_similarities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(GRPO.read_text(encoding="utf-8"))
    parts = content["model"]["init_args"]["rewards"]
    parts["watched"] = parts["similarity"]
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(content))
    assert "2 of whose rewards are SemanticSimilarity" in told(
        capsys, tmp_path / "r", f"--grpo={tmp_path / 'grpo.yaml'}"
    )


def test_an_overlay_without_tau_keeps_the_threshold() -> None:
    parts = {"s": {"class_path": "lsemrl.rewards.SemanticSimilarity", "init_args": {"threshold": 0.2}}, "l": {"x": 1}}
    made = overlay(("s", parts), "e", None)["model"]["init_args"]["rewards"]
    assert made["s"]["init_args"] == {"threshold": 0.2, "encoder": "e"}
    assert made["l"] == {"x": 1}
    assert parts["s"]["init_args"] == {"threshold": 0.2}


def test_help_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit-reward", "--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("--train.lr LR Highest learning rate of AdamW", "--tau.quantile QUANTILE Share of outputs"):
        assert words in shown
    with pytest.raises(SystemExit):
        main(["fit-reward", "--config", str(CONFIGS / "reward.yaml"), "--print_config"])
    shown = capsys.readouterr().out
    assert "# Share of outputs that lie below tau" in shown
    assert yaml.safe_load(shown)["train"]["fresh"] is True
