"""Attention piece by piece is attention of the whole row."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lsemrl.modules import apart
from lsemrl.modules.apart import additive, attend, pieces
from lsemrl.modules.packing import Packed, pack
from lsemrl.modules.policy import Policy
from lsemrl.types import PromptBatch, Sequences
from tiny import make_policy

LENGTHS = [[4, 1, 6], [1, 1, 1], [2, 5, 3]]  # of completions; the last token of each is not fed
PROMPTS = [5, 3, 1]
MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True)


def sequences(prompts: list[int], lengths: list[list[int]]) -> Sequences:
    flat = torch.tensor(lengths).flatten()
    mask_BP = torch.arange(max(prompts)) >= max(prompts) - torch.tensor(prompts)[:, None]
    mask_NT = torch.arange(int(flat.max())) < flat[:, None]
    return Sequences(
        prompt_ids_BP=torch.randint(1, 90, mask_BP.shape),
        prompt_mask_BP=mask_BP,
        prompt_of_N=torch.arange(len(prompts)).repeat_interleave(len(lengths[0])),
        completion_ids_NT=torch.randint(1, 90, mask_NT.shape),
        completion_mask_NT=mask_NT,
    )


def computed(packed: Packed, window: int | None, *, whole: bool) -> list[Tensor]:
    """Outputs at all places but padding, and the gradients of queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    rows, length = packed.ids_BL.shape
    states = [torch.randn(rows, heads, length, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    mask = additive(packed.mask(window), torch.float32)
    if not whole:
        mask.pieces = pieces(packed, torch.float32, window)
    output_BLHD, _ = attend(MODULE, *states, mask, dropout=0.0, scaling=0.3)
    assert output_BLHD.shape == (rows, length, 4, 8)
    found = output_BLHD[packed.segments_BL >= 0]
    (found * torch.randn(found.shape, generator=generator)).sum().backward()
    return [found, *(each.grad for each in states)]


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [0], [2]])
def test_pieces_make_the_whole(window: int | None, order: list[int]) -> None:
    packed = pack(sequences([PROMPTS[at] for at in order], [LENGTHS[at] for at in order]))
    assert packed.shared
    for one, other in zip(*(computed(packed, window, whole=whole) for whole in (True, False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
def test_pieces_of_prompts_behind_a_prefix_make_the_whole(window: int | None) -> None:
    alike = sequences([5, 3, 4], [[4], [1], [6]])
    for prompt, length in enumerate((5, 3, 4)):
        alike.prompt_ids_BP[prompt, 5 - length : 8 - length] = torch.tensor([7, 8, 9])
    packed = pack(replace(alike, prefix=3))
    assert packed.shared and len(packed.ids_BL) == 1
    for one, other in zip(*(computed(packed, window, whole=whole) for whole in (True, False)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_mixed_precision_gradients_are_those_of_the_whole() -> None:
    packed = pack(sequences(PROMPTS, LENGTHS))
    found = []
    for whole in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(computed(packed, None, whole=whole))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.05)


def test_what_is_dropped_by_chance_is_dropped_from_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, asked = pack(sequences(PROMPTS, LENGTHS)), list[Tensor]()
    mask = additive(packed.mask(), torch.float32)
    mask.pieces = pieces(packed, torch.float32)
    plain = apart.sdpa_attention_forward

    def watched(module: object, query: Tensor, *states: Tensor, **settings: object) -> object:
        asked.append(states[-1])
        return plain(module, query, *states, **settings)

    monkeypatch.setattr(apart, "sdpa_attention_forward", watched)
    states = [torch.randn(3, heads, packed.ids_BL.shape[1], 8) for heads in (4, 2, 2)]
    attend(MODULE, *states, mask, dropout=0.5, scaling=0.3)
    assert len(asked) == 1 and asked[0] is mask


def test_completions_of_like_length_go_together() -> None:
    assert apart._alike([7, 30, 5, 6, 7, 29, 1]) == [[6], [2, 3, 0, 4], [5, 1]]
    assert apart._alike([8] * 5) == [[0, 1, 2, 3, 4]]
    lengths = torch.randint(1, 400, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = apart._alike(lengths)
    assert sorted(row for group in groups for row in group) == list(range(60)) and len(groups) < 12
    for group in groups:
        own = [lengths[row] for row in group]
        assert max(own) * len(own) <= apart._SPREAD * sum(own)


def test_completions_of_one_token_leave_plain_causality() -> None:
    assert not pack(sequences([3, 2], [[1, 1], [1, 1]])).shared
    assert not pack(sequences([3, 2], [[4], [2]])).shared


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layer_of_a_policy_computes_by_it(
    tiny_model: str, prompts: PromptBatch, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model, gradient_checkpointing=checkpointing)
    rows = prompts.sequences
    group = Sequences(
        prompt_ids_BP=rows.prompt_ids_BP,
        prompt_mask_BP=rows.prompt_mask_BP,
        prompt_of_N=rows.prompt_of_N.repeat_interleave(3),
        completion_ids_NT=rows.completion_ids_NT.repeat_interleave(3, dim=0),
        completion_mask_NT=rows.completion_mask_NT.repeat_interleave(3, dim=0),
    )

    def learned(policy: Policy) -> dict[str, Tensor]:
        policy.model.zero_grad()
        policy.logprobs(group)[0].sum().backward()
        return {name: weight.grad.clone() for name, weight in policy.trained().items()}

    found = learned(policy)
    plain, queries = apart.sdpa_attention_forward, list[int]()

    def watched(module: object, query: Tensor, *states: object, **settings: object) -> object:
        queries.append(len(query))
        return plain(module, query, *states, **settings)

    monkeypatch.setattr(apart, "sdpa_attention_forward", watched)
    learned(policy)
    forwards = 3 if checkpointing else 2  # one of them on the way back, one to make a layer again
    short, long = 3, 6  # the three of the short reference, and those of two that are about as long as each other
    assert queries == [len(rows.prompt_ids_BP), short, long] * policy.model.config.num_hidden_layers * forwards
    monkeypatch.setattr("lsemrl.modules.forward.pieces", lambda *packed: None)
    for name, gradient in learned(policy).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
