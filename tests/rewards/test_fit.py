from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from lsemrl import micro
from lsemrl.micro import corpus
from lsemrl.rewards.fit import different, load_encoder, train
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.rewards.semantic import SemanticSimilarity
from lsemrl.types import UserError

CPU = EncoderTraining(device="cpu")


def pairs(count: int, split: str = "train") -> list[tuple[str, str]]:
    return [(str(row["zh"]), str(row["bo"])) for row in corpus.translation(split, count, seed=0)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-R of one layer as transformers saves it, with 40 positions, of which two are of no use."""
    folder = tmp_path_factory.mktemp("xlm-r")
    tokenizer = AutoTokenizer.from_pretrained(micro.ENCODER)
    tokenizer.save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_plain_encoder_gets_mean_pooling_and_becomes_a_reward(plain_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(plain_encoder), EncoderTraining(max_tokens=32, device="cpu"))
    texts = ["老师买了书。", "学生"]
    features = dict(encoder.preprocess(texts))
    mask = features["attention_mask"].unsqueeze(-1)
    states = encoder[0](features)["token_embeddings"]
    mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(encoder.encode(texts, convert_to_tensor=True), mean, rtol=1e-5, atol=1e-6)
    rows = train(
        encoder, pairs(8), pairs(4, "test"), EncoderTraining(batch_size=4, epochs=1, device="cpu"), lambda _: None
    )
    assert rows[-1]["step"] == 2
    encoder.save(str(tmp_path / "encoder"), create_model_card=False)
    reward = SemanticSimilarity(encoder=str(tmp_path / "encoder"), cache_dir="none")
    assert reward.encoder.max_seq_length == 32
    assert reward.similarity(texts, [texts[:1], texts[1:]]).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_an_encoder_reads_no_more_than_it_can(plain_encoder: Path, encoder_path: str) -> None:
    assert load_encoder(encoder_path, CPU).max_seq_length == 16
    assert load_encoder(encoder_path, EncoderTraining(max_tokens=9, device="cpu")).max_seq_length == 9
    with pytest.raises(UserError, match=r"max_tokens is 128, and encoder .* has no positions for so many"):
        load_encoder(str(plain_encoder), CPU)


def test_fresh_weights() -> None:
    kept = load_encoder(micro.NAME, CPU).state_dict()
    drawn = [load_encoder(micro.NAME, EncoderTraining(fresh=True, seed=seed, device="cpu")) for seed in (1, 1, 2)]
    weights = [encoder.state_dict() for encoder in drawn]
    name = next(name for name in kept if name.endswith("word_embeddings.weight"))
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert abs(float(weights[0][name].std()) - 0.02) < 0.002  # as BERT draws them
    assert weights[0].keys() == kept.keys()
    assert all(weight.dtype == torch.float32 for weight in weights[0].values() if weight.is_floating_point())


def test_a_few_steps_teach_something_and_the_same_thing_again() -> None:
    training = EncoderTraining(fresh=True, epochs=2, batch_size=16, lr=2e-3, device="cpu")
    lines: list[str] = []
    histories, weights = [], []
    for _ in range(2):
        encoder = load_encoder(micro.NAME, training)
        histories.append(train(encoder, pairs(256), pairs(40, "test"), training, lines.append))
        weights.append(encoder.state_dict())
    rows = histories[0]
    assert [row["step"] for row in rows][-1] == 32
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["found"] > rows[0]["found"] + 0.3
    assert len(lines) == 2 * len(rows)
    assert "of held-out translations found" in lines[0]
    assert not encoder.training
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in histories[1]]


def test_both_directions_count() -> None:
    """The loss does not change when anchors and positives change places."""
    training = EncoderTraining(epochs=1, batch_size=64, lr=1e-9, device="cpu")
    first = []
    for rows in (pairs(8), [(target, source) for source, target in pairs(8)]):
        encoder = load_encoder(micro.NAME, EncoderTraining(fresh=True, device="cpu"))
        first.append(train(encoder, rows, pairs(4, "test"), training, lambda _: None)[0]["loss"])
    assert first[0] == pytest.approx(first[1], rel=1e-4)


@pytest.mark.parametrize("rows", [[], [("a", "b")], [("a", "b"), ("a", "b")]])
def test_too_few_pairs(rows: list[tuple[str, str]], encoder_path: str) -> None:
    with pytest.raises(UserError, match="different pairs to train on; give two or more"):
        train(load_encoder(encoder_path, CPU), different(rows), pairs(4, "test"), CPU)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1.0),
        ("epochs", float("inf")),
        ("batch_size", 1),
        ("lr", 0.0),
        ("warmup_ratio", 1.0),
        ("weight_decay", -0.1),
        ("scale", 0.0),
        ("max_tokens", 0),
        ("device", "tpu"),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"train\.{field} is {value}; it must be"):
        EncoderTraining(**{field: value})  # type: ignore[arg-type]


def test_encoders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a SentenceTransformer folder .* nor a transformers encoder"):
        load_encoder(str(tmp_path), CPU)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="could not be loaded"):
        load_encoder(str(tmp_path), CPU)
    with pytest.raises(UserError, match=r"nobody/no-such-encoder.* could not be loaded"):
        load_encoder("nobody/no-such-encoder", CPU)
