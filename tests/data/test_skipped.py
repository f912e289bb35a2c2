"""A list of rows left out names all of them, whatever sources share it, and none of another time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lsemrl.data.mixed import MixedData
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import read_splits
from lsemrl.data.translation import TranslationData

Write = Callable[..., str]


def rows(name: str, bad: int) -> list[dict[str, str]]:
    return [{"en": f"{name}{at}", "zh": f"字{name}{at}", "bo": "" if at < bad else f"ཀ{name}{at}"} for at in range(9)]


def listed(path: Path) -> list[tuple[str, int]]:
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(Path(row["file"]).name, row["line"]) for row in found]


def test_sources_that_share_a_list_are_all_in_it(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"

    def plan(bad: dict[str, int]) -> TranslationData:
        train, validation = (
            Source(path=write(name, rows(name, count)), on_bad_row="skip", skipped_path=str(path))
            for name, count in bad.items()
        )
        return TranslationData(source=train, validation=validation, test=validation)

    assert read_splits(plan({"a.jsonl": 2, "b.jsonl": 1}).plan)[1] == {"train": 2, "validation": 1, "test": 1}
    assert listed(path) == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1), ("b.jsonl", 1)]
    read_splits(plan({"a.jsonl": 0, "b.jsonl": 1}).plan)
    assert listed(path) == [("b.jsonl", 1)] * 2
    read_splits(plan({"a.jsonl": 0, "b.jsonl": 0}).plan)
    assert not path.read_text()
    path.unlink()
    read_splits(plan({"a.jsonl": 0, "b.jsonl": 0}).plan)
    assert not path.exists()


def test_data_that_are_mixed_share_a_list_of_one_file(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write("both.jsonl", [*rows("x", 2), {"en": "", "zh": "字", "bo": "ཀ"}])
    source = Source(path=path, on_bad_row="skip")
    main = TranslationData(source, splits=Splits(validation_fraction=0, test_fraction=0))
    replay = TranslationData(
        source, splits=Splits(validation_fraction=0, test_fraction=0), source_field="en", target_field="zh"
    )
    MixedData(main, replay, 0.5).prepare(tokenizer)
    assert listed(source.skipped) == [("both.jsonl", 1), ("both.jsonl", 2), ("both.jsonl", 10)]
