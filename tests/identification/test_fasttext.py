"""Models of fastText: a stand-in of the package, and the package itself where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lsemrl.errors import UserError
from lsemrl.identification.fasttext import FastTextIdentifier
from lsemrl.identification.read import read_identifier
from two_languages import sentences

LIKELY = {"__label__pcm_Latn": 0.3, "__label__eng_Latn": 0.3, "__label__zho_Hant": 0.2, "__label__zho_Hans": 0.2}


class StandIn:
    """Answers as fastText's models do: labels and their probabilities."""

    def get_labels(self) -> list[str]:
        return list(LIKELY)

    def predict(self, text: str, k: int) -> tuple[tuple[str, ...], list[float]]:
        assert k == -1 and "\n" not in text
        likely = {**LIKELY, "__label__pcm_Latn": 0.9, "__label__eng_Latn": 0.1} if "DEY" in text else LIKELY
        likely = {**likely, "__label__eng_Latn": 0.95, "__label__pcm_Latn": 0.01} if "the" in text else likely
        return tuple(likely), list(likely.values())


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def load_model(path: str) -> StandIn:
        if b"junk" in Path(path).read_bytes():
            raise ValueError(f"{path} has wrong file format!")
        return StandIn()

    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(load_model=load_model))
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def test_a_window_is_of_the_language_of_another_or_of_none(model: Path) -> None:
    identifier = read_identifier(str(model), "pcm")
    assert identifier.shares(["I DEY go\n", "the house", "Lagos", ""]) == [0.9, 0.01, None, None]
    assert (identifier.threshold, identifier.name) == (0.5, "fasttext-model.bin")


def test_texts_are_read_as_they_stand(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lid.176, which was trained on such, tells nine of ten Cantonese sentences so, and none with letters apart."""
    read: list[str] = []
    identifier = FastTextIdentifier(model, "zh")
    monkeypatch.setattr(identifier._model, "predict", lambda text, k: read.append(text) or ((), []))
    identifier.shares(["“我哋去飲茶，Good DAY 2024!”\n", "བོད་སྐད།", "ขอบคุณ! " * 20, "Don't go. " * 10, "1 2 3", ""])
    apart = [" ".join([word] * 10) for word in ("ขอบคุณ!", "ขอบคุณ!", "Don't go.")]
    assert read == ["“我哋去飲茶，Good DAY 2024!”", "བོད་སྐད།", *apart]


def test_what_is_no_letter_adds_no_weight(model: Path) -> None:
    own, other = "I DEY go " * 30, "the house " * 30
    plain, padded = FastTextIdentifier(model, "pcm").shares([own + other, own + "." * 999 + " " + other])
    assert plain == padded and 0.2 < (plain or 0) < 0.6


def test_models_are_told_apart_whatever_their_files_are_called(model: Path) -> None:
    found = []
    for content in (b"weights", b"others"):
        model.write_bytes(content)
        found.append(FastTextIdentifier(model, "pcm").identity)
    model.rename(moved := model.with_name("moved.bin"))
    assert FastTextIdentifier(moved, "pcm").identity == found[1] != found[0]


@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("en", {"__label__eng_Latn"}),
        ("zh", {"__label__zho_Hant", "__label__zho_Hans"}),
        ("zh-Hant", {"__label__zho_Hant"}),
    ],
)
def test_labels_are_found_by_their_tags(code: str, labels: set[str], model: Path) -> None:
    assert FastTextIdentifier(model, code)._own == labels


def test_what_cannot_be_used_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none of its 4 labels is of 'yo'; fit an identifier"):
        FastTextIdentifier(model, "yo")
    model.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"cannot be read .*wrong file format"):
        FastTextIdentifier(model, "pcm")
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        FastTextIdentifier(model.with_name("none.ftz"), "pcm")
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(UserError, match=r"install lsemrl\[fasttext\]"):
        FastTextIdentifier(model, "pcm")


def test_a_model_of_the_package_itself(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext", reason="the extra fasttext is not installed")
    rows = [f"__label__{name}_Latn {said}\n" for name in ("pcm", "en") for said in sentences(name, 100)]
    (tmp_path / "rows.txt").write_text("".join(rows), encoding="utf-8")
    trained = fasttext.train_supervised(
        str(tmp_path / "rows.txt"), dim=8, epoch=20, minn=1, maxn=3, bucket=2000, thread=1, verbose=0
    )
    trained.save_model(str(tmp_path / "tiny.bin"))
    identifier = read_identifier(str(tmp_path / "tiny.bin"), "pcm")
    own, other = (identifier.shares(sentences(name, 5, seed=1)) for name in ("pcm", "en"))
    assert min(share or 0 for share in own) > 0.8 and max(share or 1 for share in other) < 0.2
