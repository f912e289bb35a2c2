from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lsemrl.languages import Language
from lsemrl.rewards import Chrf, LanguageConsistency, RewardMix
from lsemrl.types import Completion, Example, UserError
from two_languages import saved, sentences


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("བོད་ཡིག་ཡིན།", 1.0),
        ("བོད་ཡིག་ཡིན། 2024 😀", 1.0),
        ("藏文", 0.0),
        ("བོད་藏文藏文藏文", 0.0),
        ("", 0.0),
        ("  \n", 0.0),
        ("123 ༡༢༣ ་།", 0.0),
        ("\ufffd", 0.0),
        ("བོད\ufffd", 0.0),  # two letters in three
        ("བོད་ཡིག་ཡིན་ཡ\ufffd", 1.0),  # seven in eight
    ],
)
def test_reward(answer: Callable[..., Completion], text: str, reward: float) -> None:
    rewards_N = LanguageConsistency(language="bo")([answer(text)])
    assert rewards_N.dtype == torch.float32 and rewards_N.tolist() == [reward]


def test_only_the_script_is_judged(answer: Callable[..., Completion]) -> None:
    ended, cut = LanguageConsistency()([answer("བོད་ཡིག"), answer("བོད་ཡིག", ended=False)]).tolist()
    assert ended == cut == 1.0


def test_the_threshold_may_be_set(answer: Callable[..., Completion]) -> None:
    half = [answer("བབab")]
    assert LanguageConsistency(threshold=0.5)(half).tolist() == [1.0]
    assert LanguageConsistency(threshold=0.51)(half).tolist() == [0.0]
    assert LanguageConsistency()(half).tolist() == [0.0]


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_bad_threshold(threshold: float) -> None:
    with pytest.raises(UserError, match=r"threshold is .* LanguageConsistency"):
        LanguageConsistency(threshold=threshold)


def test_bad_language() -> None:
    with pytest.raises(UserError, match="language is 'xx'"):
        LanguageConsistency(language="xx")


@pytest.fixture(scope="module")
def pcm(tmp_path_factory: pytest.TempPathFactory) -> Language:
    """Told from English, which is in its script, by an identifier."""
    return Language(code="pcm", identifier=saved(tmp_path_factory.mktemp("identifier")))


def pairs(source: str, target: str, *, pair: bool = True) -> list[Example]:
    """Rows of made-up texts."""
    return [
        Example(id=str(at), prompt="", source=said, references=(answer,), pair=pair)
        for at, (said, answer) in enumerate(zip(sentences(source, 30), sentences(target, 30), strict=True))
    ]


def test_what_is_of_another_language_in_the_script_earns_little(
    answer: Callable[..., Completion], pcm: Language
) -> None:
    reward = LanguageConsistency(language=pcm)
    [own], [other] = sentences("pcm", 1, words=40, seed=1), sentences("en", 1, words=40, seed=1)
    half = min(len(own), len(other))
    texts = [own, other, f"{own[:half]} {other[:half]}", "Lagos", "", "Русский текст"]
    scores_N = reward([answer(text) for text in texts])
    good, copied, mixed, name, empty, foreign = scores_N.tolist()
    assert good > 0.9 and copied < 0.1 and 0.2 < mixed < 0.8
    assert (name, empty, foreign) == (0.5, 0.0, 0.0)
    assert reward.opens(scores_N[[0, 1, 3, 4, 5]]).tolist() == [True, False, False, False, False]
    assert reward.counters == {"undecided": 1.0}
    resumed = LanguageConsistency(language=pcm)
    resumed.resume(reward.state())
    assert resumed.counters == reward.counters


def test_what_cannot_be_told_opens_no_gate(answer: Callable[..., Completion], pcm: Language) -> None:
    mix = RewardMix({"chrf": Chrf(), "language": LanguageConsistency(language=pcm)}, combine="gate")
    [own] = sentences("pcm", 1, seed=1)
    totals = mix([answer(own, own), answer("Lagos", "Lagos")], 2).total_N
    assert totals.tolist() == [1.0, 0.0]


def test_a_rule_that_takes_the_source_for_the_target_is_refused(pcm: Language) -> None:
    rows = pairs("en", "pcm")
    blind = LanguageConsistency(language="pcm")
    with pytest.raises(UserError, match=r"by the language of the sources \(.*; 0\.0% of 30 references .*; name the"):
        LanguageConsistency(language="bo").look_at([replace(row, source="བཀྲ་ཤིས་བདེ་ལེགས།") for row in rows])
    with pytest.raises(UserError, match=r"cannot tell an untranslated source \(Nigerian Pidgin is told by Latin .*"):
        blind.look_at(rows)
    said = LanguageConsistency(language=pcm).look_at(rows)
    assert "Nigerian Pidgin is told by Latin letters from a share of 0.8 on, and by ngrams-" in said
    assert said.endswith("100.0% of 30 references pass, and 0.0% of their sources")
    # Where it trains nothing, or the source is in the language that is to be spoken, it is no fault.
    assert "a copy may earn it" in LanguageConsistency(weight=0.0, language="pcm").look_at(rows)
    assert blind.look_at(pairs("pcm", "pcm", pair=False)).startswith("Nigerian Pidgin is told by")


def test_a_rule_that_right_answers_do_not_pass_is_refused() -> None:
    """Of any task, and of rows of replay too: only pairs were looked at, and only where sources passed."""
    asked = LanguageConsistency(language="bo")
    headlines = pairs("en", "pcm", pair=False)
    for rows in (headlines, pairs("en", "pcm")):
        with pytest.raises(UserError, match=r"pay nothing for most right answers \(.*; 0\.0% of 30 references pass"):
            asked.look_at(rows)
    assert "0.0% of 30 references pass; right" in LanguageConsistency(weight=0.0, language="bo").look_at(headlines)
    own = [replace(row, references=("བཀྲ་ཤིས་བདེ་ལེགས།",)) for row in pairs("en", "pcm")]
    assert asked.look_at([replace(row, pair=False) for row in own]).endswith("100.0% of 30 references pass")
    other = replace(headlines[0], references=("བཀྲ་ཤིས་བདེ་ལེགས།",))  # than a sentence that nobody has translated
    assert asked.look_at([other, replace(own[0], references=())]).endswith(
        "of 1 references pass, and 0.0% of 1 sources"
    )
    assert asked.look_at([*own, *own, *headlines]).endswith(
        "66.7% of 90 references pass, and 0.0% of 60 sources; right answers that do not pass earn less"
    )


def test_an_identifier_of_another_language_is_refused(pcm: Language) -> None:
    with pytest.raises(UserError, match="tells 'pcm' and not 'yo'"):
        Language(code="yo", identifier=pcm.identifier)
