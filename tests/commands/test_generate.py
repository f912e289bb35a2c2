"""A finished run put to use: answers on the command line, and folders that need no lsemrl."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from forks import Fork, script
from full_disk import full_disk
from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands import answers as answering
from lsemrl.commands import exported as exporting
from lsemrl.commands import trained
from lsemrl.commands.generate import counted
from lsemrl.commands.named import Model, find
from lsemrl.commands.trained import Trained, read_run, take_up
from lsemrl.config_files import CONFIGS
from lsemrl.data.collate import encode
from lsemrl.data.instruction import InstructionData
from lsemrl.data.task import Plan
from lsemrl.data.translation import TranslationData
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.best import Best
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.whole_models import write_model
from lsemrl.report.tax_report import tax_report
from lsemrl.types import Completion, Example, UserError
from made_up import make_measured
from matrix import slow_but
from modules.adapters.kinds import save_adapter
from small_run import SMALL, fit_small
from tiny import save_tiny_model

TEXTS = ["小狗在家吃苹果。", "老师昨天写了信。", "妈妈买书。"]
# What a user without lsemrl would write; it prints the log-probs of the tokens behind the prompt, once by
# the adapter and once by the merged model.
ALONE = 'assert "lsemrl" not in sys.modules'
PLAIN = f"""
import json, sys, torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, target = sys.argv[1:]
for kind, library in (("adapter", AutoPeftModelForCausalLM), ("merged", AutoModelForCausalLM)):
    model = library.from_pretrained(folder + "/" + kind)
    tokenizer = AutoTokenizer.from_pretrained(folder + "/" + kind)
    asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, target))
    said.append(tokenizer.eos_token_id)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([asked + said])).logits[0].float().log_softmax(-1)
    print(json.dumps([logits[len(asked) + at - 1, token].item() for at, token in enumerate(said)]))
{ALONE}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_small(tmp_path_factory.mktemp("runs"))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def made_up_run(folder: Path, config: str, **sampling: object) -> Path:
    """A run's folder that nobody trained: the shipped `config`, over the embedded cold start."""
    made = yaml.safe_load((CONFIGS / config).read_text(encoding="utf-8"))
    if sampling:
        made["model"]["init_args"]["sampling"] |= sampling
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(made, allow_unicode=True), encoding="utf-8")
    shutil.copytree(micro.COLD_START, folder / "adapter")
    return folder


def test_a_run_that_drew_nothing_is_drawn_from_as_a_model_is(tmp_path: Path) -> None:
    run = read_run(made_up_run(tmp_path / "sft", "sft.yaml"))
    as_model = take_up(Model(name="micro")).sampling
    assert run.sampling == dataclasses.replace(as_model, max_new_tokens=32)
    assert answering.one_each(run.sampling, greedy=True).temperature == 0
    drawn = answering.one_each(run.sampling, greedy=False)
    assert (drawn.temperature, drawn.top_p) == (0.8, 0.9)


@pytest.mark.parametrize(("engine", "used"), [("graphs", "auto"), ("compiled", "auto"), ("loop", "loop")])
def test_what_drew_a_run_need_not_be_where_it_answers(tmp_path: Path, engine: str, used: str) -> None:
    run = read_run(made_up_run(tmp_path / "run", "grpo.yaml", engine=engine))
    assert answering.one_each(run.sampling, greedy=True).engine == used


@pytest.mark.slow
def test_a_run_whose_reference_followed_it_is_read(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["policy"] |= {"reference": "initial", "ref_model_sync_steps": 50}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(tmp_path / "run").policy.reference == "none"


def test_batches_are_counted_by_whatever_was_kept(tmp_path: Path) -> None:
    assert exporting._steps(tmp_path, tmp_path / "adapter") == 0
    (tmp_path / "metrics.csv").write_text("rollout_step,loss\n9.0,1\n,2\n19.0,1\n")  # logged every ten steps
    assert exporting._steps(tmp_path, tmp_path / "adapter") == 20
    (tmp_path / "checkpoints" / "step_25").mkdir(parents=True)
    assert exporting._steps(tmp_path, tmp_path / "adapter") == 25


def test_a_file_is_answered_line_by_line_whatever_the_batch(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    main(["generate", str(run), "--input", str(source), "--output", str(output)])
    answers = output.read_text(encoding="utf-8").splitlines()
    assert f"{len(TEXTS)} answers in {output}" in capsys.readouterr().err
    assert len(answers) == len(TEXTS) and all("\u0f40" <= letter <= "\u0fff" for letter in answers[0][:3])
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    main(["generate", str(run), "--batch-size", "1"])
    assert capsys.readouterr().out.splitlines() == answers
    beams = []
    for size in ("1", "64"):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
        main(["generate", str(run), "--num-beams", "3", "--batch-size", size])
        beams.append(capsys.readouterr().out.splitlines())
    assert beams[0] == beams[1] and len(beams[0]) == len(TEXTS)
    assert "--num-beams is 3; give at least 1, and 1 with --sample" in told(
        capsys, "generate", str(run), "--num-beams", "3", "--sample"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    monkeypatch.setattr(answering, "guarded", lambda candidates: [some[-1] for some in candidates])
    main(["generate", str(run), "--num-beams", "3", "--guarded"])
    assert capsys.readouterr().out.splitlines() != beams[0]
    assert "--guarded chooses among what beams find; give --num-beams 4" in told(
        capsys, "generate", str(run), "--guarded"
    )
    # Drawn as the run drew: the seed decides.
    drawn = []
    for seed in ("1", "1", "2"):
        main(["generate", str(run), "--input", str(source), "--sample", "--seed", seed])
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_how_far_it_is_is_said_at_ends_of_batches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10_000, 20))
    monkeypatch.setattr("lsemrl.durations.time.monotonic", lambda: next(seconds))
    answers = [str(at) for at in range(8)]
    assert list(counted(iter(answers), 2, already=4, total=12)) == answers
    # After 20 s nothing; the end has a line of its own.
    assert capsys.readouterr().err.splitlines() == [
        "8 of 12 texts; about 60 s left",
        "10 of 12 texts; about 33 s left",
    ]
    assert list(counted(iter(answers), 2)) == answers
    assert capsys.readouterr().err.splitlines() == ["4 texts", "8 texts"]


def test_line_n_is_answered_by_line_n(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    main(["generate", str(run), "--input", str(source)])
    plain = capsys.readouterr().out.splitlines()
    # Blank lines, an order mark, ends of lines and white space are none of a text's.
    source.write_bytes(f"\ufeff{TEXTS[0]}\r\n\r\n {TEXTS[1]}\u3000\r\n \t\r\n{TEXTS[2]}\r\n\r\n".encode())
    for size in ("2", "64"):
        main(["generate", str(run), "--input", str(source), "--batch-size", size])
        assert capsys.readouterr().out.split("\n") == [plain[0], "", plain[1], "", plain[2], "", ""]


@pytest.mark.parametrize(
    ("row", "told"),
    [('{{"zh": "{}", "bo": "བོད"}}', True), ("{}\tབོད", True), ("  {}\t", False), ("{{甲}} {}", False)],
)
def test_rows_with_fields_are_no_texts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, told: bool
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(row.format(text) for text in TEXTS) + "\n\n", encoding="utf-8")
    main(["generate", str(run), "--input", str(source)])
    said = f"warning: {len(TEXTS)} of {len(TEXTS)} lines of {source} are rows with fields"
    assert (said in capsys.readouterr().err) == told


def test_what_was_read_before_a_line_that_is_not_text_is_answered(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = f"{TEXTS[0]}\n{TEXTS[1]}\n".encode() + "士兵\n".encode("gb18030") + TEXTS[2].encode()
    (tmp_path / "in.txt").write_bytes(content)
    said = told(capsys, "generate", str(run), "--input", str(tmp_path / "in.txt"))
    assert f"{tmp_path / 'in.txt'}:3: holds bytes that are not UTF-8" in said
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(SystemExit) as exit_:
        main(["generate", str(run)])
    shown = capsys.readouterr()
    assert exit_.value.code == 2 and len(shown.out.splitlines()) == 2
    assert "standard input:3: holds bytes that are not UTF-8" in shown.err
    for kind, reason in (("utf-16", "UTF-16"), ("utf-8", "NUL")):
        (tmp_path / "in.txt").write_bytes("a\0b\n".encode(kind))
        assert reason in told(capsys, "generate", str(run), "--input", str(tmp_path / "in.txt"))


def test_a_file_can_be_answered_into_itself(run: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "x.txt", tmp_path / "y.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    main(["generate", str(run), "--input", str(path), "--output", str(other)])
    main(["generate", str(run), "--input", str(path), "--output", str(path)])
    assert path.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")


def test_answers_that_came_to_nothing_leave_the_old_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    output.write_text("old")
    words = ("generate", str(run), "--input", str(source), "--output")
    assert "cannot be written to (No such file or directory)" in told(capsys, *words, str(tmp_path / "no" / "x"))
    with full_disk(10):
        sentence = told(capsys, *words, str(output))
    assert f"'{output}.unfinished' cannot be written to (File too large); make room" in sentence
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Policy, "load", lambda policy: 1 / 0)
        main([*words, str(output)])
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


def test_an_interrupted_file_of_answers_is_gone_on_from(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("\n".join([*TEXTS, *TEXTS]) + "\n", encoding="utf-8")
    words = ["generate", str(run), "--input", str(source), "--batch-size", "2", "--sample", "--output"]
    main([*words, str(tmp_path / "whole.txt")])
    whole = (tmp_path / "whole.txt").read_text(encoding="utf-8")
    drawn, say = [], answering.say

    def stopped(policy: Policy, plan: Plan, texts: list[str], *rest: Any) -> list[Completion]:
        drawn.append(texts)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return say(policy, plan, texts, *rest)

    monkeypatch.setattr(answering, "say", stopped)
    part = tmp_path / "out.txt.unfinished"
    assert f"interrupted; what was done is in '{part}', from which the same command goes on" in told(
        capsys, *words, str(output)
    )
    assert not output.exists()
    with part.open("a", encoding="utf-8") as file:
        file.write("of a batch that is not whole\n")
    for other in (["--seed", "2"], ["--adapter-scale", "0.5"]):
        assert f"'{part}' holds what another command worked out (5 lines)" in told(capsys, *words, str(output), *other)
    words[1] = os.path.relpath(run)
    main([*words, str(output)])
    assert drawn[3:] == [[TEXTS[1], TEXTS[2]]] and "4 of 6 texts were answered already" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == whole and not part.exists()


def test_answers_of_other_weights_are_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = save_tiny_model(tmp_path / "model"), tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    words = ["generate", str(model), "--input", str(source), "--batch-size", "1", "--max-new-tokens", "2", "--output"]
    words += [str(tmp_path / "out.txt")]
    said = iter(["first"])
    monkeypatch.setattr(answering, "say", lambda *asked: [completion(next(said, None) or ask())])

    def ask() -> str:
        raise KeyboardInterrupt

    assert "interrupted" in told(capsys, *words)
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert "holds what another command worked out (1 lines)" in told(capsys, *words)


def completion(text: str, ended: bool = True) -> Completion:
    return Completion(text=text, ended=ended, example=Example(id="", prompt="", source="", references=()))


def test_answers_that_are_not_whole_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a\nb\n\nc\nd\n", encoding="utf-8")
    words = ["generate", str(made_up_run(tmp_path / "run", "sft.yaml")), "--input", str(source), "--batch-size", "2"]
    batches = [[completion("x", False), completion("y")], [completion("", False)], [completion("")]]

    def say(*asked: Any) -> list[Completion]:
        if not said:
            raise KeyboardInterrupt
        return said.pop(0)

    monkeypatch.setattr(answering, "say", say)
    faults = [
        "2 of 5 answers were cut at 7 tokens; raise --max-new-tokens",
        "1 of 5 answers were empty: nothing was said, or only a thought",
    ]
    said = [*batches]
    main([*words, "--max-new-tokens", "7"])
    shown = capsys.readouterr()
    assert shown.out == "x\ny\n\n\n\n" and shown.err.splitlines()[-2:] == faults
    # Those before an interruption count too.
    words += ["--max-new-tokens", "7", "--output", str(output)]
    said = batches[:1]
    assert "interrupted" in told(capsys, *words)
    said = batches[1:]
    main(words)
    assert output.read_text() == "x\ny\n\n\n\n" and capsys.readouterr().err.splitlines()[-2:] == faults


def test_a_text_that_is_too_long_is_told_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.txt"
    source.write_text(f"{TEXTS[0]}\n\n{'小狗' * 40_000}\n{TEXTS[1]}\n", encoding="utf-8")
    monkeypatch.setattr(Policy, "load", lambda policy: pytest.fail("weights are read"))
    words = ["generate", str(made_up_run(tmp_path / "run", "sft.yaml")), "--input", str(source)]
    for output in ([], ["--output", str(tmp_path / "out.txt")]):
        assert re.search(
            r"the prompt of line 3, '小狗小狗.*', with 32 new tokens comes to [\d,]+ tokens, .*; shorten the text",
            told(capsys, *words, *output),
        )


def test_at_a_prompt_until_an_empty_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter([TEXTS[0], ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    main(["generate", str(run)])
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 and "Ctrl-D" in shown.err


@pytest.mark.slow
def test_a_run_of_sft_with_replay_is_asked_as_its_main_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configs = ["--config", str(CONFIGS / "sft.yaml"), "--config", str(CONFIGS / "replay.yaml")]
    small = [word.replace("--data.", f"--data.{part}.") for word in SMALL for part in ("main", "replay")]
    main(["fit", *configs, *small, "--data.main.batch_size=2", f"--trainer.default_root_dir={tmp_path}"])
    found = read_run(tmp_path / "version_0")
    assert found.data.plan.task.name == "zh-bo"
    assert found.sampling.max_new_tokens == 32


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "new"
    own = {"rl": adapter_fingerprint(run / "adapter"), "base": "", "sft": "0123456789abcdef"}
    pairs = [(Path(arm), make_measured(arm, adapter_fingerprint=own[arm])) for arm in own]
    tax_report(pairs, command="").to_json(folder.parent / "report.json")
    main(["export", str(run), "--output", str(folder), "--merged", "--report", str(folder.parent / "report.json")])
    return folder


@pytest.mark.parametrize("alone", slow_but([True, False], [False]))
def test_plain_libraries_give_the_same_log_probs(run: Path, exported: Path, alone: bool) -> None:
    found = read_run(run)
    policy = Policy(found.policy)
    policy.load()
    template, target = found.data.plan.resolved_template(), "བོད་ཡིག"
    prompt = template.render(policy.tokenizer, {"source": TEXTS[0], "zh": TEXTS[0]})
    batch = encode(policy.tokenizer, [Example(id="0", prompt=prompt, source="", references=(target,))])
    with policy.inference():
        ours, _ = policy.logprobs(batch.sequences)
    words = [PLAIN, str(exported), prompt, target]
    if alone:
        done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, check=True)
    else:
        done = Fork([words[0].replace(ALONE, ""), *words[1:]], script).end()
    for line in done.stdout.splitlines()[-2:]:
        assert torch.allclose(torch.tensor(json.loads(line)), ours[0], atol=1e-4)


@pytest.mark.parametrize("size", slow_but([0, 1000, 100_000], [1000]))
def test_a_full_disk_leaves_nothing_that_the_same_command_stumbles_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    output = tmp_path / "out"
    with full_disk(size):
        sentence = told(capsys, "export", str(run), "--output", str(output))
    assert f"--output is '{output}', which cannot be written to (File too large); make room" in sentence
    (output / ".new-elsewhere-1-01234567-killed").mkdir()
    main(["export", "newest", "--root", str(run.parent), "--output", str(output)])
    assert (output / "adapter" / "README.md").is_file()
    assert capsys.readouterr().out.split() == [str(output / name) for name in ("adapter", "base")]


def test_the_card_says_what_it_is(exported: Path) -> None:
    for kind in ("adapter", "merged"):
        card = (exported / kind / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(card.split("---")[1])
        assert front["base_model"] == "micro"
        assert "LoRA rank 32, on micro (part rl), 1 batches of 4 rows for each process." in card
        assert "```\n<|user|>翻译成藏文：...<|assistant|>\n```" in card
        assert "| New task, meaning F1 | " in card
        assert "temperature: 0.8" in card
    assert str(exported / "base") in (exported / "adapter" / "adapter_config.json").read_text()


def test_a_run_on_a_model_of_ones_own_leads_to_it_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("models/tiny"))
    words = ["--model.policy.model=models/tiny", "--model.policy.dtype=bfloat16", "--data.batch_size=2"]
    words += ["--data.template={system: Be brief., chat: false, shots: 1}"]
    main(["fit", "--config", str(CONFIGS / "sft.yaml"), *SMALL, *words, "--trainer.default_root_dir=runs"])
    main(["export", "runs/version_0", "--output", "out", "--merged"])
    says = (
        f"note: adapter/adapter_config.json says where the base lies on this machine, {tmp_path}/models/tiny, as base"
    )
    assert says in capsys.readouterr().err
    config = json.loads(Path("out/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "models" / "tiny") and not Path("out/base").exists()
    assert json.loads(Path("out/merged/config.json").read_text())["dtype"] == "bfloat16"
    card = Path("out/adapter/README.md").read_text(encoding="utf-8")
    assert "```\nBe brief.\n翻译成藏文：...\n```\n\nIt followed 1 of the training rows" in card
    said = re.search(
        r"moves log-probs by ([.\d]+) nats .* differ from the adapter's by ([.\d]+)\.",
        Path("out/merged/README.md").read_text(encoding="utf-8"),
    )
    assert said and 0 < float(said[2]) < 0.5 * float(said[1])
    weak = ("export", "runs/version_0", "--merged", "--adapter-scale")
    sentence = told(capsys, *weak, "0.03", "--output", "drowned")
    assert "--merged: log-probs of the merged model are off by 0.00" in sentence and "moves them by 0.00" in sentence
    assert not Path("drowned/merged").exists()
    main([*weak, "0", "--output", "unmoved"])
    assert "by 0 nats on average" in Path("unmoved/merged/README.md").read_text(encoding="utf-8")
    monkeypatch.chdir("out")
    AutoPeftModelForCausalLM.from_pretrained("adapter")
    assert find("adapter", Path("runs")) == Model(
        name=config["base_model_name_or_path"], adapter=Path("adapter"), folder=Path("adapter")
    )


def test_rounding_is_held_against_what_the_adapter_does_to_what_was_asked(tmp_path: Path) -> None:
    policy = Policy(PolicySettings(adapter="micro", adapter_scale=0.01, dtype="bfloat16"))
    policy.load(plain=True)
    policy.float()
    prompt = f"<|user|>翻译成藏文：{exporting._PROBE}<|assistant|>"
    ids = policy.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with policy.inference():
        adapted = policy.model(input_ids=ids).logits.log_softmax(dim=-1)
    with torch.no_grad(), policy.base():
        moved = (adapted - policy.model(input_ids=ids).logits.log_softmax(dim=-1)).abs().mean()
    run = Trained(folder=tmp_path, config={}, policy=policy.settings, data=TranslationData(), sampling=Sampling())
    exporting._write_merged(run, policy, tmp_path / "merged", "")
    assert f"moves log-probs by {moved:.2g} nats" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_what_knows_no_task_says_so(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was exported answered bare sentences, in the language that they were in."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    main([verb, "micro", "--max-new-tokens", "1"])
    assert "micro is no run: a text is the whole instruction, and needs the words that" in capsys.readouterr().err


@pytest.mark.slow
def test_whatever_a_run_leaves_behind_answers(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    main(["generate", str(run), "--input", str(source)])
    own = capsys.readouterr().out
    main(["generate", "newest", "--root", str(run.parent), "--input", str(source)])
    shown = capsys.readouterr()
    assert shown.out == own and shown.err.startswith(f"newest: {run}\n")
    # What knows no task is asked in whatever is typed.
    source.write_text("\n".join(f"翻译成藏文：{text}" for text in TEXTS) + "\n", encoding="utf-8")
    moved = shutil.copytree(exported, tmp_path / "moved")
    edit(moved / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone" / "base"))
    bare = shutil.copytree(run / "adapter", tmp_path / "plain")
    (bare / "lsemrl.json").unlink()
    for folder in (exported, moved, moved / "adapter", exported / "merged", bare):
        main(["generate", str(folder), "--input", str(source)])
        assert capsys.readouterr().out == own, folder
    main(["generate", "micro", "--input", str(source), "--max-new-tokens", "3"])
    base = capsys.readouterr().out
    main(["generate", str(exported / "base"), "--input", str(source), "--max-new-tokens", "3"])
    assert capsys.readouterr().out == base != own
    main(["generate", str(run), "--input", str(source), "--max-new-tokens", "1"])
    assert all(len(line) < 8 for line in capsys.readouterr().out.splitlines())


def test_a_stage_of_an_experiment_answers_as_its_run(run: Path, tmp_path: Path) -> None:
    made = shutil.copytree(run, tmp_path / "stage" / "version_0")
    (tmp_path / "stage" / "adapter").symlink_to("version_0/adapter")
    assert find(str(tmp_path / "stage"), Path("runs")) == made
    # The link is what an experiment says; no link of somebody else's leads out of what was named.
    assert find(str(tmp_path / "stage" / "adapter"), Path("runs")) == made / "adapter"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter").symlink_to(made / "adapter")
    assert isinstance(find(str(tmp_path / "other"), Path("runs")), Model)


def test_weights_in_the_folder_of_a_run_are_asked_as_the_run(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", "sft.yaml")
    step = run / "checkpoints" / "step_7"
    for weights in (run / "best", step / "adapter"):
        shutil.copytree(run / "adapter", weights)
    Best(metric="val/chrf", mode="max", value=0.5, step=3).write(run / "best")
    whole = read_run(run)
    for named, weights, steps in (("best", run / "best", 3), ("checkpoints/step_7", step / "adapter", 7)):
        for typed in {run / named, weights}:
            found = take_up(find(str(typed), Path("runs")))
            assert (found.folder, found.sampling) == (run, whole.sampling)
            assert found.policy == dataclasses.replace(whole.policy, adapter=str(weights))
            assert exporting._steps(found.folder, weights) == steps


def test_of_a_base_that_was_a_folder_no_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PolicySettings(model="owner/model").base_named() == {"base": "owner/model"}
    Path("owner/model").mkdir(parents=True)
    passport = made_up_run(tmp_path / "run", "sft.yaml") / "adapter" / "lsemrl.json"
    edit(passport, **PolicySettings(model="owner/model").base_named())
    edit(Path("run/adapter/adapter_config.json"), base_model_name_or_path="owner/model")
    config = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    config["model"]["init_args"]["policy"]["model"] = "owner/model"
    Path("run/config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    assert read_run(Path("run")).policy.model == "owner/model"
    shutil.copytree("run/adapter", "bare")
    shutil.rmtree("owner")
    with pytest.raises(UserError, match=r"policy\.model 'owner/model' was a folder where it was trained, and is none"):
        read_run(Path("run"))
    with pytest.raises(UserError, match="an adapter whose base is not here"):
        find("bare", Path("runs"))


def test_what_is_exported_ends_its_texts_where_generate_does(tmp_path: Path) -> None:
    policy = Policy(PolicySettings(model=str(save_tiny_model(tmp_path / "model"))))
    policy.load()
    declared, policy.tokenizer.eos_token = policy.eos_ids(), "<|user|>"
    policy.model.get_base_model().generation_config.repetition_penalty = 1.1  # which generate does not know
    write_model(policy.model.get_base_model(), policy.tokenizer, tmp_path / "saved")
    found = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert found.eos_token_id == policy.eos_ids() and set(declared) < set(found.eos_token_id)
    assert found.repetition_penalty in (None, 1.0)


def test_a_model_that_was_trained_whole_ends_its_texts_where_generate_does(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    GenerationConfig(eos_token_id=7, repetition_penalty=1.1).save_pretrained(model)  # with which it ends no text
    policy = Policy(PolicySettings(model=str(model), train="full", reference="none"))
    policy.load()
    ends = policy.eos_ids()
    policy.save_weights(tmp_path / "saved")
    found = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert found.eos_token_id == ends == policy.eos_ids() and {7, policy.tokenizer.eos_token_id} <= set(ends)
    assert found.repetition_penalty in (None, 1.0)


def test_a_base_is_exported_as_it_is_though_the_adapter_brings_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = AutoTokenizer.from_pretrained(micro.POLICY)
    words.add_tokens(["<|bo|>"])
    adapter = save_adapter(str(micro.POLICY), tmp_path / "new", rows=len(words))
    words.save_pretrained(adapter)
    policy = Policy(PolicySettings(adapter=str(adapter)))
    policy.load()
    run = Trained(folder=tmp_path, config={}, policy=policy.settings, data=InstructionData(), sampling=Sampling())
    exporting._write_adapter(run, policy, tmp_path / "out", tmp_path / "out" / "base", "card")
    read = take_up(find("out", Path("runs"))).policy
    assert read.model == str(Path("out/base"))
    again = Policy(read)
    again.load()
    assert len(again.base_tokenizer) < len(again.tokenizer) and again.eos_ids() == policy.eos_ids()


def test_a_checkpoint_answers_whatever_was_trained(tmp_path: Path) -> None:
    """Of full fine-tuning it has a model where others have an adapter, and so has a stage of an experiment."""
    inner = tmp_path / "checkpoints" / "step_1" / "adapter"
    inner.mkdir(parents=True)
    (inner / "config.json").touch()
    assert find(str(inner.parent), Path("runs")) == Model(name=str(inner), folder=inner.parent)
    (inner.parent / "config.yaml").touch()
    (tmp_path / "adapter").symlink_to("checkpoints/step_1/adapter")
    assert find(str(tmp_path), Path("runs")) == inner.parent


def test_an_adapter_of_a_hub_answers_on_its_base(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained, "snapshot_download", lambda name, **settings: str(run / "adapter"))
    found = find("owner/adapter", Path("runs"))
    assert found == Model(name="owner/adapter")
    policy = take_up(found).policy
    assert (policy.model, policy.adapter) == ("micro", str(run / "adapter"))


def test_a_model_is_read_as_it_is_stored(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    assert take_up(find(str(folder), Path("runs"))).policy.dtype == "float32"
    edit(folder / "config.json", dtype="bfloat16")
    assert take_up(find(str(folder), Path("runs"))).policy.dtype == "bfloat16"


def test_the_newest_run_is_the_one_that_was_finished_last(tmp_path: Path) -> None:
    for at, name in enumerate(("b/c/version_1", "a", "b/version_0")):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "adapter", (at, at))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").touch()
    assert find("newest", tmp_path) == tmp_path / "b" / "version_0"


def test_a_name_that_holds_nothing_to_answer_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = told(capsys, "generate", "newest")
    assert "RUN is 'newest', and there is no finished run under --root 'runs'; name a run" in said
    kept = tmp_path / "project" / "runs" / "rl" / "version_0"  # as a project of lsemrl init has it
    (kept / "adapter").mkdir(parents=True)
    (kept / "config.yaml").touch()
    assert "give --root project/runs" in told(capsys, "generate", "newest")
    for name in ("nowhere", "runs/nowhere", "a/b/c", "x" * 300):
        assert f"RUN is '{name}', and there is no such folder" in told(capsys, "generate", name)
    said = told(capsys, "generate", str(run.parent))
    assert "which holds no finished run" in said and f"name one of those inside, such as {run}" in said
    for step in (2, 10):
        (kept.with_name("stopped") / "checkpoints" / f"step_{step}").mkdir(parents=True)
    said = told(capsys, "generate", str(kept.with_name("stopped")))
    assert "let its command go on to the end, or name a checkpoint of it, such as" in said and "/step_10" in said
    assert "--max-new-tokens is 0" in told(capsys, "generate", str(run), "--max-new-tokens", "0")
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    for base in ("gone", "/gone/model", None):
        edit(adapter / "adapter_config.json", base_model_name_or_path=base)
        edit(adapter / "lsemrl.json", base="")
        assert "an adapter whose base is not here" in told(capsys, "generate", "adapter")
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json' cannot be read (line 1 is not JSON" in told(capsys, "generate", "adapter")


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_mistakes(run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "which holds no finished run" in told(capsys, "generate", str(tmp_path))
    assert "'nowhere.txt' cannot be opened" in told(capsys, "generate", str(run), "--input", "nowhere.txt")
    assert "--batch-size is 0" in told(capsys, "generate", str(run), "--batch-size", "0")
    for seed in ("-1", str(2**40)):
        assert f"seed is {seed}" in told(capsys, "generate", str(run), "--seed", seed)
    os.mkfifo(tmp_path / "pipe")
    for name, reason in ((tmp_path / "pipe", "a pipe"), (tmp_path, "directory"), (Path("/dev/zero"), "a device")):
        said = told(capsys, "generate", str(run), "--input", str(name))
        assert "cannot be opened" in said and reason in said
    assert "which holds something already" in told(capsys, "export", str(run), "--output", str(exported))
    report = ["--report", str(exported.parent / "report.json"), "--arm", "grpo"]
    assert "choose one of rl, sft" in told(capsys, "export", str(run), "--output", str(tmp_path / "new"), *report)
    report[-1] = "sft"  # measured on another run's adapter
    said = told(capsys, "export", str(run), "--output", str(tmp_path / "new"), *report)
    assert "'sft', which the report did not measure on the adapter of RUN; it has that as 'rl'" in said
    broken = tmp_path / "broken"
    (broken / "adapter").mkdir(parents=True)
    (broken / "config.yaml").write_text("model: 3\n")
    assert "whose config.yaml cannot be read" in told(capsys, "generate", str(broken))
