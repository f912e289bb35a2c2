"""Log-probabilities of given tokens, a chunk of the logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lsemrl.kernels.dispatch import Backend
from lsemrl.kernels.head import HeadGradients, Plan, make_plan, project, row_values


def token_logprobs(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    logits_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution.

    Without gradient one matmul; with gradient three when the head is frozen, since the backward pass makes the logits
    of each chunk again (`fused_policy_loss` needs two). No host synchronization.

    Args:
        hidden_MH: Hidden states of the tokens that count, and only those: there is no id to ignore.
        weight_VH: The head, float32, bfloat16 or float16; hidden states are cast to its dtype.
        targets_M: int64 ids in [0, V), which is not checked: the torch kernels raise IndexError on CPU, the Triton
            kernels return NaN.
        bias_V: The head's bias.
        temperature: Divides the logits, > 0.
        chunk_tokens: Tokens whose logits exist at a time; None for what suits the device.
        logits_dtype: Of those stored logits; None for the weight's. What follows is float32.
        backend: auto is Triton on CUDA where it is installed, else torch.

    Returns:
        float32 [M] log-probabilities, with exact gradients to hidden, weight and bias; float32 [M] entropies in nats,
        with none. The first have no second derivative.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit, a temperature or chunk that is not positive, or Triton
            asked for where it cannot run.
    """
    plan = make_plan(
        hidden_MH,
        weight_VH,
        targets_M,
        bias_V=bias_V,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        logits_dtype=logits_dtype,
        backend=backend,
    )
    logprobs_M, entropy_M = _TokenLogprobs.apply(hidden_MH, weight_VH, bias_V, targets_M.contiguous(), plan)
    return logprobs_M, entropy_M


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_M: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor]:
        sums_4M = torch.empty(4, len(hidden_MH), dtype=torch.float32, device=hidden_MH.device)
        with torch.autocast(hidden_MH.device.type, enabled=False):
            buffer_CV = plan.buffer(weight_VH)
            for cut in plan.cuts:
                logits_CV = project(hidden_MH[cut], weight_VH, bias_V, buffer_CV)
                plan.kernels.sum_rows(logits_CV, targets_M[cut], plan.inverse_temperature, sums_4M[:, cut])
            logprobs_M, entropy_M = row_values(sums_4M)
        ctx.plan = plan
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, targets_M)
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, targets_M = ctx.saved_tensors
        plan: Plan = ctx.plan
        with torch.autocast(hidden_MH.device.type, enabled=False):
            gradients = HeadGradients(plan, hidden_MH, weight_VH, ctx.needs_input_grad[:3])
            buffer_CV = plan.buffer(weight_VH)
            for cut in plan.cuts:
                logits_CV = project(hidden_MH[cut], weight_VH, bias_V, buffer_CV)
                sums_4C = torch.empty(4, len(logits_CV), dtype=torch.float32, device=hidden_MH.device)
                kept_CV = plan.kernels.sum_rows(logits_CV, targets_M[cut], plan.inverse_temperature, sums_4C)
                gradients.add(cut, kept_CV, targets_M[cut], grad_M[cut], sums_4C)
        return (
            None if gradients.hidden_MH is None else gradients.hidden_MH.to(hidden_MH.dtype),
            None if gradients.weight_VH is None else gradients.weight_VH.to(weight_VH.dtype),
            None if gradients.bias_V is None else gradients.bias_V.to(bias_V.dtype),
            None,
            None,
        )
