from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lsemrl.kernels.head import default_chunk_tokens, gradient_terms, make_plan, project, row_values


def plan(tokens: int = 7, width: int = 4, vocabulary: int = 11, **changes: Any):
    arguments = {
        "hidden_MH": torch.zeros(tokens, width),
        "weight_VH": torch.zeros(vocabulary, width),
        "targets_M": torch.zeros(tokens, dtype=torch.int64),
        "bias_V": None,
        "temperature": 1.0,
        "chunk_tokens": 3,
        "logits_dtype": None,
        "backend": "torch",
        **changes,
    }
    return make_plan(**arguments)


def cuts(**changes: Any) -> list[tuple[int, int]]:
    return [(cut.start, cut.stop) for cut in plan(**changes).cuts]


def test_chunks_cover_the_tokens_in_order() -> None:
    assert cuts() == [(0, 3), (3, 6), (6, 7)]
    assert cuts(tokens=6) == [(0, 3), (3, 6)]
    assert cuts(chunk_tokens=100) == [(0, 7)]
    assert cuts(tokens=0) == [(0, 0)]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1, 2, 1, 3], [(0, 3), (3, 4), (4, 7)]),
        ([7], [(0, 7)]),
        ([1, 5, 1], [(0, 1), (1, 6), (6, 7)]),
        ([4, 0, 3], [(0, 4), (4, 7)]),
        ([0, 4, 3, 0], [(0, 4), (4, 7)]),
    ],
)
def test_chunks_are_cut_between_sequences_only(lengths: list[int], expected: list[tuple[int, int]]) -> None:
    assert cuts(lengths=lengths) == expected


def test_no_tokens_in_no_sequences_are_one_empty_chunk() -> None:
    assert cuts(tokens=0, lengths=[]) == [(0, 0)]


@pytest.mark.parametrize(
    ("device", "vocabulary", "tokens"),
    [("cpu", 3, 1664), ("cpu", 2000, 524), ("cpu", 151_936, 128), ("cuda", 2000, 1664), ("cuda", 151_936, 1664)],
)
def test_the_default_chunk_suits_cache_and_multiprocessors(device: str, vocabulary: int, tokens: int) -> None:
    assert default_chunk_tokens(vocabulary, torch.device(device)) == tokens
    if device == "cpu":
        assert plan(tokens=4000, width=1, vocabulary=vocabulary, chunk_tokens=None).cuts[0] == slice(0, tokens)


def test_rows_of_the_buffer_are_aligned_whatever_the_vocabulary() -> None:
    buffer_CV = plan(logits_dtype=torch.bfloat16).buffer(torch.zeros(11, 4))
    assert buffer_CV.shape == (3, 11) and buffer_CV.stride() == (16, 1) and buffer_CV.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_MH": torch.zeros(7)}, r"hidden is \[7\] and weight \[11, 4\]"),
        ({"weight_VH": torch.zeros(11, 5)}, r"hidden is \[7, 4\] and weight \[11, 5\]"),
        (
            {"targets_M": torch.zeros(6, dtype=torch.int64)},
            r"targets is torch.int64 \[6\]: it must be .* \[7\]",
        ),
        ({"targets_M": torch.zeros(7, dtype=torch.int32)}, "targets is torch.int32"),
        ({"bias_V": torch.zeros(4)}, r"bias is \[4\]: it must be \[11\]"),
        ({"targets_M": torch.zeros(7, dtype=torch.int64, device="meta")}, "the tensors are on cpu, meta"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"weight_VH": torch.zeros(11, 4, dtype=torch.float64)}, "the dtype of the weight is torch.float64"),
        ({"logits_dtype": torch.int64}, "the dtype of the logits is torch.int64"),
        ({"lengths": [3, 3]}, "lengths adds up to 6: it must hold the lengths that make the 7 tokens"),
        ({"lengths": [8, -1]}, "lengths adds up to 7"),
        ({"backend": "gpu"}, "backend is 'gpu'"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


def test_plans_are_frozen() -> None:
    with pytest.raises(AttributeError):
        plan().cuts = ()
    assert replace(plan(), inverse_temperature=2.0).inverse_temperature == 2.0


def test_row_values_and_gradient_of_two_ids_by_hand() -> None:
    # Logits 0 and -1: p = 1 / (1 + e^-1) and 1 - p. The target is the first in one row and the second in the other.
    e = torch.tensor(-1.0).exp()
    sums_42 = torch.stack(
        [
            torch.zeros(2),
            torch.tensor([0.0, -1.0]),
            torch.stack([e, torch.ones(())]),
            torch.stack([-e, torch.zeros(())]),
        ]
    )
    logprobs_2, entropy_2 = row_values(sums_42)
    p = 1 / (1 + e)
    torch.testing.assert_close(logprobs_2, torch.tensor([math.log(p), math.log(1 - p)]))
    torch.testing.assert_close(entropy_2, torch.full((2,), -p * math.log(p) - (1 - p) * math.log(1 - p)))
    _, factor_2, at_target_2 = gradient_terms(sums_42, torch.tensor([1.0, 2.0]), 0.5)
    torch.testing.assert_close(at_target_2, torch.tensor([0.5 * (1 - p), p]))
    torch.testing.assert_close(factor_2 * torch.tensor([e, 1]), -at_target_2)


@pytest.mark.parametrize("vocabulary", [5, 70_003])  # oneDNN multiplies with the latter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_added_whatever_its_dtype(vocabulary: int, dtype: torch.dtype) -> None:
    hidden_CH, weight_VH = torch.randn(3, 8), torch.randn(vocabulary, 8)
    bias_V = torch.randn(vocabulary).to(dtype)
    found_CV = project(hidden_CH, weight_VH, bias_V, torch.empty(4, vocabulary))
    torch.testing.assert_close(found_CV, hidden_CH @ weight_VH.t() + bias_V.float(), rtol=1e-4, atol=1e-5)
