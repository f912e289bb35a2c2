"""Packed rows: who sees whom, where tokens are predicted, and how rows are dealt."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsemrl.modules.packing import MAX_PADDING, micro_batches, pack, shared_prefix
from lsemrl.types import Sequences

PAD = 99


def make(prompts: list[int], completions: list[tuple[int, int]], alike: int = 0) -> Sequences:
    """Prompts of the given lengths; completions as (prompt, length). Every token is a number of its own.

    Or of all prompts the first `alike` are the same, as far as they go.
    """
    numbers = iter(range(100, 10_000))
    prompt_mask = torch.zeros(len(prompts), max(prompts), dtype=torch.bool)
    for row, length in enumerate(prompts):
        prompt_mask[row, max(prompts) - length :] = True
    width = max(1, *(length for _, length in completions), 1)
    mask = torch.zeros(len(completions), width, dtype=torch.bool)
    for row, (_, length) in enumerate(completions):
        mask[row, :length] = True

    def fill(mask: Tensor) -> Tensor:
        return torch.tensor([[next(numbers) if real else PAD for real in row] for row in mask.tolist()])

    prompt_ids = fill(prompt_mask)
    place = prompt_mask.cumsum(dim=1)
    return Sequences(
        prompt_ids_BP=torch.where(prompt_mask & (place <= alike), place, prompt_ids),
        prompt_mask_BP=prompt_mask,
        prompt_of_N=torch.tensor([prompt for prompt, _ in completions]),
        completion_ids_NT=fill(mask),
        completion_mask_NT=mask,
    )


def test_a_row_by_hand() -> None:
    sequences = make([2, 1], [(0, 3), (0, 1), (0, 2), (1, 2)])
    (p, q), (r,) = (sequences.prompt_ids_BP[row][sequences.prompt_mask_BP[row]].tolist() for row in (0, 1))
    (a, b, c), (d,), (e, f), (g, h) = (
        sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]].tolist() for row in range(4)
    )
    packed = pack(sequences)
    assert packed.ids_BL.tolist() == [[p, q, a, b, e], [r, g, 0, 0, 0]]
    assert packed.positions_BL.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert packed.segments_BL.tolist() == [[0, 0, 1, 1, 3], [0, 1, -1, -1, -1]]
    assert packed.targets_M.tolist() == [a, b, c, d, e, f, g, h]
    #                                     q  a  b  q  q  e   r  g
    assert packed.sources_M.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]
    assert packed.lengths == [3, 1, 2, 2]
    assert packed.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert packed.mask().any(dim=-1).all(), "a query that sees nothing is NaN"


def test_without_siblings_the_mask_is_of_padding_only() -> None:
    assert pack(make([2, 1], [(0, 3), (1, 1)])).mask().tolist() == [[True] * 4, [True, False, False, False]]


def test_repeated_gives_every_completion_its_prompt() -> None:
    sequences = make([2, 3], [(0, 1), (1, 2), (1, 1)])
    repeated = sequences.repeated
    assert torch.equal(repeated.prompt_ids_BP, sequences.prompt_ids_BP[[0, 1, 1]])
    assert repeated.prompt_of_N.tolist() == [0, 1, 2]
    assert torch.equal(repeated.repeated.prompt_ids_BP, repeated.prompt_ids_BP)


def test_select_takes_the_prompts_along_and_drops_padding() -> None:
    sequences = make([4, 2, 3], [(0, 5), (1, 1), (1, 2), (2, 2)])
    chosen = sequences.select([[2, 1], [3]])
    assert chosen.prompt_ids_BP.shape == (2, 3)
    assert torch.equal(chosen.prompt_ids_BP, sequences.prompt_ids_BP[1:, 1:])
    assert torch.equal(chosen.completion_ids_NT, sequences.completion_ids_NT[[2, 1, 3], :2])
    assert chosen.prompt_of_N.tolist() == [0, 0, 1]


@st.composite
def batches(draw: st.DrawFn) -> Sequences:
    prompts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    most = draw(st.sampled_from([1, 4]))
    groups = [draw(st.lists(st.integers(0, 9), min_size=1, max_size=most)) for _ in prompts]
    completions = [(prompt, length) for prompt, group in enumerate(groups) for length in group]
    return make(prompts, completions, alike=draw(st.integers(0, 12)))


@settings(max_examples=60, deadline=None)
@given(sequences=batches(), max_tokens=st.integers(1, 60), share=st.booleans())
def test_dealing_loses_nothing_and_keeps_to_its_budget(sequences: Sequences, max_tokens: int, share: bool) -> None:
    rows = torch.arange(len(sequences))
    dealt = micro_batches(sequences, rows, max_tokens, share=share)
    seen = sorted(row for batch in dealt for row in batch.rows.tolist())
    assert seen == rows[sequences.completion_mask_NT.any(dim=1)].tolist()
    values_NT = torch.arange(sequences.completion_mask_NT.numel()).view(sequences.completion_mask_NT.shape)
    for batch in dealt:
        packed = pack(batch.sequences)
        assert packed.ids_BL.numel() == batch.slots
        assert int((packed.segments_BL >= 0).sum()) == batch.tokens
        assert batch.tokens >= (1 - MAX_PADDING) * batch.slots
        assert batch.slots <= max_tokens or len(packed.ids_BL) == 1
        assert len(packed.ids_BL) == batch.packed_rows
        completions = [set(row.tolist()) - {-1, 0} for row in packed.segments_BL]
        assert packed.shared or max(map(len, completions)) < 2
        assert not packed.shared or len(batch.rows) > len(packed.ids_BL)
        if not share:
            assert not packed.shared
        # Per-token values of the whole meet the tokens they belong to.
        assert torch.equal(sequences.completion_ids_NT.flatten()[batch.pack(values_NT)], packed.targets_M)
        assert packed.lengths == batch.lengths


@settings(max_examples=100, deadline=None)
@given(sequences=batches(), max_tokens=st.integers(1, 60))
def test_every_token_stands_behind_its_own_past(sequences: Sequences, max_tokens: int) -> None:
    assert_past(sequences)
    for batch in micro_batches(sequences, torch.arange(len(sequences)), max_tokens, share=True):
        assert_past(batch.sequences)
        assert_past(batch.sequences.repeated)


def assert_past(sequences: Sequences) -> None:
    packed = pack(sequences)
    length = packed.ids_BL.shape[1]
    mask_BLL = (
        packed.mask()[:, 0] if packed.shared else packed.mask()[:, None] & torch.ones(length, length).tril().bool()
    )
    at = 0
    for row, prompt in enumerate(sequences.prompt_of_N.tolist()):
        past = sequences.prompt_ids_BP[prompt][sequences.prompt_mask_BP[prompt]].tolist()
        for token in sequences.completion_ids_NT[row][sequences.completion_mask_NT[row]].tolist():
            line, place = divmod(int(packed.sources_M[at]), length)
            seen = mask_BLL[line, place].nonzero().squeeze(1)
            assert packed.ids_BL[line, seen].tolist() == past
            assert packed.positions_BL[line, seen].tolist() == list(range(len(past)))
            assert int(packed.targets_M[at]) == token
            past.append(token)
            at += 1
    assert at == len(packed.targets_M)


def test_prompts_that_begin_alike_lie_behind_their_prefix() -> None:
    sequences = make([4, 3, 3], [(0, 2), (1, 1), (2, 3)], alike=3)
    (batch,) = micro_batches(sequences, torch.arange(3), 100, share=True)
    assert (batch.sequences.prefix, batch.tokens, batch.slots, batch.packed_rows) == (3, 7, 7, 1)
    assert batch.rows.tolist() == [1, 0, 2]
    packed = pack(batch.sequences)
    own = sequences.prompt_ids_BP[0, 3]
    (a, end, _), (b, *_), (c, d, e) = sequences.completion_ids_NT.tolist()
    assert packed.ids_BL.tolist() == [[1, 2, 3, own, a, c, d]]
    assert packed.positions_BL.tolist() == [[0, 1, 2, 3, 4, 3, 4]]
    assert packed.segments_BL.tolist() == [[0, 0, 0, 2, 2, 3, 3]]
    assert packed.sources_M.tolist() == [2, 3, 4, 2, 5, 6]
    assert packed.targets_M.tolist() == [b, a, end, c, d, e]
    assert packed.lengths == [1, 2, 3]


def test_a_prefix_ends_with_the_first_difference() -> None:
    ids_BP = torch.tensor([[PAD, 1, 2, 3, 4], [1, 2, 5, 4, 6]])
    assert shared_prefix(ids_BP, ids_BP != PAD) == 2  # the fourth tokens are one, too
    assert shared_prefix(ids_BP[:1], ids_BP[:1] != PAD) == 4


def test_a_prefix_is_shared_where_it_saves_a_tenth_and_by_nobody_with_siblings() -> None:
    def prefix_of(sequences: Sequences, max_tokens: int = 1000, *, share: bool = True) -> list[int]:
        dealt = micro_batches(sequences, torch.arange(len(sequences)), max_tokens, share=share)
        return [batch.sequences.prefix for batch in dealt]

    assert prefix_of(make([30, 30], [(0, 1), (1, 1)], alike=6)) == [6]
    assert prefix_of(make([30, 30], [(0, 1), (1, 1)], alike=5)) == [0]
    assert prefix_of(make([30, 30], [(0, 1), (1, 1)], alike=6), share=False) == [0]
    assert prefix_of(make([30, 30], [(0, 1), (0, 2), (1, 1)], alike=20)) == [0] * 1
    # In as many tokens as there are, and not where attention would compute mostly padding; what is left is alone.
    assert prefix_of(make([30] * 4, [(row, 1) for row in range(4)], alike=20), 40) == [20, 20]
    assert prefix_of(make([30, 31, 32, 200], [(row, 1) for row in range(4)], alike=30)) == [30, 0]


def test_a_row_behind_a_prefix_is_no_longer_than_its_mask_may_be() -> None:
    sequences = make([1000] * 9, [(row, 1) for row in range(9)], alike=400)
    dealt = micro_batches(sequences, torch.arange(9), 100_000, share=True)
    assert [(batch.sequences.prefix, batch.slots) for batch in dealt] == [(400, 4000), (400, 2200)]


def test_siblings_are_parted_where_a_row_would_break_the_budget() -> None:
    """A prompt of 10 and completions that feed 5: two of four fit behind it in 20 tokens."""
    sequences = make([10], [(0, 6)] * 4)
    dealt = micro_batches(sequences, torch.arange(4), 20, share=True)
    assert [(batch.slots, len(batch.rows)) for batch in dealt] == [(20, 2), (20, 2)]
    assert [len(batch.rows) for batch in micro_batches(sequences, torch.arange(4), 19, share=True)] == [1] * 4


def test_rows_share_a_micro_batch_up_to_a_tenth_of_padding() -> None:
    for lengths, count in (([8, 10], 1), ([7, 10], 2)):
        sequences = make(lengths, [(0, 1), (1, 1)])
        assert len(micro_batches(sequences, torch.arange(2), 1000, share=True)) == count
