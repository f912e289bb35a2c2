"""The anchor: what it adds to a step, which rows stand beside it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsemrl.data.rehearsal import digest_of, identity_path, likeliest_path, read_rehearsal
from lsemrl.modules.anchor import Anchor
from lsemrl.modules.anchor_settings import AnchorSettings
from lsemrl.modules.packing import micro_batches
from lsemrl.modules.policy import Policy
from lsemrl.types import UserError
from matrix import slow_but
from own_text import write_own_text
from short_runs import At, Stop, grpo, metrics, run, sft, stop, trained
from tiny import make_policy, plain_logits, save_tiny_model

CPU = torch.device("cpu")
ROW = {"prompt": "a", "response": "b", "prompt_ids": [1], "given": 0, "answer_ids": [1]}


@pytest.fixture(scope="module")
def own_text(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_text(tmp_path_factory.mktemp("own") / "own.jsonl", tiny_model)


def settings(own_text: Path, **changes: Any) -> AnchorSettings:
    return AnchorSettings(**{"path": str(own_text), "coefficient": 0.5, "rows": 3, **changes})


def mean_divergence(policy: Policy, anchor: Anchor, step: int, numbers: list[int] | None = None) -> Tensor:
    """By the models' own logits, each row by itself, in float64."""
    sequences, _ = anchor.beside(step, 0, 1, CPU)
    mask_NT = sequences.completion_mask_NT
    q_MV = plain_logits(policy.model, sequences)[mask_NT].double().log_softmax(-1)
    with policy.base():
        p_MV = plain_logits(policy.model, sequences)[mask_NT].double().log_softmax(-1)
    return (p_MV.exp() * (p_MV - q_MV)).sum(-1).mean()


@pytest.mark.parametrize("field", dataclasses.fields(AnchorSettings), ids=lambda field: field.name)
def test_no_field_is_another_word_to_yaml(field: dataclasses.Field) -> None:
    """As `on` is, which it reads as true."""
    assert yaml.safe_load(field.name) == field.name


@pytest.mark.parametrize("held", ["answer", "all"])
def test_loss_and_gradient_are_a_coefficient_times_the_mean_over_tokens(
    held: str, tiny_model: str, own_text: Path
) -> None:
    policy = make_policy(tiny_model)
    anchor = Anchor(settings(own_text, held=held))
    sequences, numbers = anchor.beside(2, 0, 1, CPU)
    tokens = int(sequences.completion_mask_NT.sum())
    loss_of = anchor.loss(policy, numbers, tokens)
    found = 0.0
    for batch in micro_batches(
        sequences, torch.arange(len(sequences)), 20, share=True
    ):  # in several, whose shares add up
        loss, metrics = loss_of(batch)
        loss.backward()
        found += float(metrics["anchor/kl"])
    gradients = {name: weight.grad.clone() for name, weight in policy.trained().items() if weight.grad is not None}
    policy.zero_grad()
    wanted = mean_divergence(policy, anchor, 2)
    (0.5 * wanted).backward()
    assert found == pytest.approx(float(wanted), rel=1e-4) and found > 1e-3
    for name, weight in policy.trained().items():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-6)


def test_the_likeliest_tokens_that_were_kept_need_no_base(tiny_model: str, own_text: Path) -> None:
    policy = make_policy(tiny_model)
    found = {}
    for top_k in (0, 1, 8):
        anchor = Anchor(settings(own_text, top_k=top_k))
        sequences, numbers = anchor.beside(0, 0, 1, CPU)
        if top_k:
            policy.base = None  # type: ignore[assignment, method-assign]
        loss_of = anchor.loss(policy, numbers, int(sequences.completion_mask_NT.sum()))
        batches = micro_batches(sequences, torch.arange(len(sequences)), 4096, share=True)
        found[top_k] = sum(float(loss_of(batch)[1]["anchor/kl"]) for batch in batches)
        policy.__dict__.pop("base", None)
    assert 0 < found[1] < found[8] <= found[0] + 1e-5


def test_every_row_comes_once_before_any_comes_again_whatever_the_ranks(own_text: Path) -> None:
    anchor = Anchor(settings(own_text))
    alone = [anchor.beside(step, 0, 1, CPU)[1] for step in range(14)]
    dealt = [number for numbers in alone for number in numbers]
    assert [sorted(dealt[at : at + 7]) for at in range(0, 42, 7)] == [list(range(7))] * 6
    assert dealt[:7] != dealt[7:14]
    for step, numbers in enumerate(alone):
        shares = [anchor.beside(step, rank, 2, CPU)[1] for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == sorted(numbers) and len(shares[0]) == 2
    none, numbers = anchor.beside(0, 3, 4, CPU)
    assert numbers == [] and len(none) == 1  # a rank more than rows passes through one that counts nothing


def test_with_a_coefficient_of_0_nothing_is_read(tiny_model: str, tmp_path: Path) -> None:
    without = run(sft(tiny_model), tmp_path / "without")
    module = sft(tiny_model, anchor=settings(tmp_path / "nowhere.jsonl", coefficient=0.0))
    run(module, tmp_path / "with")
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    assert all(torch.equal(weight, trained(without)[name]) for name, weight in trained(module).items())


@pytest.mark.slow
def test_memory_is_counted_for_the_longest_rows_too(tiny_model: str, tmp_path: Path) -> None:
    path = write_own_text(tmp_path / "own.jsonl", tiny_model, prompt_tokens=200)
    lengths = sorted(len(row.prompt_ids) + len(row.answer_ids) for row in read_rehearsal(path))
    plain, anchored = (
        run(grpo(tiny_model), tmp_path / "plain"),
        run(grpo(tiny_model, settings(path)), tmp_path / "held"),
    )
    [batch] = anchored.held_batches()
    assert batch.slots >= sum(lengths[-3:])
    assert plain.held_batches() == [] and anchored.estimate.updating > 2 * plain.estimate.updating


@pytest.mark.parametrize("make", slow_but([sft, grpo], [sft]))
def test_an_anchored_policy_stays_nearer_to_its_base_and_says_how_near(
    make: Any, tiny_model: str, own_text: Path, tmp_path: Path
) -> None:
    found = {}
    for coefficient in (1e-6, 20.0):
        module = make(tiny_model, anchor=settings(own_text, coefficient=coefficient, rows=7))
        run(module, tmp_path / str(coefficient))
        rows = [row for row in metrics(tmp_path / str(coefficient)) if row["anchor/kl"]]
        found[coefficient] = float(rows[-1]["anchor/kl"])
        assert {float(row["anchor/tokens"]) for row in rows} == {
            float(sum(len(row.answer_ids) for row in read_rehearsal(own_text)))
        }
        assert "timing/anchor" in (tmp_path / str(coefficient) / "metrics.csv").read_text().splitlines()[0]
    assert found[20.0] < found[1e-6] / 2


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_rows_to_the_same_bits(
    tiny_model: str, own_text: Path, tmp_path: Path
) -> None:
    anchor = settings(own_text)
    whole = run(grpo(tiny_model, anchor=anchor), tmp_path / "whole")
    with pytest.raises(Stop):
        run(grpo(tiny_model, anchor=anchor), tmp_path / "part", At(5, stop))
    again = run(grpo(tiny_model, anchor=anchor), tmp_path / "part", resume=str(tmp_path / "part/checkpoints/step_3"))
    assert all(torch.equal(weight, trained(whole)[name]) for name, weight in trained(again).items())
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    changed = write_own_text(tmp_path / "other.jsonl", tiny_model, rows=9)
    with pytest.raises(UserError, match=r"model\.anchor\.path is not what it was when"):
        module = grpo(tiny_model, anchor=settings(changed))
        run(module, tmp_path / "part", resume=str(tmp_path / "part/checkpoints/step_6"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"coefficient": -1.0}, "coefficient is -1.0; it must be 0 or more"),
        ({"coefficient": float("nan")}, "coefficient is nan"),
        ({"rows": 0}, "rows is 0; it must be 1 or more"),
        ({"rows": 8}, "rows is 8, but .* has 7"),
        ({"top_k": 9}, "top_k is 9, but 8 tokens were kept"),
        ({"top_k": 2, "held": "all"}, "held is all and top_k is above 0"),
        ({"path": "nowhere.jsonl"}, "identity.json' beside it cannot be read"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], says: str, own_text: Path) -> None:
    with pytest.raises(UserError, match=says):
        Anchor(settings(own_text, **changes))


def test_text_of_another_base_is_refused(tiny_model: str, own_text: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=3)
    with pytest.raises(UserError, match=r"wrote, another base than policy\.model '[^']*'; write one"):
        run(sft(str(other), anchor=settings(own_text)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("\n\n{torn", r":3 is no row of rehearsal text"),
        (json.dumps({"prompt": "a"}), r":1 is no row of rehearsal text \('response'\)"),
        (
            json.dumps({"prompt": "a", "response": "b", "prompt_ids": [1], "given": 2, "answer_ids": [1]}),
            "more that were",
        ),
        (json.dumps({"prompt": "a", "response": "b", "prompt_ids": [-1], "given": 0, "answer_ids": [1]}), "no list of"),
        ("", "holds no rows"),
    ],
)
def test_rows_that_are_none_are_told(line: str, says: str, own_text: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line)
    identity_path(path).write_text(identity_path(own_text).read_text())
    with pytest.raises(UserError, match=says):
        Anchor(settings(path))
    assert not likeliest_path(path).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda ids, logprobs: (ids[:-1], logprobs[:-1]),
        lambda ids, logprobs: (ids.float(), logprobs),
        lambda ids, logprobs: (-ids - 1, logprobs),
        lambda ids, logprobs: (torch.zeros_like(ids), logprobs),
        lambda ids, logprobs: (ids, logprobs + 3),
        lambda ids, logprobs: (ids, logprobs * torch.nan),
    ],
)
def test_likeliest_tokens_that_are_none_are_refused(change: Any, own_text: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    for place in (lambda at: at, identity_path):
        place(path).write_bytes(place(own_text).read_bytes())
    kept = load_file(likeliest_path(own_text))
    ids, logprobs = change(kept["ids"], kept["logprobs"])
    changed = {"ids": ids.contiguous(), "logprobs": logprobs.contiguous()}
    save_file(changed, likeliest_path(path), {"text": digest_of(path)})
    with pytest.raises(UserError, match=r"safetensors' is not of .*, or write the text again"):
        Anchor(settings(path, top_k=4))


def test_rows_in_another_order_are_not_held_to_the_likeliest_tokens_of_others(own_text: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    for place in (identity_path, likeliest_path):
        place(path).write_bytes(place(own_text).read_bytes())
    path.write_text("".join(reversed(own_text.read_text().splitlines(keepends=True))))
    Anchor(settings(path))
    with pytest.raises(UserError, match=r"is not of '.*own\.jsonl' as it is now; set model\.anchor\.top_k to 0"):
        Anchor(settings(path, top_k=4))


def test_tokens_beyond_the_vocabulary_are_refused_at_the_start(own_text: Path, tiny_model: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    for place in (lambda at: at, identity_path):
        place(path).write_bytes(place(own_text).read_bytes())
    kept = load_file(likeliest_path(own_text))
    kept["ids"][0, 0] = 10_000_000
    save_file(kept, likeliest_path(path), {"text": digest_of(path)})
    with pytest.raises(UserError, match="has tokens that the policy lacks"):
        run(sft(tiny_model, anchor=settings(path, top_k=4)), tmp_path / "run")


def test_after_full_fine_tuning_a_base_that_is_not_kept_is_told_at_the_start(
    own_text: Path, tiny_model: str, tmp_path: Path
) -> None:
    whole = {"train": "full", "reference": "none"}
    with pytest.raises(UserError, match="full fine-tuning kept no copy of the base"):
        run(sft(tiny_model, anchor=settings(own_text), **whole), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(sft(tiny_model, anchor=settings(own_text, top_k=4), **whole), tmp_path / "kept")


@pytest.mark.parametrize(("top_k", "kept"), [(0, True), (4, False)])
def test_full_fine_tuning_keeps_the_base_where_it_is_computed(
    top_k: int, kept: bool, own_text: Path, tiny_model: str
) -> None:
    module = sft(tiny_model, anchor=settings(own_text, top_k=top_k), train="full")
    module.policy.load()
    assert (module.policy.reference_model is not None) == kept
