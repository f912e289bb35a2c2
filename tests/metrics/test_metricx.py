"""MetricX on a tiny mT5 in the form of the real ones, row by row beside batches; what is none is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MT5Config, MT5ForConditionalGeneration, PreTrainedTokenizerFast

from lsemrl.errors import UserError
from lsemrl.languages import language
from lsemrl.metrics.metricx import MetricX, unread
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.rewards.cache import hash_of
from lsemrl.types import Completion, Example

ROWS = [
    ("the cat sat", "di cat don siddon", "di cat siddon"),
    ("water", "wata", "wata dey here"),
    ("a far longer sentence than these", "one long long talk wey no end", "x"),
]


def save_model(folder: Path, *, vocabulary: int = 250_112, tied: bool = False) -> str:
    torch.manual_seed(2)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
    model = MT5ForConditionalGeneration(MT5Config(vocab_size=vocabulary, **shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.6)  # far from one another, so that mistakes show
    model.config.architectures = ["MT5ForRegression"]  # as theirs say
    model.save_pretrained(folder)
    if not tied:  # transformers would not write a head of its own, which theirs have
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = 4 * torch.randn(vocabulary, 8)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("metricx") / "metricx-24-tiny")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = sorted({word for row in ROWS for text in row for word in text.split()})
    every = ["<pad>", "</s>", "<unk>", "source:", "candidate:", "reference:", *words]
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(every)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("mt5")
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, tokenizer: str, row: tuple[str, str, str]) -> float:
    """From encoder, decoder and head, one row at a time."""
    theirs = MT5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    text = "source: {} candidate: {} reference: {}".format(*row)
    ids = PreTrainedTokenizerFast.from_pretrained(tokenizer)(text, return_tensors="pt").input_ids[:, :-1]
    with torch.no_grad():
        states = theirs.encoder(input_ids=ids).last_hidden_state
        said = theirs.decoder(input_ids=torch.zeros(1, 1, dtype=torch.long), encoder_hidden_states=states)
        return float((said.last_hidden_state[0, 0] @ theirs.lm_head.weight[250_089]).clamp(0, 25))


def test_errors_are_those_of_the_model_whatever_the_batch(
    model: str, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, outputs, references = zip(*ROWS, strict=True)
    metric = MetricX(model, tokenizer)
    score = metric(outputs, sources, [[reference, "another"] for reference in references])
    expected = [by_hand(model, tokenizer, row) for row in ROWS]
    assert score.rows == pytest.approx(expected, abs=1e-4) and score.value == pytest.approx(sum(expected) / 3)
    assert len({round(each, 1) for each in expected}) == 3 and min(expected) > 0 and max(expected) < 25
    assert score.signature.startswith(f"MetricX|model:{hash_of(metric._model, {})[:12]}|nrefs:first|lower is better|")
    monkeypatch.setattr("lsemrl.metrics.metricx._BATCH", 1)
    assert metric(outputs, sources, [[each] for each in references]).rows == pytest.approx(expected, abs=1e-4)


def test_what_is_longer_than_it_was_trained_on_is_cut_with_a_word(
    model: str, tokenizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    metric = MetricX(model, tokenizer)
    whole, more = (metric([f"cat {'wata ' * count}"], ["water"], [["wata"]]) for count in (1600, 1700))
    assert "the first 1536 tokens only of 1 of 1 rows" in caplog.text
    assert whole.rows == pytest.approx(more.rows)


def test_it_is_one_of_the_scores(model: str, tokenizer: str) -> None:
    settings = MetricSettings(names=("metricx",), language="pcm", metricx=model, metricx_tokenizer=tokenizer)
    scorer = Scorer(settings)
    example = Example(id="1", prompt="p", source="water", references=("wata dey here",))
    scores = scorer.score([Completion(text="wata", ended=True, example=example)])
    assert scores.corpus["metricx"] == scores.rows["metricx"][0] == pytest.approx(by_hand(model, tokenizer, ROWS[1]))
    assert scorer.look_at([example]) == [
        "metrics.names: metricx says little: mT5, which it stands on, was not trained on Nigerian Pidgin"
    ]
    assert unread(language("ig")) is None and unread(language("bo"))


def test_it_is_known_by_its_weights_wherever_they_lie(model: str, tokenizer: str, tmp_path: Path) -> None:
    def asked(folder: str) -> object:
        return Scorer(MetricSettings(names=("metricx",), metricx=folder, metricx_tokenizer=tokenizer)).asked

    there = str(shutil.copytree(model, tmp_path / "there"))
    assert (before := asked(there)) == asked(model)
    weights = load_file(Path(there) / "model.safetensors")
    weights["lm_head.weight"][-1] += 1
    save_file(weights, Path(there) / "model.safetensors", metadata={"format": "pt"})
    assert asked(there) != before


def test_what_is_none_is_refused(tokenizer: str, model: str, tmp_path: Path, tiny_model: str) -> None:
    for other in (save_model(tmp_path / "small", vocabulary=1000), save_model(tmp_path / "tied", tied=True)):
        with pytest.raises(UserError, match="is no model of MetricX-24"):
            MetricX(other, tokenizer)
    for other in (tiny_model, str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match=r"metrics\.metricx '.*(is no model of MetricX-24|cannot be read)"):
            MetricX(other, tokenizer)
    with pytest.raises(UserError, match=r"metrics\.metricx_tokenizer '.*' cannot be read"):
        MetricX(model, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is none of an mT5"):
        MetricX(model, tiny_model)
    weights = Path(save_model(tmp_path / "cut")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        MetricX(str(tmp_path / "cut"), tokenizer)
