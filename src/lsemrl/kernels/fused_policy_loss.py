"""A loss of token log-probabilities and its gradient in one pass over chunks of the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lsemrl.kernels.dispatch import Backend
from lsemrl.kernels.head import HeadGradients, make_plan, project, row_values

LossFn = Callable[[slice, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(which tokens, logprobs_C, entropy_C) -> (scalar loss, scalar metrics): what some tokens add to both."""


def fused_policy_loss(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    targets_M: Tensor,
    loss_fn: LossFn,
    *,
    lengths: Sequence[int] | None = None,
    bias_V: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    logits_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over chunks of `loss_fn`, with its gradient known when this returns.

    Of each chunk the logits are made, folded into log-probabilities and entropies, given to `loss_fn`, and overwritten
    by their own gradient, which goes through the head at once: two matmuls when the head is frozen, one when nothing
    needs a gradient. The backward pass only multiplies by the gradient of what follows. No host synchronization.

    Args:
        hidden_MH: Hidden states of the tokens that count, and only those: there is no id to ignore.
        weight_VH: The head, float32 or bfloat16; hidden states are cast to its dtype, and their gradient back. Not
            float16 where a gradient is needed: the logits' would be 0 before any loss scale could save it.
        targets_M: int64 ids in [0, V); see `token_logprobs` for others.
        loss_fn: An ordinary function of one chunk: its slice of the M tokens, the float32 log-probabilities, a leaf of
            autograd, and the float32 entropies in nats, which carry no gradient. Its losses and metrics ADD UP over
            chunks, so it must know its denominators beforehand. With no tokens it is called once, with empty vectors.
        lengths: Lengths of the sequences in M, where chunks may be cut only between them, as ratios of sequences need;
            one longer than `chunk_tokens` is a chunk of its own. None to cut anywhere.
        bias_V: The head's bias.
        temperature: Divides the logits, > 0.
        chunk_tokens: Tokens whose logits exist at a time; None for what suits the device.
        logits_dtype: Of those stored logits; None for the weight's. What follows is float32.
        backend: auto is Triton on CUDA where it is installed, else torch.

    Returns:
        float32 loss, with gradients to hidden, weight and bias, and the metrics, detached. The loss has no second
        derivative.

    Raises:
        ValueError: As `token_logprobs`; lengths that do not make M tokens; a loss that is no scalar; a float16 head
            where a gradient is needed.
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
        lengths=lengths,
    )
    inputs = hidden_MH, weight_VH, bias_V
    hidden, weight, bias = (
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs
    )
    needed = hidden or weight or bias
    if needed and weight_VH.dtype == torch.float16:
        raise ValueError(
            "the dtype of the weight is torch.float16, in which the gradient of the logits underflows: use bfloat16 or "
            "float32"
        )
    targets_M = targets_M.contiguous()
    loss = torch.zeros((), dtype=torch.float32, device=hidden_MH.device)
    metrics: dict[str, Tensor] = {}
    with torch.no_grad(), torch.autocast(hidden_MH.device.type, enabled=False):
        gradients = HeadGradients(plan, hidden_MH, weight_VH, (hidden, weight, bias))
        buffer_CV = plan.buffer(weight_VH)
        for cut in plan.cuts:
            logits_CV = project(hidden_MH[cut], weight_VH, bias_V, buffer_CV)
            sums_4C = torch.empty(4, len(logits_CV), dtype=torch.float32, device=hidden_MH.device)
            kept_CV = plan.kernels.sum_rows(logits_CV, targets_M[cut], plan.inverse_temperature, sums_4C)
            logprobs_C, entropy_C = row_values(sums_4C)
            with torch.enable_grad():
                chunk_loss, chunk_metrics = loss_fn(cut, logprobs_C.requires_grad_(needed), entropy_C)
            if chunk_loss.ndim:
                raise ValueError(f"loss_fn returned a loss of shape {list(chunk_loss.shape)}: it must be a scalar")
            if needed:
                grad_C = torch.autograd.grad(chunk_loss, logprobs_C)[0] if chunk_loss.requires_grad else None
                gradients.add(cut, kept_CV, targets_M[cut], grad_C, sums_4C)
            loss += chunk_loss.detach()
            for name, value in chunk_metrics.items():
                metrics[name] = metrics[name] + value.detach() if name in metrics else value.detach()
    loss = KnownGradient.apply(loss, *inputs, gradients.hidden_MH, gradients.weight_VH, gradients.bias_V)
    return loss, metrics


class KnownGradient(torch.autograd.Function):
    """Ties a loss to the inputs whose gradients were computed beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        hidden_MH: Tensor,
        weight_VH: Tensor | None,
        bias_V: Tensor | None,
        *gradients: Tensor | None,
    ) -> Tensor:
        """The loss, as it is."""
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden_MH, weight_VH, bias_V)]
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are known, times that of the loss."""
        # New tensors, not in place: a second backward pass must find the stored gradients as they were.
        scaled = (
            None if gradient is None else (gradient * grad).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (None, *scaled, None, None, None)
