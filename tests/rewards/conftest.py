from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lsemrl.types import Completion, Example

WORDS = [
    "the",
    "cat",
    "dog",
    "saw",
    "ate",
    "fish",
    "bird",
    "red",
    "blue",
    "big",
    "small",
    "house",
    "tree",
    "river",
    "now",
]
POSITIONS, MAX_TOKENS = 24, 16


@pytest.fixture(autouse=True)
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without cached embeddings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def answer() -> Callable[..., Completion]:
    """A completion by its text and references."""

    def build(text: str, *references: str, ended: bool = True) -> Completion:
        example = Example(id="0", prompt="", source="", references=references or ("the cat",))
        return Completion(text=text, ended=ended, example=example)

    return build


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SentenceTransformer of one layer and random weights that knows fifteen words and reads sixteen tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    plain, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("encoder")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(plain)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(plain)
        dense = Dense(16, 16)  # whose weights are drawn anew when it is loaded, before they are overwritten
    transformer = Transformer(str(plain), max_seq_length=MAX_TOKENS)
    SentenceTransformer(modules=[transformer, Pooling(16, "mean"), dense], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def plain_model_path(encoder_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a model, but no SentenceTransformer."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "config.json").write_text((Path(encoder_path) / "config.json").read_text())
    return folder
