"""Text that a base writes by itself: what is kept, how it goes on, what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.commands import rehearse as command
from lsemrl.commands.rehearsed import Written
from lsemrl.data.rehearsal import Rehearsed, identity_path, likeliest_path, read_rehearsal
from lsemrl.locks import held
from lsemrl.modules import rehearsing
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.types import UserError

ASKED: dict[str, Any] = {"rows": 12, "batch_size": 8, "max_prompt_tokens": 96, "max_new_tokens": 24, "top_k": 4}
SMALL = ["--rows", "12", "--batch-size", "8", "--max-prompt-tokens", "96", "--max-new-tokens", "24", "--top-k", "4"]


def rehearse(output: Path, *words: str) -> None:
    main(["rehearse", "--output", str(output), *SMALL, *words])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text that was written without a stop; the only file of its folder but those beside it."""
    output = tmp_path_factory.mktemp("whole") / "own.jsonl"
    with redirect_stdout(StringIO()) as said:
        rehearse(output)
    assert f"12 rows in {output}; dropped: " in said.getvalue()
    return output


def test_the_base_writes_what_users_ask_and_answers_it(whole: Path) -> None:
    output = whole
    rows = read_rehearsal(output)
    assert len(rows) == 12 and len({row.prompt for row in rows}) == 12
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    for row in rows:
        asked = [{"role": "user", "content": row.prompt}]
        whole = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(row.prompt_ids) == whole
        assert tokenizer.decode(row.answer_ids[:-1]) == row.response and row.answer_ids[-1] == tokenizer.eos_token_id
        read, held = row.split(whole=True)
        assert read == row.prompt_ids[:1] and held == (*row.prompt_ids[1:], *row.answer_ids)
    kept = load_file(likeliest_path(output))
    assert kept["ids"].shape == kept["logprobs"].shape == (sum(len(row.answer_ids) for row in rows), 4)
    assert (kept["logprobs"].exp().sum(dim=1) <= 1 + 1e-5).all()
    page = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "12 rows kept" in page and "Han" in page and rows[0].prompt[:4] in page


def test_half_of_the_answers_are_as_short_as_the_page_says() -> None:
    rows = [Rehearsed(prompt="p", response="r", prompt_ids=(1,), given=1, answer_ids=(1,) * size) for size in (100, 1)]
    assert "Answers have 1 to 100 tokens, half of them up to 1." in command._page(rows, Counter(), "m")


def test_a_call_that_was_stopped_goes_on_to_the_same_file(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "part.jsonl"
    answers, calls = rehearsing.write_answers, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answers(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(rehearsing, "write_answers", stopped)
        rehearse(part)
    with part.open("a") as file:
        file.write('{"torn')  # what a kill in the middle of a batch leaves
    rehearse(part)
    assert part.read_bytes() == whole.read_bytes()
    assert torch.equal(load_file(likeliest_path(part))["ids"], load_file(likeliest_path(whole))["ids"])
    for done in ("write_answers", "likeliest"):
        monkeypatch.setattr(rehearsing, done, lambda *args, **kwargs: pytest.fail("nothing is left to do"))
    rehearse(part)


def test_two_processes_do_not_write_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(tmp_path / "own.jsonl"), pytest.raises(SystemExit):
        rehearse(tmp_path / "own.jsonl")
    assert "another process is at work on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_answers_that_were_cut_are_kept_where_they_may_be(tmp_path: Path) -> None:
    words = ["--rows", "12", "--batch-size", "8", "--max-prompt-tokens", "96", "--top-k", "0", "--max-new-tokens", "2"]
    rehearse(tmp_path / "own.jsonl", *words, "--cut-answers")
    rows = read_rehearsal(tmp_path / "own.jsonl")
    assert len(rows) == 12 and max(len(row.answer_ids) for row in rows) == 2
    rehearse(tmp_path / "ended.jsonl", *words)
    told = {name: (tmp_path / f"{name}.md").read_text(encoding="utf-8") for name in ("own", "ended")}
    assert "answer did not end" in told["ended"] and "answer did not end" not in told["own"]


def test_text_of_other_settings_is_not_gone_on_with(whole: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole.parent, tmp_path / "copy") / whole.name
    before = output.read_bytes()
    for words in (["--seed", "2"], ["--temperature", "0.5"]):
        with pytest.raises(SystemExit):
            rehearse(output, *words)
    output.write_bytes(before[:-9])
    with pytest.raises(SystemExit):
        rehearse(output)
    assert output.read_bytes() == before[:-9]  # not filled up
    for other in (before + before.splitlines(keepends=True)[0], before.replace(b'"given"', b'"GIVEN"', 1)):
        output.write_bytes(other)
        with pytest.raises(UserError, match="which was changed since it was written; restore it, or name another"):
            command.rehearse(output=output, **ASKED)
        assert output.read_bytes() == other
    output.write_bytes(before)
    found = json.loads(identity_path(output).read_text(encoding="utf-8"))
    identity_path(output).write_text(json.dumps({**found, "model": "elsewhere/micro", "lsemrl": "0.0.9"}))
    rehearse(output)  # the same model by another path
    with pytest.raises(UserError, match=r"which was written with other top_p; name another file"):
        command.rehearse(output=output, **ASKED, top_p=0.9)
    identity_path(output).write_text("{")
    with pytest.raises(UserError, match="which says how it was written, cannot be read; name another"):
        command.rehearse(output=output, **ASKED)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "edited", [{"batches": None}, {"free": "x"}, {"free": -1}, {"dropped": 1.5}, {"dropped": {"a": "b"}}], ids=str
)
def test_how_far_it_came_is_no_longer_told(edited: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "own.jsonl"
    progress = {"batches": 0, "free": 0, "dropped": {}, "bytes": 0, **edited}
    identity_path(output).write_text(json.dumps({"progress": progress}))
    with pytest.raises(UserError, match=r"own.identity.json', which says how it was written, cannot be read"):
        Written(output, {"prompts": [], "batch_size": 1}, 0)


def test_a_call_that_was_killed_before_its_first_batch_goes_on(whole: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole.parent, tmp_path / "copy") / whole.name
    found = json.loads(identity_path(output).read_text(encoding="utf-8"))
    found["progress"] = {"batches": 0, "free": 0, "dropped": {}, "bytes": 0}
    for begun in (b"", None):  # some bytes of a batch, or no file yet
        identity_path(output).write_text(json.dumps(found))
        output.unlink() if begun is None else output.write_bytes(b'{"torn')
        rehearse(output)
        assert output.read_bytes() == whole.read_bytes()
    identity_path(output).write_text(json.dumps({**found, "batch_size": 64}))
    output.unlink()  # memory ran out, and nothing was written that a smaller batch would not fit to
    rehearse(output)
    assert output.read_bytes() == whole.read_bytes()


def test_prompts_of_the_users_own_are_answered_and_others_written_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lsemrl.durations._EVERY", 0.0)
    prompts = tmp_path / "prompts.txt"
    asked = ["复述：牧民做了鞋。", "复述：老师喝了茶。", "复述：昨天下午老师在学校里喝了茶。"]
    prompts.write_text("\n".join(asked) + "\n", encoding="utf-8")
    rehearse(tmp_path / "own.jsonl", "--prompts", str(prompts), "--rows", "7")
    assert "likeliest tokens of 8 of 10 rows; about " in capsys.readouterr().err
    rows = read_rehearsal(tmp_path / "own.jsonl")
    own = [row for row in rows if row.given == len(row.prompt_ids)]
    assert [row.prompt for row in own] == [asked[2], asked[0], asked[1]] and len(rows) == 10  # the longest first
    assert own[0].split(whole=True) == (own[0].prompt_ids, own[0].answer_ids)  # nobody wrote that prompt
    rehearse(tmp_path / "alone.jsonl", "--prompts", str(prompts), "--rows", "0")
    assert [row.prompt for row in read_rehearsal(tmp_path / "alone.jsonl")] == [asked[2], asked[0], asked[1]]


def test_a_base_without_a_chat_template_writes_from_where_texts_begin(tiny_model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    model = tmp_path / "plain"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)
    rehearse(
        tmp_path / "own.jsonl", "--policy.model", str(model), "--rows", "2", "--max-new-tokens", "8", "--cut-answers"
    )
    for row in read_rehearsal(tmp_path / "own.jsonl"):
        assert row.prompt == "" and row.prompt_ids == (tokenizer.eos_token_id,) and row.response
    with pytest.raises(UserError, match=r"nothing 0 could be kept \(\d+ since --without speaks of it.*let --without"):
        command.rehearse(
            output=tmp_path / "none.jsonl",
            policy=PolicySettings(model=str(model)),
            rows=2,
            batch_size=2,
            max_new_tokens=4,
            cut_answers=True,
            without=".",
            top_k=0,
        )


def _file(folder: Path, text: str) -> Path:
    path = folder / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: {"output": path / "own.txt"}, "ends in .jsonl"),
        (lambda path: {"rows": -1}, "--rows is -1"),
        (lambda path: {"rows": 0}, "--rows is 0 and --prompts is not given"),
        (lambda path: {"prompts": path / "nope.txt"}, r"--prompts is .* cannot be read"),
        (lambda path: {"prompts": path / "own.jsonl"}, r"but a file of prompts is plain text, .*InstructionData"),
        (lambda path: {"prompts": path / "memory.tmx"}, r"but a file of prompts is plain text, "),
        (
            lambda path: {"rows": 0, "prompts": _file(path, "复述：" + "老师喝了茶。" * 9000)},
            r"the longest given prompt with 256 new tokens comes to .* tokens, but policy.model 'micro' has 32,768",
        ),
        (lambda path: {"max_new_tokens": 40_000}, "the longest prompt of the base's own, with its answer comes to"),
        (lambda path: {"rows": 0, "prompts": _file(path, "\n \n")}, r"--prompts is .* holds no prompts"),
        (
            lambda path: {"rows": 0, "prompts": _file(path, "复述：老师喝了茶。\n"), "max_new_tokens": 1},
            r"no row could be kept \(1 since the answer did not end\)",
        ),
        (lambda path: {"without": "("}, r"--without is '\(', which is no regular expression"),
        (
            lambda path: {"max_prompt_tokens": 1},
            r"of \d+ rows from nothing 0 could be kept \(\d+ since the prompt did not end.*raise "
            "--max-prompt-tokens.*give --prompts",
        ),
        (
            lambda path: {
                **{"max_prompt_tokens": 1, "max_new_tokens": 1},  # given prompts are dropped for something else
                "prompts": _file(path, "复述：老师喝了茶。\n复述：牧民做了鞋。\n"),
            },
            r"of (\d+) rows from nothing 0 could be kept \(\1 since the prompt did not end\); raise "
            "--max-prompt-tokens, or give --rows 0",
        ),
        (lambda path: {"max_prompt_tokens": 0}, "--max-prompt-tokens is 0; give 1 or more"),
        (lambda path: {"temperature": -1.0}, r"temperature is -1\.0"),
    ],
)
def test_what_cannot_be_is_one_sentence(change: Callable[[Path], dict[str, Any]], says: str, tmp_path: Path) -> None:
    settings = {"output": tmp_path / "own.jsonl", "rows": 4, "batch_size": 2, **change(tmp_path)}
    for _ in range(2):  # the same command again says the same, and ends
        with pytest.raises(UserError, match=says):
            command.rehearse(**settings)


@pytest.mark.parametrize("name", ["model.safetensors", "model.md"])
def test_what_lies_beside_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"for which .*{name} would be replaced; name another"):
        command.rehearse(output=tmp_path / "model.jsonl", rows=4, batch_size=2)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_rows_are_data_to_train_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rehearse(tmp_path / "own.jsonl", "--rows", "60", "--batch-size", "32")
    data = ["--data=lsemrl.data.instruction.InstructionData", "--data.source.path=own.jsonl", "--data.batch_size=8"]
    quick = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--checkpoints.monitor=null"]
    Path("own.yaml").write_text(
        json.dumps({"model": {"class_path": "lsemrl.modules.sft.SFT"}, "trainer": {"accelerator": "cpu"}})
    )
    main(["fit", "--config", "own.yaml", *data, *quick, "--trainer.default_root_dir=runs"])
    assert (tmp_path / "runs" / "version_0" / "adapter").is_dir()


def test_kinds_of_text_are_kept_out_and_any_task_is_asked(tmp_path: Path) -> None:
    output, config = tmp_path / "own.jsonl", tmp_path / "own.yaml"
    questions = {
        "class_path": "lsemrl.data.comprehension.ComprehensionData",
        "init_args": {"source": {"path": "micro"}, "micro": {"train": 6, "validation": 0, "test": 0}},
    }
    config.write_text(json.dumps({"without": "[？?]", "prompts": questions}), encoding="utf-8")
    rehearse(output, "--config", str(config))
    rows = read_rehearsal(output)
    asked = [row for row in rows if row.given == len(row.prompt_ids)]
    own = [row for row in rows if row not in asked]
    assert len(asked) == 6 and all("？" in row.prompt for row in asked)  # what is asked for is kept
    assert len(own) == 12 and not any("？" in row.prompt + row.response for row in own)
    dropped = json.loads(identity_path(output).read_text(encoding="utf-8"))["progress"]["dropped"]
    assert dropped["--without speaks of it"] > 0
    # What the user is taken to say is what was asked, wording included; another wording is another file.
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    turn = [{"role": "user", "content": asked[0].prompt}]
    assert tokenizer.decode(asked[0].prompt_ids) == tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    questions["init_args"]["template"] = {"shots": 1}
    config.write_text(json.dumps({"prompts": questions}), encoding="utf-8")
    rehearse(tmp_path / "shown.jsonl", "--config", str(config), "--rows", "0")
    shown = read_rehearsal(tmp_path / "shown.jsonl")
    assert shown and all(row.prompt.count("？") == 1 for row in shown)  # the example's question is none of theirs
    questions["init_args"]["template"] = {"template": "{context}{question}"}
    config.write_text(json.dumps({"without": "[？?]", "prompts": questions}), encoding="utf-8")
    with pytest.raises(SystemExit):
        rehearse(output, "--config", str(config))
