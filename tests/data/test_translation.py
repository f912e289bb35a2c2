"""Both directions, from the embedded world and from files, through a Trainer and without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from transformers import PreTrainedTokenizerFast

from lsemrl.data.limits import Limits
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.micro import corpus
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.types import UserError

Write = Callable[..., str]
MICRO = MicroRows(train=60, validation=7, test=11)


def prepared(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> TranslationData:
    data = TranslationData(**({"micro": MICRO, "batch_size": 4} | settings))
    data.prepare(tokenizer)
    return data


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"id": str(at), "zh": f"中{at}", "bo": f"བོད{at}"} for at in range(count)]


def test_embedded_world_in_both_directions(tokenizer: PreTrainedTokenizerFast) -> None:
    there = prepared(tokenizer)
    back = prepared(tokenizer, source_field="bo", target_field="zh")
    worlds = [corpus.translation(split, count, 0) for split, count in (("train", 60), ("validation", 7), ("test", 11))]
    for one, other, rows in zip(splits(there), splits(back), worlds, strict=True):
        for example, mirrored, row in zip(one, other, rows, strict=True):
            assert (example.id, example.source, example.references) == (row["id"], row["zh"], (row["bo"],))
            assert example.prompt == f"<|user|>翻译成藏文：{row['zh']}<|assistant|>"
            assert (mirrored.source, mirrored.references) == (row["bo"], (row["zh"],))
            assert mirrored.prompt == f"<|user|>翻译成中文：{row['bo']}<|assistant|>"


def test_rows_that_are_shown_before_others_are_not_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    plain, few = prepared(tokenizer), prepared(tokenizer, template=PromptTemplate(shots=2))
    shown = [
        example for example in plain.train_examples if example.source not in {e.source for e in few.train_examples}
    ]
    assert len(shown) == 2
    for before, after in zip(splits(plain), splits(few), strict=True):
        for example in after:
            assert all(f"{one.prompt}{one.reference}" in example.prompt for one in shown)
            assert example.prompt.endswith(next(old.prompt for old in before if old.id == example.id))
    assert plain.test_examples[0].references == few.test_examples[0].references
    with pytest.raises(UserError, match=r"template.shots is 60, but there are 60 training rows; lower it"):
        prepared(tokenizer, template=PromptTemplate(shots=60))


def splits(data: TranslationData) -> list[list[Any]]:
    return [data.train_examples, data.validation_examples, data.test_examples]


def test_world_seed_and_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    other = prepared(tokenizer, micro=MicroRows(train=60, validation=7, test=11, seed=1))
    assert [len(rows) for rows in splits(other)] == [60, 7, 11]
    assert other.test_examples != prepared(tokenizer).test_examples
    with pytest.raises(UserError, match=r"micro.train is 0"):
        MicroRows(train=0)


def test_file_is_divided_alike_in_both_directions(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    source = Source(path=write("pairs.jsonl", pairs(300)))
    shares = Splits(validation_fraction=0.2, test_fraction=0.2)
    there = prepared(tokenizer, source=source, splits=shares)
    back = prepared(tokenizer, source=source, splits=shares, source_field="bo", target_field="zh")
    ids = [[example.id for example in rows] for rows in splits(there)]
    assert ids == [[example.id for example in rows] for rows in splits(back)]
    assert sorted(id for part in ids for id in part) == sorted(str(at) for at in range(300))
    assert min(map(len, ids)) > 30


def test_no_text_is_on_both_sides_of_a_split(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = pairs(200)
    rows += [{"id": f"same-{at}", "zh": f" 中{at}", "bo": f"བོད{at}\n"} for at in range(200)]  # duplicates
    rows += [{"id": f"zh-{at}", "zh": f"中{at}", "bo": f"གཞན{at}"} for at in range(200)]  # another translation
    data = prepared(
        tokenizer,
        source=Source(path=write("pairs.jsonl", rows)),
        splits=Splits(validation_fraction=0.2, test_fraction=0.2),
    )
    texts = [{text for row in part for text in (row.source, row.reference)} for part in splits(data)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    kept = sum(len(part) for part in splits(data))
    shared = sum(data.report[name]["shared_rows"] for name in data.report)
    assert kept + shared == len(rows) and shared > 0
    together = {row.id for row in data.test_examples}
    assert all((f"same-{at}" in together) == (str(at) in together) for at in range(200))


def test_test_file_leaves_the_source_whole_but_for_what_it_shares(
    tokenizer: PreTrainedTokenizerFast, write: Write
) -> None:
    data = prepared(
        tokenizer,
        source=Source(path=write("train.jsonl", pairs(100))),
        test=Source(path=write("test.jsonl", [*pairs(3), {"zh": "新", "bo": "གསར"}])),
        splits=Splits(validation_fraction=0.0),
    )
    assert (len(data.train_examples), len(data.validation_examples), len(data.test_examples)) == (97, 0, 4)
    assert data.report["train"]["shared_rows"] == 3
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("learned", "held_out", "kept"),
    [
        (["ཀ", "ཁ"], ["ཁ"], False),
        (["ཁ"], ["ཀ", "ཁ"], False),
        (["ཀ", "ང", "ཁ"], ["ག", "ཅ", " ཁ\n"], False),
        (["ཀ", "ཤ\u0f73"], ["ཤ\u0f71\u0f72"], False),
        (["ཀ", "新"], ["ཁ"], False),  # what one row translates into, another translates from
        (["ཀ", "ག"], ["ཁ", "ང"], True),
    ],
)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_reference_of_a_held_out_row_is_kept_from_training(
    tokenizer: PreTrainedTokenizerFast, write: Write, split: str, learned: list[str], held_out: list[str], kept: bool
) -> None:
    data = prepared(
        tokenizer,
        source=Source(path=write("train.jsonl", [{"id": "asked", "zh": "旧", "bo": learned}, *pairs(9)])),
        splits=Splits(validation_fraction=0.0, test_fraction=0.0),
        **{split: Source(path=write("held_out.jsonl", [{"zh": "新", "bo": held_out}]))},
    )
    assert ("asked" in {row.id for row in data.train_examples}) == kept
    assert data.report["train"]["shared_rows"] == 1 - kept


def test_embedded_world_lends_a_split_to_a_file(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    data = prepared(tokenizer, source=Source(path=write("train.jsonl", pairs(50))), test=Source(path="micro:test"))
    assert [row.source for row in data.test_examples] == [row["zh"] for row in corpus.translation("test", 11, 0)]
    whole = prepared(tokenizer, source=Source(path=write("train.jsonl", pairs(50))), test=Source(path="micro"))
    assert whole.test_examples == data.test_examples
    pretrain = prepared(tokenizer, source=Source(path="micro:pretrain"), splits=Splits(test_fraction=0.0))
    assert {row.id.split("-")[0] for row in pretrain.train_examples} == {"pretrain"}


def test_aligned_files_and_another_language(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    source = Source(
        path=write("a.zh", "一\n二\n三\n四\n五\n"), target_path=write("a.ug", "بىر\nئىككى\nئۈچ\nتۆت\nبەش\n")
    )
    settings = {"source": source, "target_field": "ug", "splits": Splits(test_fraction=0.0, validation_fraction=0.0)}
    data = prepared(tokenizer, template=PromptTemplate(template="维吾尔文：{source}"), **settings)
    assert data.train_examples[0].prompt == "<|user|>维吾尔文：一<|assistant|>"
    assert data.train_examples[0].reference == "بىر"
    with pytest.raises(UserError, match="target_field is 'tgt', which has no wording"):
        prepared(tokenizer, **{**settings, "target_field": "tgt"})


def test_cold_start_and_rl_share_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    cold, rl = (
        {row.id for row in prepared(tokenizer, splits=Splits(part=part, cold_start_count=20)).train_examples}
        for part in ("cold_start", "rl")
    )
    assert (len(cold), len(rl), len(cold | rl)) == (20, 40, 60)


def test_a_pair_is_one_however_its_letters_are_composed(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    pairs = [(f"Hello friend {at}", f"Ẹ kú àárọ̀ ọ̀rẹ́ {at}") for at in range(60)]
    lines = (f"{en}\t{normalize(form, yo)}" for form in ("NFC", "NFD") for en, yo in pairs)
    source = Source(path=write("pairs.tsv", "\n".join(["en\tyo", *lines]) + "\n"))
    fields = {"source": source, "source_field": "en", "target_field": "yo"}
    cold, rl = (
        {
            row.source
            for row in prepared(tokenizer, splits=Splits(part=part, cold_start_count=40), **fields).train_examples
        }
        for part in ("cold_start", "rl")
    )
    assert cold and rl and not cold & rl


def test_impossible_settings_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="both 'zh'"):
        TranslationData(target_field="zh")
    with pytest.raises(UserError, match=r"\{context\}"):
        TranslationData(template=PromptTemplate(template="{context}{question}"))
    with pytest.raises(UserError, match="batch_size is 0"):
        TranslationData(batch_size=0)
    with pytest.raises(UserError, match="no field 'ug'; its fields are id, zh, bo"):
        prepared(tokenizer, source_field="ug")


def test_what_was_touched_is_reported_and_told_once(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    rows = [*pairs(50), {"zh": "", "bo": "x"}, {"zh": "长" * 500, "bo": "ཀ"}]
    source = Source(path=write("pairs.jsonl", rows), on_bad_row="skip")
    data = TranslationData(
        source=source,
        splits=Splits(validation_fraction=0.0, test_fraction=0.0),
        limits=Limits(max_prompt_tokens=200),
    )
    lines = data.prepare(tokenizer)
    report = data.report["train"]
    assert (report["rows"], report["bad_rows"], report["prompts_skipped"]) == (50, 1, 1)
    assert len(Path(f"{source.path}.skipped.jsonl").read_text().splitlines()) == 1
    assert "zh-bo/train: 50 rows, 1 bad rows skipped, 1 prompts over 200 tokens" in lines[0]
    assert data.prepare(tokenizer) == []
    json.dumps(data.report)


def test_bad_rows_of_what_only_measures_are_told(tokenizer: PreTrainedTokenizerFast, write: Write) -> None:
    source = Source(path=write("test.jsonl", [*pairs(5), {"zh": "", "bo": "x"}]), on_bad_row="skip")
    lines = TranslationData(source=source, splits=Splits(validation_fraction=0, test_fraction=1)).prepare(
        tokenizer, trains=False
    )
    assert f"zh-bo: 1 bad rows skipped, listed in '{source.path}.skipped.jsonl'" in lines


class Listener(LightningModule):
    """Writes down what it is shown."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        self.policy = SimpleNamespace(tokenizer=tokenizer)
        self.epochs: list[list[str]] = []
        self.tested: list[str] = []

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.epochs[-1] += [example.id for example in batch.examples]
        return self.weight(torch.ones(1)).sum()

    def validation_step(self, batch: Any, _: int) -> None: ...

    def test_step(self, batch: Any, _: int) -> None:
        self.tested += [example.id for example in batch.examples]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def test_a_trainer_draws_another_order_each_epoch_and_the_same_each_run(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def run(seed: int) -> Listener:
        module = Listener(tokenizer)
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        data = TranslationData(micro=MICRO, batch_size=8, seed=seed)
        trainer.fit(module, datamodule=TrainerData(data))
        trainer.test(module, datamodule=TrainerData(data), verbose=False)
        return module

    one, same, other = run(0), run(0), run(1)
    assert one.epochs == same.epochs
    assert one.epochs[0] != one.epochs[1]
    assert one.epochs[0] != other.epochs[0]
    assert [len(set(ids)) for ids in one.epochs] == [56, 56]  # whole batches of 60 rows
    assert one.tested == [f"test-{at}" for at in range(11)]


@pytest.mark.parametrize(
    ("source", "target", "asked"),
    [
        ("en", "pcm", "Translate into Nigerian Pidgin: {source}"),
        ("ru", "kk-Cyrl", "Translate into Kazakh: {source}"),
        ("zh", "ug", "翻译成维吾尔语：{source}"),
        ("en", "bo", "翻译成藏文：{source}"),
    ],
)
def test_any_language_has_a_wording(source: str, target: str, asked: str) -> None:
    assert TranslationData(source_field=source, target_field=target).plan.task.template == asked
