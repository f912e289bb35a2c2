"""Fitted, written and read again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lsemrl.errors import UserError
from lsemrl.identification.fit import IdentifierFit, Text, _threshold, fit, measure
from lsemrl.identification.ngrams import ABOUT, WEIGHTS, load
from lsemrl.identification.page import page
from lsemrl.identification.read import read_identifier
from lsemrl.languages import Language
from two_languages import NAMES, fitted, saved, sentences, texts


def test_each_language_is_told_and_what_is_of_both_is_not() -> None:
    identifier = fitted()
    own, other = (identifier.shares(sentences(name, 50, seed=1)) for name in ("pcm", "en"))
    assert min(share or 0 for share in own) > 0.9 and max(share or 0 for share in other) < 0.1
    assert identifier.shares(["", "12 ?!", NAMES[1]]) == [None] * 3


def test_case_and_punctuation_change_nothing() -> None:
    text = sentences("pcm", 1, seed=2)[0]
    assert len(set(fitted().shares([text, text.upper(), text.replace(" ", ", ") + " 12!"]))) == 1


def test_a_mixed_text_is_a_share() -> None:
    own, other = (sentences(name, 1, words=60, seed=3)[0] for name in ("pcm", "en"))
    half = min(len(own), len(other))
    [share] = fitted().shares([f"{own[:half]} {other[:half]}"])
    assert share is not None and 0.3 < share < 0.7


def test_probabilities_are_calibrated_and_add_up() -> None:
    likely_NK = fitted().probabilities(["weydey na", "the oftion", "obama"])
    assert likely_NK.shape == (3, 3) and np.allclose(likely_NK.sum(axis=1), 1)
    assert likely_NK[0, 0] > 0.7 > 0.3 > likely_NK[1, 0]
    error = fitted().about.figures["calibration_error"]
    assert error["after"] < 0.1


def test_the_same_texts_and_seed_make_the_same_identifier() -> None:
    few = texts(110)
    one, same, other = (fit("pcm", few, IdentifierFit(seed=seed)).name for seed in (0, 0, 1))
    assert one == same != other


def test_translations_are_held_out_together_and_shared_texts_left_out() -> None:
    both = texts()
    both["pcm"].append(Text("same", "Obama Lagos state"))
    both["en"].append(Text("same", "Obama, LAGOS state."))
    figures = fit("pcm", both, IdentifierFit()).about.figures
    assert figures == fitted().about.figures
    assert figures["held_out"]["pcm"] == figures["held_out"]["en"]


def test_the_threshold_gives_way_where_texts_of_the_language_are_mixed() -> None:
    mixed = texts()
    other = sentences("en", 150, seed=4)
    mixed["pcm"] = [
        Text(each.key, f"{each.text} {other[at]} {other[-at]}") if at % 5 == 0 else each
        for at, each in enumerate(mixed["pcm"])
    ]
    low, usual = fit("pcm", mixed, IdentifierFit()), fit("pcm", mixed, IdentifierFit(false_alarm=0.5))
    assert low.threshold < usual.threshold == 0.5


def test_untranslated_texts_among_its_own_do_not_open_the_gate_to_others() -> None:
    mixed = texts()
    english = iter(sentences("en", 150, seed=4))
    mixed["pcm"] = [Text(each.key, next(english)) if at % 12 == 0 else each for at, each in enumerate(mixed["pcm"])]
    found = fit("pcm", mixed, IdentifierFit())
    passed = [share is not None and share >= found.threshold for share in found.shares(sentences("en", 150, seed=6))]
    assert np.mean(passed) < 0.05


def test_many_texts_of_a_far_language_make_no_room_for_a_near_one() -> None:
    own, near, far = [0.03] * 30 + [0.99] * 970, [0.05] * 200, [0.0] * 20_000
    assert _threshold(own, [near, far], 0.01) == _threshold(own, [near], 0.01)
    assert 0.05 < _threshold(own, [near, far], 0.01)[0] < 0.051

    said = {"pcm": sentences("pcm", 5, seed=7), "en": sentences("pcm", 5, seed=8), "zh": ["中文"] * 500}
    assert measure(fitted(), said)["passed"] == 1  # of what is called English here, and not of all


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    found = read_identifier(saved(tmp_path), "pcm")
    said = sentences("pcm", 5, seed=5)
    assert found.shares(said) == fitted().shares(said)
    assert (found.name, found.threshold) == (fitted().name, fitted().threshold)
    assert (tmp_path / WEIGHTS).stat().st_size < 4e6
    assert not any(name.lower() in (tmp_path / ABOUT).read_text(encoding="utf-8").lower() for name in NAMES)


def _change(field: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        (folder / ABOUT).write_text(json.dumps({**said, field: value}), encoding="utf-8")

    return change


def _flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1000] ^= 64
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_flip, "weights.safetensors is damaged, or of another identifier"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04pickle"), "is damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "No such file"),
        (lambda folder: (folder / ABOUT).write_text("{"), "is not JSON"),
        (lambda folder: (folder / ABOUT).write_text("[]"), "is damaged"),
        (_change("version", 9), "it is of version 9"),
        (_change("threshold", "high"), "is damaged"),
        (_change("threshold", 0.0), "its parts do not fit together"),
        (_change("temperature", float("nan")), "its parts do not fit together"),
        (_change("languages", ["pcm", "en"]), "its parts do not fit together"),
        (_change("probe", ["high", "low", "low"]), "is damaged"),
        (_change("probe", [0.1, 0.9]), "its parts do not fit together"),
    ],
)
def test_what_is_damaged_is_refused(damage: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=rf"language.identifier is .* cannot be read \(.*{says}.*fit-language"):
        load(tmp_path)


@pytest.mark.parametrize("probe", [[0.1, 0.8, 0.1], [float("nan")] * 3])
def test_n_grams_that_are_counted_otherwise_are_told_whenever_it_is_asked(probe: list[float], tmp_path: Path) -> None:
    saved(tmp_path)
    _change("probe", probe)(tmp_path)
    found = load(tmp_path)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"is .* \(this version of scikit-learn counts its n-grams otherwise .*fit-lang"
        ):
            found.shares(["wetin dey happen"])


def test_reading_one_loads_nothing_that_takes_seconds(tmp_path: Path) -> None:
    code = "import sys; from lsemrl.identification.read import read_identifier; "
    code += f"read_identifier({saved(tmp_path)!r}, 'pcm'); assert not {'sklearn', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_identifier_of_another_language_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no identifier\.json"):
        read_identifier(str(tmp_path), "pcm")
    saved(tmp_path)
    with pytest.raises(UserError, match="tells 'pcm' and not 'yo'; fit one with --to yo"):
        read_identifier(str(tmp_path), "yo")
    assert Language(code="pcm-Latn", identifier=str(tmp_path)).rule  # the same language by another tag


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pcm": texts()["pcm"]}, "texts has no other language"),
        ({**texts(), "noise": texts()["en"]}, "texts has 'noise', which is what letters out of order are called"),
        ({**texts(), "en": texts()["en"][:20]}, "texts.en has 20 different texts"),
        ({**texts(), "en": [Text("one row", each.text) for each in texts()["en"]]}, "texts.en are all of one row"),
    ],
)
def test_what_cannot_be_fitted_is_told(given: dict[str, list[Text]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit("pcm", given, IdentifierFit())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"false_alarm": 0.0}, "fit.false_alarm is 0"),
        ({"held_out": 0.6}, "fit.held_out is 0.6"),
        ({"max_texts": 5}, "fit.max_texts is 5"),
        ({"inverse_penalty": float("nan")}, "fit.inverse_penalty is nan"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        IdentifierFit(**setting)  # type: ignore[arg-type]


def test_the_page_says_what_it_is_worth() -> None:
    said = page(fitted())
    assert "| 20 words and more |" in said and "| 5 words out of any |" in said
    assert "| pcm |" in said and "at least 0.50 of what can be told of it is pcm" in said


def test_lengths_are_told_in_what_the_language_is_cut_into() -> None:
    tibetan = {ord(letter): chr(0x0F40 + at) for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz")} | {32: "་"}
    both = {
        code: [Text(each.key, each.text.lower().translate(tibetan)) for each in texts(110)[name]]
        for code, name in (("dz", "pcm"), ("bo", "en"))
    }
    found = fit("dz", both, IdentifierFit())
    lengths = [row["length"] for row in found.about.figures["rows"]]
    assert lengths[0] == "1 to 4 syllables" and lengths[-1] == "5 syllables out of any"
    assert "| 20 syllables and more |" in page(found)
