"""Sentences that nobody has translated, to train on by rewards that need no reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.types import UserError

Write = Callable[..., str]
PAIRS = [{"zh": f"中{at}", "bo": f"བོད{at}"} for at in range(40)]


def prepared(tokenizer: PreTrainedTokenizerFast, source: str, **settings: Any) -> TranslationData:
    shares = Splits(validation_fraction=0.2, test_fraction=0.2, part="rl", cold_start_count=30)
    data = TranslationData(source=Source(path=source), **{"splits": shares, **settings})
    data.check_files()
    said = data.prepare(tokenizer)
    assert "zh-bo: what is trained on has no bo; pairs are for validation and test" in said
    return data


@pytest.fixture
def lines(tmp_path: Path) -> str:
    """Ten sentences, two of which are those of pairs."""
    path = tmp_path / "alone.txt"
    path.write_text("".join(f"新{at}\n" for at in range(8)) + "中0\n中1\n", encoding="utf-8")
    return str(path)


def test_they_are_trained_on_in_place_of_the_pairs(
    tokenizer: PreTrainedTokenizerFast, write: Write, lines: str
) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    data = prepared(tokenizer, pairs, untranslated=Source(path=lines))
    held_out = {row.source for row in (*data.validation_examples, *data.test_examples)}
    found = [row.source for row in data.train_examples]
    assert found == [text for text in (*(f"新{at}" for at in range(8)), "中0", "中1") if text not in held_out]
    assert all(row.references == () and row.reference == "" and row.pair for row in data.train_examples)
    assert data.train_examples[0].prompt == "<|user|>翻译成藏文：新0<|assistant|>"
    assert all(row.references for row in (*data.validation_examples, *data.test_examples))
    assert data.report["train"]["rows"] + data.report["train"]["shared_rows"] == 10


def test_a_text_file_may_be_named_by_its_language(tokenizer: PreTrainedTokenizerFast, write: Write, lines: str) -> None:
    path = Path(lines).rename(Path(lines).with_name("alone.zh"))
    data = prepared(tokenizer, write("pairs.jsonl", PAIRS), untranslated=Source(path=str(path)))
    assert data.train_examples[0].source == "新0"


def test_all_pairs_may_be_held_out_and_not_all_sentences(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    alone = Path(pairs).with_name("alone.txt")
    alone.write_text("新\n中0\n", encoding="utf-8")
    held = {"test": Source(path=pairs), "splits": Splits(validation_fraction=0.0)}
    data = prepared(tokenizer, pairs, untranslated=Source(path=str(alone)), **held)
    assert [row.source for row in data.train_examples] == ["新"] and len(data.test_examples) == 40
    alone.write_text("中0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"alone\.txt' leaves no training rows \(1 before those that share text"):
        prepared(tokenizer, pairs, untranslated=Source(path=str(alone)), **held)


def test_shots_are_pairs(tokenizer: PreTrainedTokenizerFast, write: Write, lines: str) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    data = prepared(tokenizer, pairs, untranslated=Source(path=lines), template=PromptTemplate(shots=1))
    assert "<|assistant|>བོད" in data.train_examples[0].prompt


def test_no_shot_is_trained_on(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    alone = Path(pairs).with_name("alone.txt")
    alone.write_text("".join(f"{pair['zh']}\n" for pair in PAIRS), encoding="utf-8")
    data = prepared(tokenizer, pairs, untranslated=Source(path=str(alone)), template=PromptTemplate(shots=3))
    assert all(row.prompt.count(f"{row.source}<") == 1 for row in data.train_examples)
    assert len(data.train_examples) == data.report["train"]["rows"] > 15


def test_bad_rows_of_either_file_are_told(tokenizer: PreTrainedTokenizerFast, write: Write, lines: str) -> None:
    pairs = Source(path=write("pairs.jsonl", [*PAIRS, {"zh": "中", "bo": ""}]), on_bad_row="skip")
    Path(lines).write_text("新0\n\n新1\n", encoding="utf-8")
    data = TranslationData(source=pairs, untranslated=Source(path=lines, on_bad_row="skip"))
    said = data.prepare(tokenizer)
    assert "zh-bo/train: 2 rows, 1 bad rows skipped, 0 prompts over" in said[0] and "target" not in said[0]
    assert (
        "zh-bo: what is trained on has no bo; pairs are for validation and test; 1 bad rows of theirs skipped" in said
    )


def test_the_files_of_rows_are_read_as_pairs_are(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    alone = Source(path=write("alone.jsonl", [{"id": "a", "text": "新"}]), columns={"zh": "text"})
    (row,) = prepared(tokenizer, pairs, untranslated=alone).train_examples
    assert (row.id, row.source, row.references) == ("a", "新", ())


def test_the_world_has_them_too(tokenizer: PreTrainedTokenizerFast) -> None:
    world = MicroRows(train=20, validation=4, test=4)
    data = prepared(tokenizer, "micro", micro=world, untranslated=Source())
    assert len(data.train_examples) == 20 and not any(row.references for row in data.train_examples)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "nowhere.txt"}, r"path is 'nowhere.txt', and there is no such file"),
        ({"path": "nowhere.doc"}, r"path is 'nowhere.doc', whose format is unknown"),
        ({"target_path": "other.txt"}, r"target_path is 'other.txt', but outputs are not read here; leave it out"),
        ({"columns": {"bo": "x"}}, r"columns names the field 'bo'; the fields of this task are id, zh"),
        ({"columns": {"zh": ["x", "y"]}}, r"columns give 'zh' \['x', 'y'\]; name one column$"),
    ],
)
def test_mistakes(
    settings: dict[str, Any], sentence: str, tokenizer: PreTrainedTokenizerFast, write: Write, lines: str
) -> None:
    pairs = write("pairs.jsonl", PAIRS)
    with pytest.raises(UserError, match=sentence):
        prepared(tokenizer, pairs, untranslated=Source(**{"path": lines, **settings}))


def test_an_empty_line_is_told(tokenizer: PreTrainedTokenizerFast, write: Write, lines: str) -> None:
    Path(lines).write_text("新\n \n", encoding="utf-8")
    with pytest.raises(UserError, match=r"alone\.txt:2.*field 'zh' is empty; mend the row"):
        prepared(tokenizer, write("pairs.jsonl", PAIRS), untranslated=Source(path=lines))
