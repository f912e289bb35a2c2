"""A line in, an answer out as its tokens come, and its score where a reference follows."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsemrl.cli.main import main
from lsemrl.commands import conversation
from lsemrl.commands.answers import say
from lsemrl.config_files import CONFIGS
from lsemrl.data.translation import TranslationData
from lsemrl.modules.sampling import Sampling
from matrix import slow_but
from small_run import SMALL, fit_small
from tiny import make_policy, save_tiny_model

TEXTS = ["小狗在家吃苹果。", "老师昨天写了信。", "妈妈买书。"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_small(tmp_path_factory.mktemp("runs"))


class Terminal(io.StringIO):
    """Keeps every piece that is written to it."""

    def __init__(self, terminal: bool = True) -> None:
        super().__init__()
        self.terminal, self.pieces = terminal, list[str]()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


Talk = Callable[..., str]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Talk]:
    """What `lsemrl WORDS` writes when `lines` come through a pipe."""

    def through(lines: list[str], *words: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        capsys.readouterr()
        main(list(words))
        return capsys.readouterr().out

    yield through


def at_terminal(monkeypatch: pytest.MonkeyPatch, lines: list[str], *words: str) -> Terminal:
    """What `lsemrl chat WORDS` shows when `lines` are typed."""
    typed, out = iter(lines), Terminal()

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    with monkeypatch.context() as patch:
        patch.setattr("builtins.input", read)
        patch.setattr("sys.stdin", Terminal())
        patch.setattr("sys.stdout", out)
        main(["chat", *words])
    return out


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("how", slow_but([(), ("--sample", "--seed", "5")], [("--sample", "--seed", "5")]))
def test_what_streams_is_what_generate_says(
    run: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    plain = talk(TEXTS, "generate", str(run), "--batch-size", "1", *how)
    assert talk(TEXTS, "chat", str(run), *how) == plain
    out = at_terminal(monkeypatch, TEXTS, str(run), *how)
    assert out.getvalue() == plain
    written = [piece for piece in out.pieces if piece.strip()]
    assert len(written) > 3 * len(TEXTS)  # token by token


def test_an_empty_line_ends_at_a_prompt_and_is_a_blank_one_in_a_pipe(
    run: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [TEXTS[0], "", TEXTS[1]]
    assert [bool(line) for line in talk(lines, "chat", str(run)).splitlines()] == [True, False, True]
    out = at_terminal(monkeypatch, lines, str(run))
    assert len(out.getvalue().splitlines()) == 1
    assert "each by itself" in capsys.readouterr().err


def test_base_and_trained_side_by_side(run: Path, talk: Talk) -> None:
    trained = talk(TEXTS, "generate", str(run)).splitlines()
    asked = [f"翻译成藏文：{text}" for text in TEXTS]
    base = talk(asked, "generate", "micro", "--max-new-tokens", "32").splitlines()
    shown = talk([*TEXTS, "= དེབ"], "chat", str(run), "--side-by-side").splitlines()
    assert shown[:6] == [line for pair in zip(base, trained, strict=True) for line in _named(*pair)]
    assert [line.split()[:2] for line in shown[6:]] == [["base:", "similarity"], ["trained:", "similarity"]]


def _named(base: str, trained: str) -> tuple[str, str]:
    return f"base: {base}", f"trained: {trained}"


@pytest.mark.slow
def test_after_full_fine_tuning_the_base_is_what_it_started_from(
    tmp_path: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("tiny"))
    words = ["--model.policy={model: tiny, train: full}", "--data.batch_size=2", "--trainer.default_root_dir=runs"]
    main(["fit", "--config", str(CONFIGS / "sft.yaml"), *SMALL, *words, "--model.max_new_tokens=6"])
    base = talk([f"翻译成藏文：{TEXTS[0]}"], "generate", "tiny", "--max-new-tokens", "6")
    shown = talk([TEXTS[0]], "chat", "newest", "--side-by-side").splitlines()
    assert shown[0] == f"base: {base.rstrip(chr(10))}" and shown[1].startswith("trained: ")
    assert shown[0].partition(":")[2] != shown[1].partition(":")[2]


def test_a_reference_scores_the_answer_before_it_by_the_parts_of_the_run(run: Path, talk: Talk, tmp_path: Path) -> None:
    answer = talk(TEXTS[:1], "chat", str(run)).strip()
    lines = talk([TEXTS[0], f"= {answer}", "=བོད"], "chat", str(run)).splitlines()
    assert lines[:2] == [answer, "similarity 1.0000, language 1.0000, meaning 1.0000"]
    found = re.fullmatch(r"similarity (0\.\d{4}), language 1\.0000, meaning does not apply", lines[2])
    assert found and float(found[1]) < 1
    # Without a run by chrF.
    bare = shutil.copytree(run / "adapter", tmp_path / "adapter")
    answer, scored = talk(["翻译成藏文：妈妈买书。", "= བོད"], "chat", str(bare)).splitlines()
    assert re.fullmatch(r"chrf 0\.\d{4}", scored)


def test_ctrl_c_stops_an_answer_and_nothing_else(
    run: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = talk(TEXTS, "chat", str(run)).splitlines()
    show, seen = conversation._Growing.show, []

    def show_and_stop(self: Any, so_far: str) -> None:
        show(self, so_far)
        seen.append(so_far)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(conversation._Growing, "show", show_and_stop)
    out = at_terminal(monkeypatch, [TEXTS[0], "= བོད", TEXTS[0]], str(run))
    stopped, scored, whole = out.getvalue().splitlines()
    assert plain[0].startswith(stopped) and 0 < len(stopped) < len(plain[0])
    assert scored.startswith("similarity 0.") and whole == plain[0]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_mistake_at_a_prompt_costs_a_line(
    run: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = at_terminal(monkeypatch, ["= བོད", "老" * 50_000, TEXTS[0], "="], str(run))
    said = capsys.readouterr().err
    assert len(out.getvalue().splitlines()) == 1
    assert "there is none; ask first" in said and "shorten the text" in said and "write the reference" in said
    monkeypatch.setattr("sys.stdin", io.StringIO("= བོད"))
    assert "there is none; ask first" in told(capsys, "chat", str(run))


def test_an_answer_that_was_cut_is_told_behind_it(
    run: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS[:2])))
    main(["chat", str(run), "--max-new-tokens", "3"])
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert shown.err.count("lsemrl: the answer was cut at 3 tokens; raise --max-new-tokens\n") == 2
    at_terminal(monkeypatch, TEXTS[:1], str(run))
    assert "the answer was" not in capsys.readouterr().err


def test_what_streams_ends_where_the_answer_does(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, shown = make_policy(tiny_model), list[str]()
    monkeypatch.setattr(policy, "eos_ids", lambda: [*range(5, 1400, 2)])  # which are no special tokens
    sampling = Sampling(num_generations=1, temperature=1.0, max_new_tokens=50)
    (one,) = say(policy, TranslationData().plan, TEXTS[:1], sampling, 4, shown.append)
    assert one.ended and len(shown) > 1 and shown[-1] == one.text


def test_what_is_shown_grows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a\ufffd", "a\u0f40", "a\u0f40\r", "a\u0f40\r\nb\x1b", "a\u0f40\r\nb\x1b[2J"]
    for terminal, whole in ((True, "x: a\u0f40\nb\\x1b[2J\n"), (False, "x: a\u0f40 b\x1b[2J\n")):
        out = Terminal(terminal)
        growing = conversation._Growing(out, "x: ")
        for text in texts:
            growing.show(text)
        growing.end()
        assert out.getvalue() == whole
    out = Terminal()
    growing = conversation._Growing(out, "")
    for text in ("I should", ""):  # which a closing mark then made a thought
        growing.show(text)
    growing.show("yes")
    growing.end()
    assert out.getvalue() == "I should\nyes\n"


def test_only_rewards_of_lsemrl_are_made_from_a_folder(
    run: Path, tmp_path: Path, talk: Talk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    own = config["model"]["init_args"]["rewards"]
    own |= {
        "mine\x1b": {"class_path": "evil.Evil"},
        "path": {"class_path": "os.Chrf"},
        "nested": {"class_path": "lsemrl.rewards.Chrf", "init_args": {"weight": {"class_path": "evil.Evil"}}},
        "torn": 3,
        "profile": {
            "class_path": "lsemrl.rewards.LanguageConsistency",
            "init_args": {"language": {"code": "zh", "name": "Chinese", "scripts": ["Han"]}},
        },
    }
    del own["meaning"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXTS[0]}\n= བོད"))
    main(["chat", str(folder)])
    shown = capsys.readouterr()
    line = shown.out.splitlines()[1]
    assert [part.split()[0] for part in line.split(", ")] == ["similarity", "language", "profile"]
    assert line.endswith("profile 0.0000")
    left_out = [said.split(" is left out: ")[0] for said in shown.err.splitlines() if "left out" in said]
    assert left_out == [r"lsemrl: mine\x1b", "lsemrl: path", "lsemrl: nested", "lsemrl: torn"]


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    assert "nothing before it in view" in " ".join(capsys.readouterr().out.split())
    assert "RUN is 'nowhere', and there is no such folder" in told(capsys, "chat", "nowhere")
    assert "--max-new-tokens is 0" in told(capsys, "chat", str(run), "--max-new-tokens", "0")
    assert "--side-by-side: RUN is 'micro'" in told(capsys, "chat", "micro", "--side-by-side")
    words = ["--config", str(CONFIGS / "sft.yaml"), *SMALL, "--data.batch_size=2"]
    main(
        ["fit", *words, "--data=lsemrl.data.comprehension.ComprehensionData", f"--trainer.default_root_dir={tmp_path}"]
    )
    ran = tmp_path / "version_0"
    predict = f"predict --config {ran / 'config.yaml'} --model.policy.adapter {ran / 'adapter'}"
    assert f"next: lsemrl {predict}, or lsemrl measure with " in capsys.readouterr().out
    asked = f"whose rows have context and question, and a text is one input; answer rows by lsemrl {predict}"
    assert told(capsys, "chat", str(ran)).endswith(asked)
    assert told(capsys, "chat", str(ran), "--adapter-scale", "0.5").endswith(
        f"{asked} --model.policy.adapter_scale 0.5"
    )
