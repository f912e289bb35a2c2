# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The passes over a chunk of logits in Triton; `dispatch.Kernels` says what they compute.

One program a row, so the grid is [C] and no bound on other grid dimensions applies. A chunk's length is only the size
of that grid, and the vocabulary is an ordinary argument: no length is compiled in. Triton still tells apart numbers and
addresses that are multiples of 16, which it needs to read rows fast; what depends on how tokens were cut is exempt.
A row is read in whole blocks and what is left of it: under a mask, a vocabulary that is no multiple of 16 would be read
word by word.
"""

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether TRITON_INTERPRET=1 was set when this was imported: the kernels then run on CPU tensors, slowly."""

BLOCK = 2048
WARPS = 4

# A finite start for the running maximum: with -inf, a first block that is all -inf would give inf - inf.
START = tl.constexpr(-3.4e38)
LOWEST = tl.constexpr(-200.0)
LOG2E = tl.constexpr(1.4426950408889634)


def sum_rows(logits_CV: Tensor, targets_C: Tensor, inverse_temperature: float, sums_4C: Tensor) -> Tensor:
    """See `dispatch.Kernels`. A target outside the vocabulary makes its row NaN."""
    tokens, vocabulary = logits_CV.shape
    assert logits_CV.stride(1) == 1 and targets_C.is_contiguous() and (tokens < 2 or sums_4C.stride(1) == 1)
    if tokens:
        with torch.cuda.device_of(logits_CV):  # Triton launches on the current device, whatever its arguments say
            _sum_rows[(tokens,)](
                logits_CV,
                logits_CV.stride(0),
                targets_C,
                sums_4C,
                sums_4C.stride(0),
                vocabulary,
                inverse_temperature,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return logits_CV


def make_gradient(
    kept_CV: Tensor, targets_C: Tensor, inverse_temperature: float, terms_3C: Tensor, dtype: torch.dtype
) -> Tensor:
    """See `dispatch.Kernels`."""
    tokens, vocabulary = kept_CV.shape
    assert kept_CV.stride(1) == 1 and targets_C.is_contiguous() and terms_3C.is_contiguous()
    if dtype == kept_CV.dtype:
        out_CV = kept_CV
    else:  # rows as far apart as those of the logits, which are aligned
        out_CV = torch.empty(tokens, kept_CV.stride(0), dtype=dtype, device=kept_CV.device)[:, :vocabulary]
    if tokens:
        with torch.cuda.device_of(kept_CV):
            _make_gradient[(tokens,)](
                kept_CV,
                kept_CV.stride(0),
                targets_C,
                terms_3C,
                terms_3C.stride(0),
                out_CV,
                out_CV.stride(0),
                vocabulary,
                inverse_temperature,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return out_CV


@triton.jit(do_not_specialize=["targets_ptr", "sums_ptr", "sums_stride"])
def _sum_rows(
    logits_ptr,
    logits_stride,
    targets_ptr,
    sums_ptr,
    sums_stride,
    vocabulary,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31 at row 14135 of a 151,936-word vocabulary
    logits_ptr += row * logits_stride
    target = tl.load(targets_ptr + row)
    known = (target >= 0) & (target < vocabulary)
    at_target = tl.load(logits_ptr + target, mask=known, other=float("nan")).to(tl.float32)

    lanes = tl.arange(0, BLOCK)
    top = tl.full((), START, tl.float32)
    others = tl.full((BLOCK,), 0.0, tl.float32)
    weighted = tl.full((BLOCK,), 0.0, tl.float32)
    scale = inverse_temperature * LOG2E  # the hardware's exponential has base 2
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = tl.load(logits_ptr + start + lanes).to(tl.float32)
        top, others, weighted = _add_block(x, start, target, scale, top, others, weighted, BLOCK)
    if whole < vocabulary:
        ids = whole + lanes
        x = tl.load(logits_ptr + ids, mask=ids < vocabulary, other=-float("inf")).to(tl.float32)
        top, others, weighted = _add_block(x, whole, target, scale, top, others, weighted, BLOCK)

    sums_ptr += row
    tl.store(sums_ptr, top)
    tl.store(sums_ptr + sums_stride, (at_target - top) * inverse_temperature)
    tl.store(sums_ptr + 2 * sums_stride, tl.sum(others, axis=0))
    tl.store(sums_ptr + 3 * sums_stride, tl.sum(weighted, axis=0) / LOG2E)


@triton.jit
def _add_block(x, start, target, scale, top, others, weighted, BLOCK: tl.constexpr):
    highest = tl.max(x, axis=0)
    # Both branches are rare, and without them this is bound by instructions instead of memory.
    if highest > top:
        # Every z of before falls by the same amount, so exp(z) * z becomes exp(fall) * exp(z) * (z + fall).
        fall = tl.maximum((top - highest) * scale, LOWEST)
        weighted = tl.exp2(fall) * (weighted + fall * others)
        others = tl.exp2(fall) * others
        top = highest
    z = tl.maximum((x - top) * scale, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    exp = tl.exp2(z)
    if (target >= start) & (target < start + BLOCK):
        exp = tl.where(start + tl.arange(0, BLOCK) == target, 0.0, exp)
    return top, others + exp, weighted + exp * z


@triton.jit(do_not_specialize=["targets_ptr", "terms_ptr", "terms_stride"])
def _make_gradient(
    logits_ptr,
    logits_stride,
    targets_ptr,
    terms_ptr,
    terms_stride,
    out_ptr,
    out_stride,
    vocabulary,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    out_ptr += row * out_stride
    target = tl.load(targets_ptr + row)
    top = tl.load(terms_ptr + row)
    factor = tl.load(terms_ptr + terms_stride + row)
    at_target = tl.load(terms_ptr + 2 * terms_stride + row)

    lanes = tl.arange(0, BLOCK)
    scale = inverse_temperature * LOG2E
    whole = vocabulary // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        ids = start + lanes
        x = tl.load(logits_ptr + ids).to(tl.float32)
        grad = tl.where(ids == target, at_target, factor * tl.exp2((x - top) * scale))
        tl.store(out_ptr + ids, grad.to(out_ptr.dtype.element_ty))
    ids = whole + lanes
    x = tl.load(logits_ptr + ids, mask=ids < vocabulary, other=0.0).to(tl.float32)
    grad = tl.where(ids == target, at_target, factor * tl.exp2((x - top) * scale))
    tl.store(out_ptr + ids, grad.to(out_ptr.dtype.element_ty), mask=ids < vocabulary)
