"""COMET is asked through its program's own interface; here a stand-in that takes and writes what comet-score does.

Where the program is on the path, the last test asks it, for a model of nothing in the form of the published ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsemrl.errors import UserError
from lsemrl.languages import language
from lsemrl.metrics.comet import PROGRAM, comet, unread
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
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
    scorer = Scorer(MetricSettings(names=("comet",), language="pcm"))
    scores = scorer.score([Completion(text="wata", ended=True, example=example)])
    assert scores.corpus["comet"] == 1 and "model:Unbabel/wmt22-comet-da" in scorer.signatures["comet"]


def test_models_are_told_apart_whatever_their_files_are_called(install: Install, tmp_path: Path) -> None:
    install(SCORES)
    signatures, asked = [], []
    for name in ("one", "other", "copy of one"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "model.ckpt"
        path.write_text(name.removeprefix("copy of "))
        signatures.append(comet(["a"], ["b"], [["a"]], str(path)).signature)
        asked.append(Scorer(MetricSettings(names=("comet",), comet=str(path))).asked)
    assert signatures[0] == signatures[2] != signatures[1]
    assert asked[0] == asked[2] != asked[1]


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


# Run by the interpreter of comet-score, which has other packages than ours.
SAVE_AND_SCORE = """
import json, string, sys
import torch, yaml
from comet import load_from_checkpoint
from comet.models import RegressionMetric
from transformers import BertConfig, BertModel, BertTokenizerFast
folder, rows = sys.argv[1], json.loads(sys.argv[2])
pieces = [*string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase)]
with open(folder + "/vocab.txt", "w") as file:
    file.write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]))
tokenizer = BertTokenizerFast(vocab_file=folder + "/vocab.txt")
tokenizer.save_pretrained(folder)
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
model = RegressionMetric(encoder_model="BERT", pretrained_model=folder, layer="mix", hidden_sizes=[16])
kept = {"encoder_model": "BERT", "pretrained_model": folder, "layer": "mix", "hidden_sizes": [16]}
saved = {"state_dict": model.state_dict(), "hyper_parameters": kept, "hparams_name": "kwargs"}
torch.save({**saved, "pytorch-lightning_version": "2.6.0"}, folder + "/checkpoints/m.ckpt")
with open(folder + "/hparams.yaml", "w") as file:
    yaml.safe_dump({**kept, "class_identifier": "regression_metric"}, file)
found = load_from_checkpoint(folder + "/checkpoints/m.ckpt").eval().predict(rows, gpus=0, progress_bar=False)
print(json.dumps(found.scores))
"""


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not on the path: pipx install unbabel-comet")
def test_the_program_itself_scores_as_its_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, sources = ["wata dey here", "", "a b"], ["water is here", "a man", "one two"]
    references = [["wata dey here"], ["no"], ["a c", "d"]]
    rows = [
        {"src": source, "mt": output, "ref": texts[0]}
        for source, output, texts in zip(sources, outputs, references, strict=True)
    ]
    (tmp_path / "checkpoints").mkdir()
    interpreter = Path(shutil.which(PROGRAM) or "").read_text(encoding="utf-8").splitlines()[0].removeprefix("#!")
    words = [interpreter, "-c", SAVE_AND_SCORE, str(tmp_path), json.dumps(rows)]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    own = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    found = comet(outputs, sources, references, str(tmp_path / "checkpoints" / "m.ckpt"))
    assert found.rows == pytest.approx(own, abs=1e-3)  # the program itself rounds to half precision
    assert len(set(found.rows)) == 3
