"""Texts that are canonically equivalent are one text, whatever compares them."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsemrl import micro
from lsemrl.canonical import canonical
from lsemrl.data.splits import content_key, without_shared
from lsemrl.judging.client import Endpoint, ReplyCache
from lsemrl.judging.comparison import Pair, Prediction, pair_up
from lsemrl.judging.judge import judge_by_endpoint
from lsemrl.metrics import cmrc
from lsemrl.metrics import corpus as metrics
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.micro import corpus, oracle
from lsemrl.rewards import Bleu, Chrf, LanguageConsistency, Reward, RewardMix, SemanticSimilarity
from lsemrl.rewards.calibration import probe
from lsemrl.rewards.oracle import OracleMeaning
from lsemrl.types import Completion, Example

SPELT = {
    "a long i": ("བཀྲ་ཤ\u0f73ས་བདེ་ལེགས།", "བཀྲ་ཤ\u0f71\u0f72ས་བདེ་ལེགས།"),
    "a long u": ("ཧ\u0f75ྃ་ཞེས་བྱ་བ།", "ཧ\u0f71\u0f74ྃ་ཞེས་བྱ་བ།"),
    "gha": ("\u0f43་ཡིག་ནི་བྲིས།", "\u0f42\u0fb7་ཡིག་ནི་བྲིས།"),
    "a vocalic rr, whose parts are of compatibility": ("ཀ\u0f77་ཞེས་བྲིས།", "ཀ\u0fb2\u0f71\u0f80་ཞེས་བྲིས།"),
    "a vocalic ll": ("ཀ\u0f79་ཞེས་བྲིས།", "ཀ\u0fb3\u0f71\u0f80་ཞེས་བྲིས།"),
    "a caret after a vowel": ("ཙ\u0f72\u0f39་ཞེས་བྲིས།", "ཙ\u0f39\u0f72་ཞེས་བྲིས།"),
    "Latin": ("café naïve Ångström", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m"),
    "Hangul": ("한국어 문장", unicodedata.normalize("NFD", "한국어 문장")),
    "kana": ("ガギグゲゴ", unicodedata.normalize("NFD", "ガギグゲゴ")),
    "Han": ("\uf900\uf9d1", "\u8c48\u516d"),
    "Cyrillic": ("й в конце ё", unicodedata.normalize("NFD", "й в конце ё")),
    "Arabic": ("\u0624\u0626 آ", unicodedata.normalize("NFD", "\u0624\u0626 آ")),
    "Devanagari": ("\u0958\u0959 है", "\u0915\u093c\u0916\u093c है"),
}
pairs = pytest.mark.parametrize(("one", "other"), SPELT.values(), ids=SPELT)


@functools.cache
def encoder() -> SemanticSimilarity:
    return SemanticSimilarity(encoder=micro.NAME, cache_dir="none", device="cpu", dtype="float32")


def completion(text: str, reference: str) -> Completion:
    return Completion(
        text=text, ended=True, example=Example(id="0", prompt="", source=reference, references=(reference,))
    )


METRICS: dict[str, Callable[[str, str], float]] = {
    "chrf": lambda said, meant: metrics.chrf([said], [[meant]]).value,
    "chrf of sentences": lambda said, meant: metrics.chrf([said], [[meant]]).rows[0],
    "bleu": lambda said, meant: metrics.syllable_bleu([said] * 4, [[meant]] * 4, "bo").value,
    "rouge_l": lambda said, meant: metrics.syllable_rouge_l([said], [[meant]], "bo").value,
    "language_rate": lambda said, meant: metrics.language_rate([said], "bo").value,
    "exact match": lambda said, meant: cmrc.exact_match(said, [meant]),
    "cmrc f1": lambda said, meant: cmrc.f1(said, [meant]),
    "answer length": lambda said, meant: cmrc.score([said], [[meant]])["answer_length"][0],
    "similarity": lambda said, meant: float(encoder().similarity([said], [[meant]])),
    "slots that are said": lambda said, meant: float(oracle.parse(said).slots.total()),
}
REWARDS: dict[str, Callable[[], Reward]] = {
    "Bleu": Bleu,
    "Chrf": Chrf,
    "LanguageConsistency": LanguageConsistency,
    "SemanticSimilarity": encoder,
}


@pytest.mark.parametrize("name", METRICS)
@pairs
def test_a_metric_does_not_tell_spellings_apart(name: str, one: str, other: str) -> None:
    metric = METRICS[name]
    same = metric(one, one)
    assert [metric(one, other), metric(other, one), metric(other, other)] == [same] * 3


@pytest.mark.parametrize("name", REWARDS)
@pairs
def test_a_reward_does_not_tell_spellings_apart(name: str, one: str, other: str) -> None:
    reward = REWARDS[name]()
    rewards_N = reward([completion(said, meant) for said in (one, other) for meant in (one, other)])
    torch.testing.assert_close(rewards_N, rewards_N[:1].expand(4), rtol=0, atol=0, equal_nan=True)
    if name in ("Chrf", "SemanticSimilarity"):
        assert rewards_N[0] == pytest.approx(1.0)


LETTERS = (
    "ཀགཙཤ་། "
    + "\u0f71\u0f72\u0f73\u0f74\u0f75\u0f76\u0f77\u0f78\u0f79\u0f80\u0f81\u0f39\u0f43\u0f42\u0fb7\u0fb2"
    + "aé\u0301中"
)


@given(st.text(LETTERS, min_size=1, max_size=12), st.text(LETTERS, min_size=1, max_size=12))
@example("ཀ\u0f77", "ཀ\u0fb2\u0f81")
@settings(max_examples=60, deadline=None)
def test_every_metric_gives_one_value_for_every_form_of_a_text(said: str, meant: str) -> None:
    for name, metric in METRICS.items():
        if name == "similarity":
            continue
        value = metric(said, meant)
        for form in ("NFC", "NFD"):
            assert metric(unicodedata.normalize(form, said), meant) == value, name
            assert metric(said, unicodedata.normalize(form, meant)) == value, name


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_there_is_one_form_for_all_that_is_equivalent(text: str) -> None:
    form = canonical(text)
    assert canonical(form) == form == unicodedata.normalize("NFC", form)
    assert canonical(unicodedata.normalize("NFD", text)) == form
    assert unicodedata.normalize("NFKD", form) == unicodedata.normalize("NFKD", text)


def test_what_is_only_alike_stays_apart() -> None:
    assert len({canonical(text) for text in ("ﬁ", "fi", "Ａ", "A", "²", "2", "ང་", "ང༌")}) == 8


def test_a_reward_of_ones_own_is_given_one_form() -> None:
    class Spelling(Reward):
        def __call__(self, completions: Sequence[Completion]) -> Tensor:
            return torch.tensor(
                [float(each.text == each.example.reference == each.example.source) for each in completions]
            )

    one, other = SPELT["a long i"]
    assert RewardMix({"mine": Spelling()})([completion(one, other), completion(other, one)], 2).total_N.tolist() == [
        1,
        1,
    ]


def test_the_oracle_reads_every_form() -> None:
    row = corpus.translation("test", 1, 0)[0]["bo"]
    text = row if isinstance(row, str) else row[0]
    respelt = unicodedata.normalize("NFD", text).replace("\u0f72\u0f39", "\u0f39\u0f72")
    assert oracle.meaning(respelt, text) == oracle.meaning(text, respelt) == oracle.meaning(text, text)
    assert OracleMeaning()([completion(respelt, text)]).tolist() == [1.0]


def test_a_vector_is_made_once_whatever_the_spelling() -> None:
    reward = SemanticSimilarity(encoder=micro.NAME, cache_dir="none", device="cpu", dtype="float32")
    one, other = SPELT["a caret after a vowel"]
    reward.similarity([one, other], [[one], [other]])
    assert reward._reference.cache_info().misses == 1


def test_the_scorer_gives_equal_scores() -> None:
    scorer = Scorer(MetricSettings(names=("chrf", "bleu", "rouge_l", "language_rate", "cmrc")))
    one, other = SPELT["a long i"]
    assert scorer([completion(one, one)]) == scorer([completion(other, one)]) == scorer([completion(one, other)])


@pairs
def test_rows_are_equal_whatever_the_spelling(one: str, other: str) -> None:
    assert content_key(one) == content_key(other)
    assert without_shared([one], lambda text: (text,), [other]) == []


def test_a_probe_has_no_text_twice() -> None:
    one, other = SPELT["a long i"]
    rows = [Example(id=text, prompt="", source=text, references=(text,)) for text in (one, other, "གཞན་པ་ཞིག", "ཡང་གཅིག")]
    assert len(probe(rows).sources) == 3


def test_the_judge_is_not_asked_about_two_spellings(tmp_path: object) -> None:
    one, other = SPELT["gha"]
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="nobody")
    [verdict] = judge_by_endpoint(
        [Pair(id="0", source="", outputs=(one, other))],
        endpoint,
        ReplyCache(tmp_path),  # type: ignore[arg-type]
        task="translation",
        language="bo",
    )
    assert (verdict.outcome, verdict.note) == ("tie", "equal outputs")


def test_predictions_of_one_source_in_two_spellings_are_paired() -> None:
    one, other = SPELT["gha"]
    [pair] = pair_up({"0": Prediction(source=one, output="a")}, {"0": Prediction(source=other, output="b")})
    assert pair.outputs == ("a", "b")
