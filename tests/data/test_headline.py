"""Headlines of the embedded world and of the real file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lsemrl.data.headline import HeadlineData
from lsemrl.data.limits import Limits
from lsemrl.data.sources import Source
from lsemrl.data.task import MicroRows
from lsemrl.micro import corpus

Write = Callable[..., str]


def test_embedded_world(tokenizer: PreTrainedTokenizerFast) -> None:
    data = HeadlineData(micro=MicroRows(train=20, validation=2, test=3), batch_size=5)
    data.prepare(tokenizer)
    assert [len(rows) for rows in (data.train_examples, data.validation_examples, data.test_examples)] == [20, 2, 3]
    for example, row in zip(data.test_examples, corpus.headline("test", 3, 0), strict=True):
        assert example.prompt == f"<|user|>藏文标题：{row['content']}<|assistant|>"
        assert (example.source, example.references) == (row["content"], (row["title"],))
    assert sum(len(batch.examples) for batch in data.train_dataloader()) == 20


@pytest.mark.parametrize("on_long", ["truncate", "skip"])
def test_real_headlines_through_a_column_map(
    tokenizer: PreTrainedTokenizerFast, real_data: Path, write: Write, on_long: Any
) -> None:
    lines = (real_data / "tibetan_headlines.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    renamed = write("news.jsonl", [{"key": row["id"], "body": row["content"], "head": row["title"]} for row in rows])
    data = HeadlineData(
        source=Source(path=renamed, columns={"id": "key", "content": "body", "title": "head"}),
        limits=Limits(max_prompt_tokens=3000, max_target_tokens=256, on_long=on_long),
    )
    data.prepare(tokenizer)
    by_id = {row["id"]: row for row in rows}
    examples = [*data.train_examples, *data.validation_examples, *data.test_examples]
    for example in examples:
        row = by_id.pop(example.id)
        assert row["content"].strip().startswith(example.source)
        assert example.reference == row["title"].strip()
        assert "\ufffd" not in example.source
    totals = {key: sum(part[key] for part in data.report.values()) for key in data.report["train"]}
    assert totals["rows"] == len(examples)
    assert totals["rows"] + totals["prompts_skipped"] + totals["targets_skipped"] + totals["shared_rows"] == len(rows)
    assert totals["prompts_over"] == totals["prompts_truncated" if on_long == "truncate" else "prompts_skipped"] > 0
    cut = [example for example in examples if example.source != _content(rows, example.id)]
    assert len(cut) == totals["prompts_truncated"]
    assert all(len(tokenizer(example.prompt)["input_ids"]) <= 3000 for example in cut)


def _content(rows: list[dict[str, str]], id: str) -> str:
    return next(row["content"].strip() for row in rows if row["id"] == id)
