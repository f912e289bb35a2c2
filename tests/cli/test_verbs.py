"""Every verb says what it takes, and takes it by its types, from words and from files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lsemrl.cli.main import main
from lsemrl.cli.verbs import VERBS, run_verb
from lsemrl.commands import report
from lsemrl.commands.trainer import TRAINER_VERBS
from matrix import slow_but


@pytest.mark.parametrize("name", [name for name in VERBS if name not in TRAINER_VERBS])
def test_help_explains_every_setting(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and shown.startswith(f"usage: lsemrl {name} ") and VERBS[name] in shown
    assert not re.search(r"--\w+_ ", shown)  # as it is typed: --from
    assert not re.findall(r"^.*  \((?:required, )?type: .*$", shown, re.MULTILINE)  # of one that has no words


@pytest.mark.parametrize("name", slow_but(TRAINER_VERBS, ["best-of"]))
def test_help_of_what_takes_a_runs_configuration(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    usage, _, said, *_ = capsys.readouterr().out.splitlines()
    assert exit_.value.code == 0 and usage == f"usage: lsemrl {name} --config FILE ... [--field value ...]"
    assert said.startswith(VERBS[name])


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a function was called with that takes something of every kind."""
    found: dict[str, Any] = {}

    def take(
        folders: list[Path],
        *,
        dry_run: bool = False,
        path: list[list[str]] | None = None,
        seeds: list[int] | None = None,
        arm: str = "rl",
        output: Path = Path("x"),
    ) -> None:
        found.update(locals())

    monkeypatch.setattr(report, "report", take)
    return found


def run(*words: str) -> None:
    run_verb("report", list(words))


def test_words_arrive_by_their_types(called: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    run("~/a", "017", "--dry-run", "--arm", "a: b", "--seeds", "1", "2", "--path", "null", "on", "--path", "x", "#x")
    assert called["folders"] == [Path("/home/anna/a"), Path("017")]
    assert (called["dry_run"], called["seeds"]) == (True, [1, 2])
    assert (called["arm"], called["output"]) == ("a: b", Path("x"))
    assert called["path"] == [["null", "on"], ["x", "#x"]]


def test_fields_of_a_file_and_words_over_them(called: dict[str, Any], tmp_path: Path) -> None:
    fields = {"dry_run": True, "seeds": [3], "path": [["a", "b"]], "arm": "sft", "output": "~"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(fields))
    run("f", "--config", str(tmp_path / "a.yaml"), "--arm=rl")
    assert (called["dry_run"], called["seeds"], called["path"], called["arm"]) == (True, [3], [["a", "b"]], "rl")
    assert called["output"] == Path.home()


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ("dry_run: 7", "dry_run: Expected a bool. Got value: 7"),
        ("seeds: 3", "seeds: "),
        ("seeds: [a]", "seeds: "),
        ("path: [a]", "path: "),
        ("nothing: 1", "nothing"),
    ],
)
def test_a_field_of_another_type_is_named(
    field: str, sentence: str, called: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(field + "\n")
    with pytest.raises(SystemExit) as exit_:
        main(["report", "f", "--config", str(tmp_path / "a.yaml")])
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and sentence in said and not called
    assert said.endswith("; lsemrl report --help lists every option\n")


def test_words_that_cannot_be_wait_for_no_torch() -> None:
    code = (
        "import sys; from lsemrl.cli.main import main\n"
        "for words in (['generate', 'nowhere'], ['chat', 'runs/nowhere'], ['chat', 'micro', '--side-by-side'],\n"
        "              ['export', 'nowhere', '--output=x'], ['demo', '--task=x'], ['build-micro'], ['tax'],\n"
        "              ['judge', 'a=x', '--oracle'], ['experiment', '--jobs=x'], ['tax', 'nowhere', '--output=x'],\n"
        "              ['measure', '--output=x', '--target_rows=0', '--config=measure/translation.yaml'],\n"
        "              ['curve', 'nowhere', '--output=x', '--config=measure/translation.yaml'], ['check', '--x'],\n"
        "              ['rehearse', '--output=x.jsonl', '--rows=-1'], ['general', '--tasks=x'], ['init', 'nowhere'],\n"
        "              ['fit-language', '--x'], ['best-of', '--config=sft.yaml'], ['fit'],\n"
        "              ['fit', '--config=sft.yaml', '--x'], ['fit', '--config=sft.yaml', '--data=null'],\n"
        "              ['fit', '--config=sft.yaml', '--model=null'], ['fit', '--config=anchor.yaml']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 2, words\n"
        "    else: raise AssertionError(words)\n"
        "assert not {'torch', 'transformers', 'lightning', 'scipy', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
