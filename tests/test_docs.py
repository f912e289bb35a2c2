"""What the README and docs tell a user to type is understood, and runs (`make test-docs`), from top to bottom."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from inspect import signature
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
import yaml

from lsemrl import rewards
from lsemrl.cli.main import main
from lsemrl.cli.verbs import VERBS
from lsemrl.config_files import config_path
from lsemrl.micro import corpus
from lsemrl.modules.alarms import AlarmSettings
from lsemrl.modules.anchor_settings import AnchorSettings
from matrix import slow_but
from pages import PAGES, ROOT, Block, blocks, commands, configs, verbs

TRAINER = "--trainer.accelerator=cpu --trainer.callbacks=null"
SMALL = {
    "fit": f"{TRAINER} --trainer.max_steps=2 --trainer.max_epochs=-1 --trainer.limit_val_batches=1",
    "test": f"{TRAINER} --trainer.limit_test_batches=1",
    "predict": f"{TRAINER} --trainer.limit_predict_batches=1",
    "curve": "--target_rows=4 --general_rows=4 --device=cpu",
    "measure": "--target_rows=4 --general_rows=4 --device=cpu",
    "best-of": f"{TRAINER} --data.splits.max_rows=1016",
    "rehearse": "--rows=24 --batch-size=16",
    "fit-reward": "--train.epochs=2 --data.micro.train=1200 --held_out=100 --tau.rows=32",
    "experiment": "--dry-run",
}
"""What makes a verb quick; a block is run as it stands but for this."""
DEMO = "about 10 minutes on two cores"
SET_UP = "3 GB, 1.8 minutes"


def _jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def given(name: str) -> str:
    """A file that a user has."""
    pairs = corpus.translation("train", 240, 0)
    headlines = corpus.headline("train", 120, 0)
    return {
        "pairs.tsv": lambda: "chinese\ttibetan\n" + "".join(f"{row['zh']}\t{row['bo']}\n" for row in pairs),
        "train.zh": lambda: "".join(f"{row['zh']}\n" for row in corpus.translation("train", 1100, 0)),
        "train.bo": lambda: "".join(f"{row['bo']}\n" for row in corpus.translation("train", 1100, 0)),
        "mono.txt": lambda: "".join(f"{row['zh']}\n" for row in corpus.translation("train", 900, 1)),
        "headlines.jsonl": lambda: _jsonl(headlines),
        "news.jsonl": lambda: _jsonl([{"article": row["content"], "headline": row["title"]} for row in headlines]),
        "instructions.jsonl": lambda: _jsonl(corpus.instruction("train", 120, 0)),
    }[name]()


def made_before(page: str) -> list[str]:
    """Folders that the README and a page's own commands write to."""
    texts = [block.text for name in dict.fromkeys(("README.md", page)) for block in blocks(name) if block.kind == "sh"]
    words = [words for text in texts for words in verbs(text)]
    return [one[at + 1] for one in words for at, word in enumerate(one) if word == "--output"] + ["runs"]


@pytest.mark.parametrize("page", slow_but(PAGES, ["README.md"]))
def test_every_command_names_a_verb_options_and_files_that_there_are(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = made_before(page)
    for block in blocks(page):
        if block.kind == "python":
            compile(block.text, page, "exec")
        elif block.kind == "yaml":
            _check_file(block, tmp_path)
        elif block.kind == "sh":
            for words in verbs(block.text):
                where = f"{page}:{block.line}: lsemrl {' '.join(words)}"
                for file in configs(words):
                    there = Path(config_path(file)).is_file()
                    assert there or Path(file).parts[0] in {Path(each).parts[0] for each in made}, f"{where}: {file}"
                status, said = _answer(tuple(_only_read(words)))
                needs = block.not_run and "whose package is not installed" in said
                assert needs or not status, f"{where}\n{said}"
            _check_others(block, page)


@cache
def _answer(words: tuple[str, ...]) -> tuple[int | str | None, str]:
    """How a command ends, and what it says of it; what several pages tell to type is read once."""
    with contextlib.redirect_stdout(StringIO()), contextlib.redirect_stderr(StringIO()) as said:
        try:
            main(list(words))
        except SystemExit as end:
            return end.code, said.getvalue()
    return 0, said.getvalue()


def _only_read(words: list[str]) -> list[str]:
    """The same words, of which nothing comes but that they are read."""
    if words[0].startswith("-"):
        return words
    if words[0] == "experiment":
        return [*words, "--dry-run"]
    kept: list[str] = []
    for word in words:
        kept.append(word)
        if kept[-2:-1] == ["--config"] and not Path(config_path(word)).is_file():
            del kept[-2:]
    if words[0] == "fit" and "--config" not in kept:  # else options have no class to belong to
        kept[1:1] = ["--config", "sft.yaml"]
    return [*kept, "--print_config"]


def _check_file(block: Block, folder: Path) -> None:
    """Of a file that is shown: a whole experiment is planned, fields of a run are read over those of a shipped file."""
    fields = yaml.safe_load(block.text)
    (folder / "shown.yaml").write_text(block.text, encoding="utf-8")
    shown = ["--config", "shown.yaml"]
    if "stages" in fields:
        words = ["experiment", *shown, "--dry-run"]
    elif fields.keys() & {"model", "data"}:
        words = ["fit", "--config", "sft.yaml", *shown, "--print_config"]
    else:
        return
    status, said = _answer.__wrapped__(tuple(words))  # every page's file has this name
    assert not status, f"line {block.line}: {said}"


def _check_others(block: Block, page: str) -> None:
    """Of the programs that are not ours: make has the target, python has the file."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(block.text):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"{page}:{block.line}: {words}"
        elif words[0] == "python" and not words[1].startswith("-"):
            assert (ROOT / words[1]).is_file(), f"{page}:{block.line}: {words}"


@pytest.mark.parametrize("page", PAGES)
def test_verbs_and_configurations_in_the_prose_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for words in (found.split() for found in re.findall(r"`lsemrl ([^`]+)`", text)):
        assert words[0] in VERBS, f"{page}: lsemrl {words[0]}"
    for name in re.findall(r"`((?:configs/)[\w/]+\.yaml)`", text):
        assert Path(config_path(name)).is_file(), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_index_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page for page in PAGES[1:] if f"]({page.removeprefix('docs/')})" not in index]
    assert missing == ["docs/index.md"]


def _spreads(page: str) -> set[tuple[float, ...]]:
    """The means with a deviation in it."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("**", "").replace("−", "-")
    return {tuple(map(float, pair)) for pair in re.findall(r"(-?\d*\.?\d+) ± ?(\d*\.?\d+)", text)}


@pytest.mark.parametrize("page", ["README.md", "docs/results/README.md"])
def test_means_over_seeds_stand_in_a_report_as_they_are_told(page: str) -> None:
    reports = (ROOT / "docs" / "results").glob("*/report.md")
    assert len(_spreads(page)) > 15 and not _spreads(page) - set[tuple[float, ...]]().union(*map(_spreads, reports))


@pytest.mark.parametrize(
    ("page", "first", "column", "default"),
    [
        ("docs/forgetting.md", "`model.anchor.`", "default", lambda name: getattr(AnchorSettings, name)),
        ("docs/guards.md", "`model.alarms`", "default", lambda name: getattr(AlarmSettings, name)),
        (
            "docs/guards.md",
            "class in `lsemrl.rewards`",
            "as a gate, open from",
            lambda name: signature(getattr(rewards, name)).parameters["opens_from"].default,
        ),
    ],
)
def test_defaults_in_a_table_are_those_of_the_code(
    page: str, first: str, column: str, default: Callable[[str], object]
) -> None:
    table = (ROOT / page).read_text(encoding="utf-8").partition(f"| {first} |")
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in "".join(table[1:]).split("\n\n")[0].splitlines()
    ]
    told = {row[0].strip("`"): yaml.safe_load(row[head.index(column)].strip("`")) for row in rows}
    told.pop("path", None)  # has none
    assert len(told) > 3 and told == {name: default(name) for name in told}


def test_minutes_and_sizes_are_the_same_wherever_they_are_said() -> None:
    for name in ("README.md", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert DEMO in text and SET_UP in text, name


def test_every_public_name_has_a_docstring() -> None:
    bare = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        bare += [f"{path.relative_to(ROOT)}: {name}" for name in _bare(ast.parse(path.read_text(encoding="utf-8")), "")]
    assert not bare


def test_the_reference_has_every_room_and_what_rooms_share() -> None:
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    unlisted = [page.name for page in (ROOT / "docs" / "reference").glob("*.md") if f"]({page.name})" not in index]
    assert unlisted == ["index.md"]
    shown = {line for page in (ROOT / "docs" / "reference").glob("*.md") for line in page.read_text().splitlines()}
    there = (
        path for path in (ROOT / "src" / "lsemrl").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    )
    missing = {f"::: lsemrl.{path.stem}" for path in there if not path.stem.startswith("__")} - shown
    assert not missing


def _bare(node: ast.Module | ast.ClassDef | ast.FunctionDef, path: str) -> list[str]:
    found = [] if ast.get_docstring(node) else [path]
    for child in node.body if not isinstance(node, ast.FunctionDef) else ():
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
            if f"    {child.name}: " in (ast.get_docstring(node) or ""):
                continue  # among the attributes of its class
            found += _bare(child, f"{path}.{child.name}")
    return found


def run_page(page: str, folder: Path) -> None:
    """Run its blocks in a folder, with few steps and rows.

    A line is run by the shell, but for those that only name a verb: these are run here, where torch is imported once.
    """
    program = folder / ".bin" / "lsemrl"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lsemrl "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    for block in blocks(page):
        if block.not_run or block.kind not in ("sh", "python"):
            continue
        for name in block.given:
            (folder / name).write_text(given(name), encoding="utf-8")
        lines = [block.text] if block.kind == "python" else block.text.replace("\\\n", " ").splitlines()
        for line in filter(str.strip, lines):
            where = f"{page}:{block.line}: {line}"
            words = next(verbs(line), []) if block.kind == "sh" and not set("|>") & set(line) else []
            if words:
                with open(os.devnull) as nothing, mock.patch("sys.stdin", nothing):
                    try:
                        main([*words, *SMALL.get(words[0], "").split()])
                    except SystemExit as end:
                        assert not end.code, where
                continue
            program_words = [sys.executable] if block.kind == "python" else ["bash", "-euo", "pipefail"]
            done = subprocess.run(
                [*program_words, "-c", line], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True
            )
            assert not done.returncode, f"{where}\n{done.stderr.decode()[-4000:]}"


@pytest.fixture(scope="module")
def after_the_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README has been run, top to bottom."""
    folder = tmp_path_factory.mktemp("readme")
    with contextlib.chdir(folder):
        run_page("README.md", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.not_run for block in blocks(page))])
def test_a_page_runs_from_top_to_bottom(page: str, after_the_readme: Path, tmp_path: Path) -> None:
    if page != "README.md":
        folder = Path(shutil.copytree(after_the_readme, tmp_path / "copy"))
        with contextlib.chdir(folder):
            run_page(page, folder)
