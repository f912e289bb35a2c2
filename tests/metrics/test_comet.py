"""COMET is asked through its program's own interface; here a stand-in that takes and writes what comet-score does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsemrl.errors import UserError
from lsemrl.languages import language
from lsemrl.metrics.comet import comet, unread
from lsemrl.metrics.scorer import MetricSettings, Scorer
from lsemrl.types import Completion, Example

# Scores by how many words an output shares with its reference; the options are those of unbabel-comet 2.2.7.
SCORES = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("-s"); parser.add_argument("-t", nargs="+"); parser.add_argument("-r")
parser.add_argument("--gpus", type=int); parser.add_argument("--model"); parser.add_argument("--to_json")
parser.add_argument("--quiet", action="store_true"); parser.add_argument("--only_system", action="store_true")
asked = parser.parse_args()
assert "PYTHONPATH" not in os.environ
src, mt, ref = ([line.strip() for line in open(path, encoding="utf-8")] for path in (asked.s, asked.t[0], asked.r))
assert len(src) == len(mt) == len(ref)
rows = [
    {"src": a, "mt": b, "ref": c, "COMET": len(set(b.split()) & set(c.split())) / max(1, len(c.split()))}
    for a, b, c in zip(src, mt, ref)
]
json.dump({asked.t[0]: rows}, open(asked.to_json, "w"))
"""
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(body: str) -> None:
        (tmp_path / "comet-score").write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
        (tmp_path / "comet-score").chmod(0o755)

    return install


def test_scores_are_the_programs(install: Install) -> None:
    install(SCORES)
    found = comet(
        ["wata dey\u2028here", "", "a b"], ["water\nis here", "x", "y"], [["wata dey here"], ["no"], ["a c", "d"]], "m"
    )
    assert found.rows == (1.0, 0.0, 0.5) and found.value == 0.5
    assert found.signature.startswith("COMET|model:m|nrefs:first|version:unbabel-comet-")
    example = Example(id="1", prompt="p", source="water", references=("wata",))
    scorer = Scorer(MetricSettings(names=("comet",), language="pcm", comet="/models/x.ckpt"))
    scores = scorer.score([Completion(text="wata", ended=True, example=example)])
    assert scores.corpus["comet"] == 1 and "model:x.ckpt" in scorer.signatures["comet"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "import sys; print('no such model', file=sys.stderr); sys.exit(3)",
            r"ended with 3 \(no such model\); run comet-score",
        ),
        ("", "gave no scores that can be read"),
        (SCORES.replace("{asked.t[0]: rows}", "{asked.t[0]: rows[1:]}"), "gave 0 scores for 1 outputs"),
        (SCORES.replace('"COMET"', '"OTHER"'), "gave no scores that can be read"),
    ],
)
def test_a_program_that_fails_is_told_in_a_sentence(body: str, sentence: str, install: Install) -> None:
    install(body)
    with pytest.raises(UserError, match=sentence) as error:
        comet(["a"], ["b"], [["c"]], "m")
    assert "\n" not in str(error.value)


def test_a_program_that_is_not_there_is_told_when_settings_are_made(install: Install) -> None:
    with pytest.raises(UserError, match="comet-score is not on the path; pipx install unbabel-comet"):
        MetricSettings(names=("comet",), language="en")


def test_a_language_that_its_encoder_never_saw_is_told() -> None:
    assert [code for code in ("ug", "kk-Cyrl", "khk", "km", "zh", "en") if unread(language(code))] == []
    for code in ("bo", "pcm", "yo"):
        assert "was not trained on" in str(unread(language(code)))
