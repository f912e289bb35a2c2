"""What both functions share: the plan of a call, the matmuls of a chunk, and a row's formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsemrl.kernels.dispatch import Backend, Kernels, kernels_for
from lsemrl.kernels.products import is_large, multiply
from lsemrl.kernels.torch_kernels import LOWEST

# 13 tiles of 128 rows: with the 10 tiles of 256 columns of a hidden size of 2560, the gradient to the hidden states
# keeps 130 of an H200's 132 multiprocessors at work; with 1024 or 2048 rows it would keep 61% of them.
_GPU_TOKENS = 1664
# The torch kernels pass over a chunk several times: 2^20 float32 logits stay in a CPU's cache meanwhile. Fewer than 128
# rows slow its matmuls down.
_CPU_LOGITS, _CPU_TOKENS = 1 << 20, 128


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one call is carried out; no tensors.

    Attributes:
        cuts: The chunks, in order; a single empty one when there are no tokens.
        inverse_temperature: Multiplies the logits.
        logits_dtype: Of the stored chunk of logits.
        kernels: What passes over it.
    """

    cuts: tuple[slice, ...]
    inverse_temperature: float
    logits_dtype: torch.dtype
    kernels: Kernels

    def buffer(self, weight_VH: Tensor) -> Tensor:
        """Uninitialized [C, V] for the logits of the longest chunk, its rows aligned whatever the vocabulary."""
        vocabulary = len(weight_VH)
        shape = max(cut.stop - cut.start for cut in self.cuts), -(-vocabulary // 16) * 16
        return torch.empty(shape, dtype=self.logits_dtype, device=weight_VH.device)[:, :vocabulary]


def default_chunk_tokens(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits exist at a time where the caller does not say."""
    if device.type == "cuda":
        return _GPU_TOKENS
    return min(_GPU_TOKENS, max(_CPU_TOKENS, _CPU_LOGITS // max(vocabulary, 1)))


def make_plan(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    *,
    bias_V: Tensor | None,
    temperature: float,
    chunk_tokens: int | None,
    logits_dtype: torch.dtype | None,
    backend: Backend,
    lengths: Sequence[int] | None = None,
) -> Plan:
    """Check a call's arguments and decide how it is carried out, without looking into any tensor.

    Raises:
        ValueError: An argument that cannot be used.
    """
    if hidden_MH.ndim != 2 or weight_VH.ndim != 2 or hidden_MH.shape[1] != weight_VH.shape[1]:
        raise ValueError(
            f"hidden is {list(hidden_MH.shape)} and weight {list(weight_VH.shape)}: they must be [tokens, width] and "
            "[vocabulary, width]"
        )
    if targets_M.dtype != torch.int64 or targets_M.shape != hidden_MH.shape[:1]:
        raise ValueError(
            f"targets is {targets_M.dtype} {list(targets_M.shape)}: it must be torch.int64 [{len(hidden_MH)}], one id "
            "a hidden state"
        )
    if bias_V is not None and bias_V.shape != weight_VH.shape[:1]:
        raise ValueError(f"bias is {list(bias_V.shape)}: it must be [{len(weight_VH)}], one number a word")
    devices = {str(tensor.device) for tensor in (hidden_MH, weight_VH, targets_M, bias_V) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"the tensors are on {', '.join(sorted(devices))}: move them to one device")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}: set it above 0")
    dtype = weight_VH.dtype if logits_dtype is None else logits_dtype
    for name, found in (("weight", weight_VH.dtype), ("logits", dtype)):
        if found not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"the dtype of the {name} is {found}: use float32, bfloat16 or float16")
    kernels = kernels_for(backend, hidden_MH.device)
    if chunk_tokens is None:
        chunk_tokens = default_chunk_tokens(len(weight_VH), hidden_MH.device)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}: set it to 1 or more, or to None")
    return Plan(
        cuts=_cut(len(hidden_MH), chunk_tokens, lengths),
        inverse_temperature=1 / temperature,
        logits_dtype=dtype,
        kernels=kernels,
    )


def _cut(tokens: int, chunk_tokens: int, lengths: Sequence[int] | None) -> tuple[slice, ...]:
    """Chunks of at most `chunk_tokens`, or of as many whole sequences as fit, and of one at least."""
    if lengths is None:
        starts = range(0, max(tokens, 1), chunk_tokens)
        return tuple(slice(start, min(start + chunk_tokens, tokens)) for start in starts)
    if sum(lengths) != tokens or min(lengths, default=0) < 0:
        raise ValueError(f"lengths adds up to {sum(lengths)}: it must hold the lengths that make the {tokens} tokens")
    cuts = []
    start = stop = 0
    for length in lengths:
        if stop > start and stop + length - start > chunk_tokens:
            cuts.append(slice(start, stop))
            start = stop
        stop += length
    return (*cuts, slice(start, stop))


def project(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> Tensor:
    """Write the logits of a chunk to the first rows of `out_CV` and return those rows."""
    out_CV = out_CV[: len(hidden_CH)]
    hidden_CH = hidden_CH.to(weight_VH.dtype)
    if out_CV.dtype == weight_VH.dtype:
        bias_V = None if bias_V is None else bias_V.to(out_CV.dtype)
        if is_large(weight_VH):
            return out_CV.copy_(multiply(hidden_CH, weight_VH, bias_V))
        if bias_V is not None:
            return torch.addmm(bias_V, hidden_CH, weight_VH.t(), out=out_CV)
    _matmul(hidden_CH, weight_VH.t(), out_CV)
    return out_CV if bias_V is None else out_CV.add_(bias_V)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    """`out` = `left` @ `right`, two of one dtype, rounded once, to the dtype of `out`."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif out.dtype == torch.float32 and out.is_cuda:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    else:
        out.copy_(left.float() @ right.float())


def row_values(sums_4C: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each row, float32 [C] each, from what `Kernels.sum_rows` wrote."""
    _, at_target_C, others_C, weighted_C = sums_4C
    exp_C = at_target_C.exp()
    total_C = others_C + exp_C
    # A target with the largest logit has exp 1: log1p keeps what the sum rounds away.
    log_total_C = torch.where(at_target_C == 0, others_C.log1p(), total_C.log())
    weighted_C = weighted_C + exp_C * at_target_C.clamp(min=LOWEST)
    return at_target_C - log_total_C, log_total_C - weighted_C / total_C


def gradient_terms(sums_4C: Tensor, grad_C: Tensor, inverse_temperature: float) -> Tensor:
    """What `Kernels.make_gradient` needs, float32 [3, C], from the gradient of the loss to each log-probability.

    With g that gradient over the temperature, the gradient to a logit is -g * p, and g * (1 - p) at the target, where
    1 - p is taken from the other ids' sum: as a difference it would be 0 for every p within 6e-8 of 1.
    """
    top_C, at_target_C, others_C, _ = sums_4C
    scaled_C = grad_C.float() * inverse_temperature / (others_C + at_target_C.exp())
    return torch.stack([top_C, -scaled_C, scaled_C * others_C])


class HeadGradients:
    """The gradients of one call, of those inputs that need one; the head's are summed over chunks in float32."""

    def __init__(self, plan: Plan, hidden_MH: Tensor, weight_VH: Tensor, needed: tuple[bool, bool, bool]) -> None:
        """Set up.

        Args:
            plan: The call's.
            hidden_MH: Its hidden states.
            weight_VH: Its head.
            needed: Whether hidden, weight and bias need a gradient.
        """
        hidden, weight, bias = needed
        self._inputs = hidden_MH, weight_VH
        self._plan = plan
        device = weight_VH.device
        # A loss scale, which float16 needs, comes later than the gradient of `fused_policy_loss`.
        dtype = torch.float32 if hidden_MH.dtype == torch.float16 else hidden_MH.dtype
        self.hidden_MH = torch.empty(hidden_MH.shape, dtype=dtype, device=device) if hidden else None
        self.weight_VH = torch.zeros(weight_VH.shape, dtype=torch.float32, device=device) if weight else None
        self.bias_V = torch.zeros(len(weight_VH), dtype=torch.float32, device=device) if bias else None

    def add(self, cut: slice, kept_CV: Tensor, targets_C: Tensor, grad_C: Tensor | None, sums_4C: Tensor) -> None:
        """Take in a chunk.

        Args:
            cut: Which tokens it holds.
            kept_CV: What `Kernels.sum_rows` returned for it; overwritten.
            targets_C: Its targets.
            grad_C: The gradient of the loss with respect to its log-probabilities, None for zero.
            sums_4C: What `Kernels.sum_rows` wrote.
        """
        if grad_C is None:
            if self.hidden_MH is not None:
                self.hidden_MH[cut].zero_()
            return
        hidden_MH, weight_VH = self._inputs
        inverse_temperature = self._plan.inverse_temperature
        terms_3C = gradient_terms(sums_4C, grad_C, inverse_temperature)
        grad_CV = self._plan.kernels.make_gradient(kept_CV, targets_C, inverse_temperature, terms_3C, weight_VH.dtype)
        if self.hidden_MH is not None:
            _matmul(grad_CV, weight_VH, self.hidden_MH[cut])
        if self.weight_VH is not None:
            _add_matmul(self.weight_VH, grad_CV.t(), hidden_MH[cut].to(grad_CV.dtype))
        if self.bias_V is not None:
            self.bias_V += grad_CV.sum(dim=0, dtype=torch.float32)


def _add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total` += `left` @ `right`, whose product is never rounded below the float32 of `total`."""
    if left.dtype != torch.float32 and total.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())
