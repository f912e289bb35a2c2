"""Replay keeps its share in every stretch of training, and touches neither validation nor test."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lsemrl.data import samplers
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.mixed import MixedData, Shared
from lsemrl.data.samplers import ReplaySampler
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.types import UserError


def mixed(share: float = 0.25, seed: int = 0) -> MixedData:
    return MixedData(
        main=TranslationData(micro=MicroRows(train=60, validation=3, test=5), batch_size=8, seed=seed),
        replay=ComprehensionData(micro=MicroRows(train=7, validation=2, test=2), batch_size=99),
        replay_share=share,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    main=st.integers(1, 80),
    replay=st.integers(1, 30),
    share=st.sampled_from([0.01, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9]),
    epoch=st.integers(0, 3),
)
def test_sampler_keeps_the_share_in_every_stretch(main: int, replay: int, share: float, epoch: int) -> None:
    sampler = ReplaySampler(main=main, others=[(replay, share)], seed=0)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(sampler) == len(order)
    assert sorted(at for at in order if at < main) == list(range(main))
    replayed = [at - main for at in order if at >= main]
    for turn in range(0, len(replayed), replay):  # no row twice before all came once
        assert len(set(replayed[turn : turn + replay])) == len(replayed[turn : turn + replay])
    assert all(0 <= at < replay for at in replayed)
    for size in (5, 16):
        for start in range(0, len(order) - size + 1):
            count = sum(at >= main for at in order[start : start + size])
            assert abs(count - share * size) <= 1


def test_several_kinds_keep_their_shares() -> None:
    sampler = ReplaySampler(main=40, others=[(7, 0.3), (5, 0.2)], seed=0)
    order = list(sampler)
    assert len(sampler) == len(order) == 80 and sorted(at for at in order if at < 40) == list(range(40))
    for start in range(0, len(order) - 10):
        stretch = order[start : start + 10]
        assert abs(sum(40 <= at < 47 for at in stretch) - 3) <= 1 and abs(sum(47 <= at < 52 for at in stretch) - 2) <= 1
    assert max(order) < 52


def test_several_files_are_mixed_by_share(tokenizer: PreTrainedTokenizerFast, write: Callable[..., str]) -> None:
    def rows(name: str, count: int) -> TranslationData:
        path = write(f"{name}.jsonl", [{"zh": f"{name}{at}", "bo": f"བོད{name}{at}"} for at in range(count)])
        return TranslationData(Source(path=path), splits=Splits(validation_fraction=0, test_fraction=0), batch_size=10)

    data = MixedData(rows("a", 50), rows("b", 9), 0.3, [Shared(data=rows("c", 4), share=0.2)])
    assert (
        "50 main rows, and 30% of every batch from 9 replay rows, 20% of every batch from 4"
        in data.prepare(tokenizer)[-1]
    )
    assert {"replay", "replay_2"} < data.report.keys()
    for batch in data.train_dataloader():
        drawn = Counter(example.source[0] for example in batch.examples)
        assert (drawn["a"], drawn["b"], drawn["c"]) == (5, 3, 2)
    with pytest.raises(UserError, match=r"replay_share and more\.0\.share come to 1\.1; lower them"):
        MixedData(rows("a", 1), rows("b", 1), 0.5, [Shared(data=rows("c", 1), share=0.6)])


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_batches_over_ranks_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """Whatever their number, with fewer rows of a kind than ranks too; so that each can go on where others stopped."""

    def orders(replicas: int) -> list[list[int]]:
        found = []
        for rank in range(replicas):
            monkeypatch.setattr(samplers, "_rank_and_replicas", lambda rank=rank: (rank, replicas))
            sampler = ReplaySampler(main=61, others=[(7, 0.2), (5, 0.1)], seed=3)
            sampler.set_epoch(1)
            found.append(list(sampler))
            assert len(sampler) == len(found[-1])
        return found

    (whole,) = orders(1)
    assert [row for rows in zip(*orders(ranks), strict=True) for row in rows] == whole[: len(whole) // ranks * ranks]


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = ReplaySampler(main=30, others=[(10, 0.3)], seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed, epoch in itertools.product(range(2), range(3))}) == 6


def test_the_order_is_told_by_the_fields_that_it_follows_from() -> None:
    data = MixedData(*(TranslationData(seed=at) for at in (3, 4)), 0.3, [Shared(data=TranslationData(), share=0.2)])
    assert data.ordered_by == {"data.main.seed": 3, "data.replay_share": 0.3, "data.more.0.share": 0.2}


def test_batches_mix_and_evaluation_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    data = mixed()
    data.prepare(tokenizer)
    batches = list(data.train_dataloader())
    assert data.batch_size == 8
    assert len(batches) == 10  # 60 main rows and 20 replay rows
    for batch in batches:
        assert len(batch.examples) == 8
        assert sum("问题：" in example.prompt for example in batch.examples) == 2
    assert len(data.train_examples) == 67
    assert data.validation_examples == data.main.validation_examples
    assert [len(batch.examples) for batch in data.val_dataloader()] == [3]
    assert [len(batch.examples) for batch in data.test_dataloader()] == [5]
    assert (data.report["train"]["rows"], data.report["replay"]["rows"], data.report["test"]["rows"]) == (60, 7, 5)


def test_replay_does_not_teach_what_is_held_out(tokenizer: PreTrainedTokenizerFast, write: Callable[..., str]) -> None:
    rows = [{"id": str(at), "zh": f"中{at}", "bo": [f"བོད{at}", f"ཡང{at}"]} for at in range(60)]
    back = [{"id": str(at), "bo": f"ཡང{at}", "zh": f"别{at}"} for at in range(60)]
    data = MixedData(
        main=TranslationData(Source(path=write("there.jsonl", rows)), batch_size=4),
        replay=TranslationData(
            Source(path=write("back.jsonl", back)), "bo", "zh", splits=Splits(validation_fraction=0, test_fraction=0)
        ),
    )
    data.prepare(tokenizer)
    held_out = {text for row in (*data.validation_examples, *data.test_examples) for text in row.references}
    assert held_out and not held_out & {row.source for row in data.replay.train_examples}
    assert data.report["replay"]["shared_rows"] == len(held_out) / 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_impossible_share(share: float) -> None:
    with pytest.raises(UserError, match=f"replay_share is {share}"):
        mixed(share)


def test_module_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="replay is MixedData, which cannot be mixed"):
        MixedData(main=TranslationData(), replay=mixed(0.5))
