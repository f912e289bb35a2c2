"""Batches are padded on the right side of the text, end in one EOS, and come in an order that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from forks import Fork, script
from lsemrl.data.collate import encode
from lsemrl.data.loaders import eval_loader, train_loader
from lsemrl.data.loading import Loading
from lsemrl.data.samplers import epoch_sampler
from lsemrl.data.tokens import complete_tokenizer
from lsemrl.types import Example, UserError

Make = Callable[..., PreTrainedTokenizerFast]


def example(prompt: str, *references: str) -> Example:
    return Example(id=prompt, prompt=prompt, source=prompt, references=references or ("ཀ",))


def loading(**settings: int) -> Loading:
    return Loading(**({"batch_size": 4, "eval_batch_size": 3, "seed": 0, "num_workers": 0} | settings))


def test_prompts_are_padded_on_the_left_and_targets_on_the_right(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [example("<|user|>你<|assistant|>", "དེབ་ཉོས།", "other"), example("<|user|>你好你好<|assistant|>", "ཀ")]
    batch = encode(tokenizer, rows)
    assert batch.examples == tuple(rows)
    for at, row in enumerate(rows):
        prompt = batch.prompt_ids_BP[at, batch.prompt_mask_BP[at]]
        target = batch.target_ids_BT[at, batch.target_mask_BT[at]]
        assert tokenizer.decode(prompt) == row.prompt
        assert tokenizer.decode(target) == row.reference + "<|end|>"
        assert batch.prompt_mask_BP[at].tolist() == sorted(batch.prompt_mask_BP[at].tolist())
        assert batch.target_mask_BT[at].tolist() == sorted(batch.target_mask_BT[at].tolist(), reverse=True)
    assert batch.prompt_mask_BP.dtype == torch.bool
    assert batch.prompt_ids_BP.dtype == torch.int64
    assert (batch.prompt_ids_BP[~batch.prompt_mask_BP] == tokenizer.pad_token_id).all()
    assert (batch.target_ids_BT[~batch.target_mask_BT] == tokenizer.pad_token_id).all()


def test_target_that_quotes_the_eos_has_one_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = encode(tokenizer, [example("p", "a<|end|>b")])
    assert (batch.target_ids_BT == tokenizer.eos_token_id).sum() == 1
    assert batch.target_ids_BT[0, -1] == tokenizer.eos_token_id
    assert tokenizer.decode(batch.target_ids_BT[0, :-1]) == "a<|end|>b"
    # ... and reading it so leaves the tokenizer as it was.
    assert (encode(tokenizer, [example("<|user|>")]).prompt_ids_BP.shape) == (1, 1)


def test_pad_that_is_the_eos_leaves_the_eos_active(make_tokenizer: Make) -> None:
    batch = encode(make_tokenizer(pad_token="<|end|>"), [example("a", "xyz"), example("b", "x")])
    assert batch.target_mask_BT.sum(1).tolist() == [len(row) + 1 for row in ("xyz", "x")]


def test_a_tokenizer_without_pad_pads_with_its_eos(make_tokenizer: Make) -> None:
    lacking = make_tokenizer(pad_token=None)
    batch = encode(lacking, [example("abc", "xyz"), example("b", "x")])
    assert lacking.pad_token_id == lacking.eos_token_id
    with_pad = encode(make_tokenizer(), list(batch.examples))
    for ids, mask in (("prompt_ids_BP", "prompt_mask_BP"), ("target_ids_BT", "target_mask_BT")):
        assert torch.equal(getattr(batch, mask), getattr(with_pad, mask))
        assert torch.equal(getattr(batch, ids)[getattr(batch, mask)], getattr(with_pad, ids)[getattr(with_pad, mask)])


def test_a_tokenizer_without_eos_takes_what_the_model_declares_or_is_refused(make_tokenizer: Make) -> None:
    lacking = make_tokenizer(eos_token=None)
    with pytest.raises(UserError, match="has no EOS token, and its model's configuration names none; add eos_token"):
        encode(lacking, [example("a")])
    with pytest.raises(UserError, match="has no EOS token"):
        complete_tokenizer(lacking, [10**6, -1])
    complete_tokenizer(lacking, [10**6, 1])
    assert lacking.eos_token == "<|end|>"
    assert encode(lacking, [example("a", "x")]).target_ids_BT[0, -1] == 1
    plain = make_tokenizer(eos_token=None)
    plain.add_tokens(["<|eot|>"])
    complete_tokenizer(plain, [len(plain) - 1])
    assert (encode(plain, [example("a", "x<|eot|>y")]).target_ids_BT == len(plain) - 1).tolist()[0].count(True) == 1


def orders(seed: int, epochs: int = 2) -> list[list[int]]:
    sampler = epoch_sampler(10, seed)
    drawn = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


def test_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = orders(0)
    torch.manual_seed(2)
    assert orders(0) == first
    assert len({tuple(order) for seed in (0, 1, 2) for order in orders(seed)}) == 6
    assert all(sorted(order) == list(range(10)) for order in first)


def test_training_has_whole_batches_and_evaluation_every_row(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [example(str(at)) for at in range(10)]
    loader = train_loader(tokenizer, rows, epoch_sampler(10, 0), loading())
    assert [len(batch.examples) for batch in loader] == [4, 4]
    batches = list(eval_loader(tokenizer, rows, loading()))
    assert [row.id for batch in batches for row in batch.examples] == [row.id for row in rows]
    assert eval_loader(tokenizer, [], loading()) == []


def test_loading_draws_nothing_from_the_global_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    list(train_loader(tokenizer, [example("a")] * 4, epoch_sampler(4, 0), loading()))
    assert torch.rand(1) == expected


def test_fewer_rows_than_a_batch(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="batch_size is 4, but there are 3 training rows"):
        train_loader(tokenizer, [example("a")] * 3, epoch_sampler(3, 0), loading())


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "num_workers", "seed"])
def test_impossible_loading_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is -1"):
        loading(**{name: -1})


DYING = """
import multiprocessing, os, signal, sys
from pathlib import Path
from lsemrl.data.loaders import ResumableLoader

multiprocessing.set_start_method("fork")  # by Python 3.14's own, workers import what they do, and this is no module

class Rows:
    def __len__(self):
        return 8

    def __getitem__(self, row):
        marker = Path(sys.argv[1])
        if row == 5 and (sys.argv[2] == "always" or not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row

print([row for batch in ResumableLoader(Rows(), batch_size=2, num_workers=1) for row in batch.tolist()])
"""


@pytest.mark.parametrize("dies", ["once", "always"])
def test_a_worker_that_dies_is_replaced_once(dies: str, tmp_path: Path) -> None:
    # In a process of its own, whose signals are its own.
    done = Fork([DYING, str(tmp_path / "marker"), dies], script).end()
    assert "a data worker died" in done.stderr
    if dies == "once":
        assert done.stdout.strip() == str(list(range(8)))
    else:
        assert done.returncode == 1
