from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text.rouge import rouge_score

from lsemrl.errors import UserError
from lsemrl.languages import Language
from lsemrl.metrics.corpus import Score, chrf, language_rate, spbleu, syllable_bleu, syllable_rouge_l, ter
from two_languages import saved, sentences

HEADLINES = Path(__file__).parents[2].parent / "shared" / "data" / "tibetan_headlines.jsonl"
REFERENCE = "ཁོང་གིས་ད་ལོ་ལྷ་སའི་སློབ་གྲྭ་ཆེན་མོ་ནས་བོད་ཀྱི་ལོ་རྒྱུས་སློབ་སྦྱོང་བྱས་པ་རེད།"
NEAR = "ཁོང་གིས་ན་ནིང་ལྷ་སའི་སློབ་གྲྭ་ཆེན་མོ་ནས་བོད་ཀྱི་ལོ་རྒྱུས་སློབ་སྦྱོང་བྱས་པ་རེད།"
UNRELATED = "དེ་རིང་གནམ་གཤིས་ཧ་ཅང་བཟང་པོ་འདུག་པས་ང་ཚོ་གླིང་ཁར་སྤྲོ་འཆམ་ལ་འགྲོ།"

Metric = Callable[[list[str], list[list[str]]], Score]
METRICS: dict[str, Metric] = {
    "chrf": chrf,
    "bleu": lambda outputs, references: syllable_bleu(outputs, references, "bo"),
    "rouge_l": lambda outputs, references: syllable_rouge_l(outputs, references, "bo"),
}


@pytest.mark.parametrize("name", METRICS)
def test_near_is_high_and_unrelated_low_on_tibetan(name: str) -> None:
    metric = METRICS[name]
    same, near, unrelated, empty = (metric([text], [[REFERENCE]]).value for text in (REFERENCE, NEAR, UNRELATED, ""))
    assert same == pytest.approx(1.0) and 0.7 < near < 0.99 and unrelated < 0.25 and empty == 0.0


def test_what_is_wrong_with_the_usual_tokenizers_on_tibetan() -> None:
    """The reason for units: one word a sentence, and so 0, or a tsheg for every other token, and so too much."""
    for tokenizer in ("13a", "zh", "none"):
        assert sacrebleu.corpus_bleu([NEAR], [[REFERENCE]], tokenize=tokenizer, force=True).score < 1
    ours = syllable_bleu([NEAR], [[REFERENCE]], "bo").value
    assert ours < sacrebleu.corpus_bleu([NEAR], [[REFERENCE]], tokenize="intl", force=True).score / 100
    assert rouge_score(NEAR, REFERENCE, rouge_keys="rougeL")["rougeL_fmeasure"] == 0
    by_letter = rouge_score(UNRELATED, REFERENCE, rouge_keys="rougeL", normalizer=str, tokenizer=list)
    assert by_letter["rougeL_fmeasure"] > syllable_rouge_l([UNRELATED], [[REFERENCE]], "bo").value + 0.2


def test_values_by_hand() -> None:
    # Five units against four, a subsequence of three: precision 3/5, recall 3/4.
    assert syllable_rouge_l(["甲乙丙丁戊"], [["甲丙戊己"]], "zh").value == pytest.approx(2 * 3 / (5 + 4))
    # Precisions 5/6, 3/5, 2/4, 1/3 and no brevity penalty.
    assert syllable_bleu(["甲乙丙丁戊己"], [["甲乙丙丁庚己"]], "zh").value == pytest.approx(
        (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    )


def test_rouge_is_a_mean_and_bleu_pools() -> None:
    outputs, references = [REFERENCE, UNRELATED], [[REFERENCE], [REFERENCE]]
    alone = [syllable_rouge_l([output], [[REFERENCE]], "bo").value for output in outputs]
    assert syllable_rouge_l(outputs, references, "bo").value == pytest.approx(sum(alone) / 2)
    units = [" ".join(text.strip("།").split("་")) for text in (*outputs, REFERENCE)]
    expected = sacrebleu.corpus_bleu(units[:2], [[units[2]] * 2], tokenize="none").score / 100
    assert syllable_bleu(outputs, references, "bo").value == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_every_reference_counts_and_their_number_may_vary(name: str) -> None:
    metric = METRICS[name]
    score = metric([NEAR, REFERENCE], [[UNRELATED, NEAR], [REFERENCE]])
    assert score.value == pytest.approx(1.0) and "nrefs:var" in score.signature
    assert "nrefs:2" in metric([NEAR], [[UNRELATED, NEAR]]).signature
    assert "nrefs:1" in metric([NEAR], [[UNRELATED]]).signature


def test_signatures_name_metric_tokenizer_and_version() -> None:
    version = sacrebleu.__version__
    assert chrf([NEAR], [[NEAR]]).signature == f"chrF2|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert syllable_bleu([NEAR], [[NEAR]], "bo").signature == (
        f"BLEU|nrefs:1|case:mixed|eff:no|tok:lsemrl-bo-syllable|smooth:exp|version:{version}"
    )
    assert "tok:lsemrl-zh-character" in syllable_rouge_l(["甲"], [["甲"]], "zh").signature
    assert syllable_rouge_l([NEAR], [[NEAR]], "bo").signature.startswith("rougeL|nrefs:1|")
    assert language_rate([NEAR], "bo").signature == "language_rate|lang:bo|script:Tibetan|tok:letter|threshold:0.8"


@pytest.mark.parametrize("metric", [syllable_bleu, syllable_rouge_l])
def test_signatures_do_not_name_a_language_that_references_are_not_in(metric: Callable[..., Score]) -> None:
    own = dict.fromkeys(("བོད་ལ་སོང་། UN", "👍"), "bo-syllable")
    for reference, named in {"Wetin dey happen?": "Latin-word", "漢字": "Han-character", **own}.items():
        assert f"|tok:lsemrl-{named}|" in metric(["བོད།"], [[reference]], "bo").signature
    assert "|tok:lsemrl-ja-character|" in metric(["?"], [["かな漢"]], "ja").signature


@pytest.mark.parametrize("metric", [syllable_bleu, syllable_rouge_l])
def test_a_writing_that_cannot_be_split_is_refused(metric: Callable[..., Score]) -> None:
    whole = (REFERENCE + NEAR).replace("་", "").replace("།", "")
    with pytest.raises(UserError, match=r"language is 'bo'.*tok:lsemrl-bo-syllable.*1 pieces.*use chrf"):
        metric([whole], [[whole]], "bo")
    # One stray long word does not stop an evaluation, nor does an output that has no tsheg.
    assert metric([whole, REFERENCE, REFERENCE], [[whole], [REFERENCE], [REFERENCE]], "bo").value > 0.6
    assert metric([whole], [[REFERENCE]], "bo").value < 0.01


def test_language_rate() -> None:
    assert language_rate([REFERENCE, "藏文", "", "123", f"{REFERENCE} NBA"], "bo").value == pytest.approx(0.4)
    assert language_rate(["藏文 bo"], "zh").value == 1.0


@given(st.lists(st.text(alphabet="བོདཡིག་། a中\ufffd", max_size=12), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_scores_are_shares(outputs: list[str], data: st.DataObject) -> None:
    references = [[data.draw(st.text(alphabet="བོད་། a中", min_size=1, max_size=12))] for _ in outputs]
    for metric in METRICS.values():
        assert 0 <= metric(outputs, references).value <= 1 + 1e-9


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("outputs", "references", "message"),
    [
        ([], [], "outputs is empty"),
        (["a"], [["a"], ["b"]], "references has 2 rows for 1 outputs"),
        (["a", "b"], [["a"], []], "references is empty for output 1"),
    ],
)
def test_bad_input(name: str, outputs: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METRICS[name](outputs, references)


def test_bad_language_and_no_outputs() -> None:
    with pytest.raises(UserError, match="language is 'xx'"):
        syllable_bleu(["a"], [["a"]], "xx")
    with pytest.raises(UserError, match="outputs is empty"):
        language_rate([], "bo")


@pytest.mark.skipif(not HEADLINES.is_file(), reason="real Tibetan headlines are not part of the project")
def test_real_headlines() -> None:
    titles = [json.loads(line)["title"] for line in HEADLINES.read_text(encoding="utf-8").splitlines()][:60]
    references = [[title] for title in titles]
    shifted = titles[1:] + titles[:1]
    for metric in METRICS.values():
        assert metric(titles, references).value == pytest.approx(1.0)
        assert metric(shifted, references).value < 0.3
    assert language_rate(titles, "bo").value > 0.95


def test_rows_are_shares_too_and_their_mean_is_that_of_the_corpus() -> None:
    scored = chrf([REFERENCE, "a"], [[REFERENCE], ["b"]])
    assert scored.rows == pytest.approx((1.0, 0.0))


def test_references_most_of_which_have_no_units_are_refused() -> None:
    """Half of them may be long words; two of three are a writing that is not cut."""
    whole = "ལ" * 60
    syllable_bleu(["a"] * 2, [[whole], [REFERENCE]], "bo")
    with pytest.raises(UserError, match="would be 0 whatever the outputs say"):
        syllable_bleu(["a"] * 3, [[whole], [REFERENCE], [whole]], "bo")


def test_the_rate_of_a_language_that_shares_its_script(tmp_path: Path) -> None:
    pcm = Language(code="pcm", identifier=saved(tmp_path))
    outputs = [*sentences("pcm", 2, seed=1), *sentences("en", 1, seed=1), "Lagos"]
    score = language_rate(outputs, pcm)
    assert score.rows == (1.0, 1.0, 0.0, 0.5) and score.value == 0.625
    assert "|script:Latin|tok:letter|threshold:0.8|identifier:ngrams-" in score.signature
    assert score.signature.endswith("|threshold:0.500|undecided:0.5")
    assert language_rate(outputs, "pcm").value == 1.0


ENGLISH = ["The police arrested two men on Monday.", "Prices went up."]
HEARD = [["On Monday the police arrested two men."], ["The prices went up.", "Prices rose."]]


def test_a_reference_without_units_makes_no_output_long_enough() -> None:
    said, meant = "the cat sat on", "the cat sat on the big red mat"
    brevity = math.exp(1 - 8 / 4)  # all that is said is right
    assert syllable_bleu([said], [[meant, "🙂"]], "en").value == pytest.approx(brevity)
    assert syllable_bleu([said, said], [["🙂"], [said]], "en").value < 1


def test_word_metrics_are_sacrebleus() -> None:
    streams = [[HEARD[0][0], HEARD[1][0]], [None, HEARD[1][1]]]
    pp = chrf(ENGLISH, HEARD, words=True)
    assert pp.value * 100 == pytest.approx(sacrebleu.CHRF(word_order=2).corpus_score(ENGLISH, streams).score)
    assert pp.value != chrf(ENGLISH, HEARD).value and pp.signature.startswith("chrF2++|") and "nw:2" in pp.signature
    edits = ter(ENGLISH, HEARD, "en")
    assert edits.value * 100 == pytest.approx(sacrebleu.TER().corpus_score(ENGLISH, streams).score)
    assert "tok:tercom" in edits.signature and len(edits.rows) == len(pp.rows) == 2
    assert ter(["a b c d e f"], [["g"]], "en").value == 6  # no fraction
    assert ter(["a b"], [["a b"]], "pcm").value == 0


@pytest.mark.parametrize("language", ["bo", "zh", "km"])
def test_edits_of_words_are_refused_where_none_are_told(language: str) -> None:
    with pytest.raises(UserError, match=r"'ter', which counts words between spaces, and \w+ is written"):
        ter([REFERENCE], [[REFERENCE]], language)


def test_pieces_are_cut_by_a_model_that_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(
        "sacrebleu.tokenizers.tokenizer_spm.download_file", lambda *_: pytest.fail("it was fetched without asking")
    )
    with pytest.raises(UserError, match=r"whose SentencePiece model is not at .*flores200sacrebleuspm'; save https"):
        spbleu([NEAR], [[REFERENCE]])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flores200sacrebleuspm").write_bytes(b"a stand-in")
    monkeypatch.setattr("lsemrl.metrics.corpus.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install lsemrl\[spbleu\]"):
        spbleu([NEAR], [[REFERENCE]])
    monkeypatch.setattr("lsemrl.metrics.corpus.find_spec", lambda name: True)
    processor = SimpleNamespace(Load=lambda path: None, EncodeAsPieces=lambda line: list(line.replace(" ", "")))
    monkeypatch.setitem(sys.modules, "sentencepiece", SimpleNamespace(SentencePieceProcessor=lambda: processor))
    scored = spbleu([NEAR], [[REFERENCE]])
    assert 0.7 < scored.value < 1 and scored.signature.startswith("spBLEU|") and "tok:flores200" in scored.signature
    assert spbleu([REFERENCE], [[REFERENCE]]).value == pytest.approx(1) and scored.rows == ()
