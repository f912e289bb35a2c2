"""The command line as a user meets it: help, overrides, and one sentence for every mistake."""

from __future__ import annotations

import csv
import importlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lsemrl import __version__, micro
from lsemrl.cli.main import main
from lsemrl.cli.verbs import VERBS
from lsemrl.config_files import CONFIGS
from lsemrl.modules.policy import Policy
from matrix import slow_but
from tiny import make_policy, save_tiny_model

QUICK = [
    "--trainer.max_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.callbacks=null",
    "--trainer.enable_checkpointing=false",
    "--trainer.limit_val_batches=0",
    "--data.micro={train: 40, validation: 4, test: 4}",
    "--data.splits.cold_start_count=8",
]


def fit(*words: str, config: str = "grpo.yaml") -> None:
    main(["fit", "--config", str(CONFIGS / config), *QUICK, *words])


def told(capsys: pytest.CaptureFixture[str], *words: str, config: str = "grpo.yaml") -> str:
    """The one sentence that a mistake gives."""
    with pytest.raises(SystemExit) as exit_:
        fit(*words, config=config)
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsemrl: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in shown
    main(["--version"])
    assert capsys.readouterr().out == f"lsemrl {__version__}\n"


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    endless = (
        "from lsemrl.cli.main import main; from lsemrl.commands import report;"
        "report.report = lambda: [print(n) for n in range(10**9)]; main()"
    )
    words = [sys.executable, "-c", endless, "report"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_class_of_ones_own_is_found_where_one_works_and_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = [folder for folder in sys.path if folder not in ("", os.getcwd())]  # as the command has it
    (tmp_path / "work").mkdir()
    own = "from lsemrl.rewards.lexical import Chrf\nclass Mine(Chrf):\n    pass\n"
    (tmp_path / "work" / "own_reward_here.py").write_text(own)
    (tmp_path / "own_reward_beside.py").write_text(own)
    (tmp_path / "work" / "yaml.py").write_text("raise AssertionError('shadows what is installed')")
    (tmp_path / "overlay.yaml").write_text("seed_everything: 1\n")
    monkeypatch.chdir(tmp_path / "work")
    for module in ("own_reward_here", "own_reward_beside"):
        monkeypatch.setattr(sys, "path", list(installed))
        with pytest.raises(SystemExit) as exit_:
            fit("--config=../overlay.yaml", f"--model.rewards.mine.class_path={module}.Mine", "--print_config")
        assert exit_.value.code == 0 and f"class_path: {module}.Mine" in capsys.readouterr().out
        assert sys.path[: len(installed)] == installed
    sentence = told(capsys, "--model.rewards.mine.class_path=own_reward_nowhere.Mine")
    assert "there is no module 'own_reward_nowhere'" in sentence and str(tmp_path / "work") in sentence


def test_a_warning_is_a_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert warnings.formatwarning(UserWarning("the encoder reads 128 tokens"), UserWarning, "/a/b.py", 3) == (
        "warning: the encoder reads 128 tokens\n"
    )


def test_what_bitsandbytes_advises_of_is_not_said(caplog: pytest.LogCaptureFixture) -> None:
    """Every verb began with "Failed to load CPU gemm_4bit_forward", on processors with AVX512-BF16."""
    main(["--version"])
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load")
    logging.getLogger("bitsandbytes.cextension").warning("no library")
    assert caplog.messages == ["no library"]


def test_an_unknown_verb_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train"])
    assert exit_.value.code == 2
    assert "there is no verb 'train'; choose one of init, check, fit" in capsys.readouterr().err


def test_print_config_is_commented_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(CONFIGS / "grpo.yaml"), "--print_config"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "# Completions per prompt, the group size G." in shown
    config = yaml.safe_load(shown)
    assert config["model"]["init_args"]["policy"]["lora"]["dropout"] == 0.05
    assert config["model"]["init_args"]["loss"]["epsilon"] == 0.2
    assert config["data"]["init_args"]["limits"]["on_long"] == "skip"
    assert config["config_version"] == 1


def test_a_field_is_overridden_from_the_line_and_by_a_second_file(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    sampling:\n      num_generations: 2\n      max_new_tokens: 4\n")
    root = tmp_path / "runs"
    words = [f"--trainer.default_root_dir={root}", "--data.batch_size=2"]
    fit("--config", str(overlay), *words, "--model.rewards.language.weight=0.5", "--model.loss.beta=0.01")
    saved = yaml.safe_load((root / "version_0" / "config.yaml").read_text())["model"]["init_args"]
    assert saved["sampling"] | {"num_generations": 2, "max_new_tokens": 4, "temperature": 0.8} == saved["sampling"]
    assert saved["rewards"]["language"]["init_args"]["weight"] == 0.5
    assert saved["rewards"]["similarity"]["init_args"]["weight"] == 1.5  # its sibling stays
    assert saved["loss"]["beta"] == 0.01
    # A second run takes a new folder and leaves the first as it was.
    before = (root / "version_0" / "metrics.csv").read_bytes()
    fit("--config", str(overlay), *words)
    assert (root / "version_1" / "adapter" / "adapter_model.safetensors").is_file()
    assert (root / "version_0" / "metrics.csv").read_bytes() == before
    with (root / "version_0" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    for name in (
        "reward",
        "rewards/similarity/mean",
        "kl",
        "entropy",
        "frac_reward_zero_std",
        "rollout_step",
        "optimizer_step",
    ):
        assert row[name] != ""


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--model.loss.bta=1", "unrecognized arguments: --model.loss.bta=1 (the nearest is model.loss.beta)"),
        ("--trainer.max_stps=1", "unrecognized arguments: --trainer.max_stps=1"),
        ("--model.loss.beta=much", "model.loss.beta: Expected a float. Got value: much"),
        ("--model.loss.loss_type=ppo", "Expected one of 'grpo', 'bnpo', 'dr_grpo', 'dapo'. Got value: ppo"),
        (
            "--model.policy=Qwen3",
            "model.policy: 'Qwen3' is neither a file of its fields nor a class; give the fields one",
        ),
        (
            "--data=pairs",
            "data: 'pairs' is neither a file of its fields nor a class; give the fields one by one",
        ),
        ("--model.loss.beta=-1", "beta is -1"),
        ("--model.sampling.num_generations=1", "num_generations is 1: set it to 2 or more"),
        ("--model.rewards.similarity.threshold=1.0", "threshold (tau) is 1.0"),
        ("--model.rewards.similarity.threshold=-1.5", "threshold (tau) is -1.5"),
        ("--model.rewards.similarity.encoder=nowhere/at/all", "encoder is 'nowhere/at/all'"),
        ("--model.optimizer_batch_size=5", "optimizer_batch_size is 5, which does not divide the 128 completions"),
        ("--model.policy.model=nowhere/at-all", "policy.model is 'nowhere/at-all'"),
        ("--model.policy.adapter=nowhere", "policy.adapter is 'nowhere'"),
        ("--data.source.path=nowhere.jsonl", "'nowhere.jsonl', and there is no such file"),
        ("--data.batch_size=0", "batch_size is 0"),
        ("--seed_everything=-1", "seed_everything is -1; give a number from 0 to 4294967295"),
        ("--seed_everything=1099511627776", "seed_everything is 1099511627776"),
        ("--data.seed=-1", "data.seed is -1"),
        ("--data.splits.seed=18446744073709551616", "data.splits.seed is 18446744073709551616"),
        ("--data.batch_size=100000", "batch_size is 100000, but there are"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_before_weights_are_read(
    word: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "load", lambda policy: pytest.fail("weights are read"))
    assert sentence in told(capsys, f"--trainer.default_root_dir={tmp_path}", word)


def test_a_folder_that_is_no_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = told(capsys, f"--trainer.default_root_dir={tmp_path}", f"--model.rewards.similarity.encoder={tmp_path}")
    assert "is no SentenceTransformer folder" in sentence


def test_an_adapter_of_another_base(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_policy(tiny_model).save(tmp_path / "adapter")
    other = save_tiny_model(tmp_path / "other", seed=3)
    sentence = told(
        capsys,
        f"--trainer.default_root_dir={tmp_path / 'runs'}",
        f"--model.policy.model={other}",
        f"--model.policy.adapter={tmp_path / 'adapter'}",
    )
    assert "trained on another base model" in sentence


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    sentence = told(capsys, f"--trainer.default_root_dir={tmp_path / 'file' / 'runs'}")
    assert "trainer.default_root_dir is" in sentence
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "cannot be written to" in told(capsys, f"--trainer.default_root_dir={tmp_path / 'locked' / 'runs'}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"config_version: 2\nmodel: {new: field}\n", "config_version in"),
        (b"config_version: one\n", "config_version in"),
        (b"", "which holds no fields"),
        (b"seed_everything: [1\n", "which is not YAML"),
        (b"seed_everything: \xff\xfe\n", "which is not YAML in UTF-8"),
    ],
)
def test_configurations_that_cannot_be_read(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert sentence in told(capsys, "--config", str(path))


def test_a_missing_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config is 'nowhere.yaml', which cannot be read (No such file" in told(capsys, "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'{"id": "1", "zh": "\xff", "bo": "b"}\n', "rows.jsonl:1"),
        (b'{"id": "1", "zh": "a"}\n', "bo"),
        (b'{"id": "1", "zh": "a", "bo": "b"}\nnot json\n', "rows.jsonl:2"),
    ],
)
def test_rows_that_cannot_be_read(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert sentence in told(
        capsys, f"--trainer.default_root_dir={tmp_path}", f"--data.source.path={path}", config="sft.yaml"
    )


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("ours")

    monkeypatch.setattr("lsemrl.commands.report.report", broken)
    with pytest.raises(ValueError, match="ours"):
        main(["report"])


def test_ctrl_c_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lsemrl.commands.report.report", stopped)
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 130 and capsys.readouterr().err == "lsemrl: stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    ("words", "what"), [(["chat", str(micro.COLD_START)], str(micro.COLD_START)), (["fit", "--help"], "Lightning")]
)
def test_whoever_waits_for_libraries_is_told_so(
    words: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    for verb in ("chat", "trainer"):
        monkeypatch.setattr(f"lsemrl.commands.{verb}.quiet", stopped)
    with pytest.raises(SystemExit):
        main(words)
    *before, loading, stop = capsys.readouterr().err.splitlines()
    assert (loading, stop) == (f"loading {what}", "lsemrl: stopped by Ctrl-C")
    assert [line.partition(":")[0] for line in before] == ([f"{what} is no run"] if words[0] == "chat" else [])


def test_a_rank_that_has_gone_is_told_by_those_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def left() -> None:
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr("lsemrl.commands.report.report", left)
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("lsemrl: error: another rank has gone;")


def test_memory_that_runs_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("lsemrl.commands.report.report", broken)
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("lsemrl: error: memory ran out (CUDA out of memory. Tried to allocate 2.")


def test_letters_that_standard_output_has_none_for_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of Tibetan where a terminal, or a pipe, is of Chinese letters."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="gbk"))
    monkeypatch.setattr("lsemrl.commands.report.report", lambda: print("བོད་ཡིག"))
    with pytest.raises(SystemExit) as exit_:
        main(["report"])
    assert exit_.value.code == 2
    says = "standard output is written in gbk, which has no 'བ'; set PYTHONUTF8=1 in the environment"
    assert capsys.readouterr().err == f"lsemrl: error: {says}\n"


@pytest.mark.parametrize("name", slow_but(["RANK", "SLURM_PROCID"], ["RANK"]))
def test_processes_that_would_all_train_alone_are_stopped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("lightning.pytorch")  # its loggers are of the rank that it finds when it is imported
    monkeypatch.setenv(name, "1")
    sentence = told(capsys, f"--trainer.default_root_dir={tmp_path}")
    assert "several processes were started, but trainer.devices times trainer.num_nodes is 1" in sentence
    assert not list(tmp_path.iterdir())


def test_a_reward_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "import torch\nfrom lsemrl.rewards import Reward\n\n\nclass Brevity(Reward):\n"
        "    def __init__(self, limit: int = 10, weight: float = 1.0) -> None:\n"
        "        super().__init__(weight)\n        self.limit = limit\n\n"
        "    def __call__(self, completions):\n"
        "        return torch.tensor([float(len(c.text) < self.limit) for c in completions])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        json.dumps(
            {
                "model": {
                    "init_args": {"rewards": {"short": {"class_path": "my_rewards.Brevity", "init_args": {"limit": 5}}}}
                }
            }
        )
    )
    root = tmp_path / "runs"
    fit(
        f"--trainer.default_root_dir={root}",
        "--data.batch_size=2",
        "--model.sampling={num_generations: 2, max_new_tokens: 4}",
        "--config",
        str(overlay),
    )
    assert "rewards/short/mean" in (root / "version_0" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("init", "{}.tsv", "--to", "bo"),
        ("tax", "{}", "--output", "out"),
        ("experiment", "--config", "{}.yaml", "--dry-run"),
        ("judge", "a={}", "b=other.jsonl", "--oracle"),
    ],
)
def test_a_name_that_is_too_long_is_told(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([word.format("x" * 300) for word in words])
    said = capsys.readouterr().err.splitlines()[-1]
    # From Python 3.14 on such a name is one of which there is nothing.
    assert exit_.value.code == 2 and ("File name too long" in said or "is no folder" in said), said
