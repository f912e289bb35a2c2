"""A small byte-level tokenizer with a chat template, and helpers to write files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking %}{{ '<think>' }}{% endif %}{% endif %}"
)
REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def _make_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Bytes are its letters, so that a rare codepoint is three tokens; `settings` replace the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[PAD, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["翻译成藏文：老师买了书。", "藏文标题：དགེ་རྒན་གྱིས་དེབ་ཉོས།", "问题：谁买了书？"] * 20, trainer
    )
    defaults = {
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(defaults | settings))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """With EOS, pad and a chat template."""
    return _make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Without a chat template."""
    return _make_tokenizer(chat_template=None)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes one with other special tokens or another chat template."""
    return _make_tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes | list[Any]], str]:
    """Write text, bytes or rows (one JSON a line) to a file, and give its path."""

    def write(name: str, content: str | bytes | list[Any]) -> str:
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def real_data() -> Path:
    """The folder of real files beside the repository."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real data files are not beside this repository")
    return REAL_DATA
