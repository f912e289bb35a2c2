"""KL(base ‖ policy) of tokens and its gradient in one pass over chunks of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lsemrl.kernels.fused_policy_loss import KnownGradient
from lsemrl.kernels.head import default_chunk_tokens, project


@dataclass(frozen=True)
class Head:
    """Hidden states and what makes logits of them.

    Attributes:
        hidden_MH: Of M tokens; the logits themselves, H = V, where there is no weight.
        weight_VH: float32 or bfloat16; None where a head does more than multiply.
        bias_V: None where there is none.
    """

    hidden_MH: Tensor
    weight_VH: Tensor | None = None
    bias_V: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Likeliest:
    """What is kept of a distribution: its K likeliest tokens; the others are one mass.

    Attributes:
        ids_MK: int64, no id twice in a row.
        logprobs_MK: float32.
    """

    ids_MK: Tensor
    logprobs_MK: Tensor


def divergence_loss(
    policy: Head, base: Head | Likeliest, weights_M: Tensor, *, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum over tokens of KL(base ‖ policy), with its gradient known when this returns.

    Over the whole vocabulary where `base` has hidden states. Where it has its likeliest tokens, over these and all
    others as one, which is never more than the whole: what it asks of the others is their mass, not how they share it.
    The logits [M, V] never exist whole. Logits, probabilities and sums are float32, since near zero a divergence is
    made of differences that bfloat16 rounds away.

    Args:
        policy: What is trained; its hidden states, weight and bias get gradients where they ask for them.
        base: What it is held to; no gradient goes there.
        weights_M: float32, what each token's divergence counts.
        chunk_tokens: Tokens whose logits exist at a time; None for what suits the device.

    Returns:
        The float32 sum, which has no second derivative, and the divergences [M], in nats, without gradient.
    """
    inputs = policy.hidden_MH, policy.weight_VH, policy.bias_V
    hidden, weight, bias = (
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs
    )
    count, device = len(policy.hidden_MH), policy.hidden_MH.device
    vocabulary = policy.hidden_MH.shape[1] if policy.weight_VH is None else len(policy.weight_VH)
    chunk = chunk_tokens or default_chunk_tokens(vocabulary, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        grad_MH = torch.zeros_like(policy.hidden_MH, dtype=torch.float32) if hidden else None
        grad_VH = torch.zeros(vocabulary, policy.hidden_MH.shape[1], device=device) if weight else None
        grad_V = torch.zeros(vocabulary, device=device) if bias else None
        kl_M = torch.zeros(count, device=device)
        for start in range(0, count, chunk):
            cut = slice(start, min(start + chunk, count))
            logq_CV = _logprobs(policy, cut)
            logp_CV = _logprobs(base, cut) if isinstance(base, Head) else _nearest(base, cut, logq_CV)
            p_CV = logp_CV.exp()
            # A token that the base never says has no part in it: 0 log 0 is 0.
            kl_M[cut] = torch.where(p_CV > 0, p_CV * (logp_CV - logq_CV), 0.0).sum(dim=-1)
            if not (hidden or weight or bias):
                continue
            grad_CV = logq_CV.exp_().sub_(p_CV).mul_(weights_M[cut, None])
            if grad_MH is not None:
                grad_MH[cut] = grad_CV if policy.weight_VH is None else grad_CV @ policy.weight_VH.float()
            if grad_VH is not None:
                grad_VH.addmm_(grad_CV.t(), policy.hidden_MH[cut].float())
            if grad_V is not None:
                grad_V += grad_CV.sum(dim=0)
        loss = (kl_M * weights_M).sum()
    return KnownGradient.apply(loss, *inputs, grad_MH, grad_VH, grad_V), kl_M


def _logprobs(head: Head, cut: slice) -> Tensor:
    hidden_CH, weight_VH = head.hidden_MH[cut], head.weight_VH
    if weight_VH is None:
        return torch.log_softmax(hidden_CH.float(), dim=-1)
    logits_CV = torch.empty(len(hidden_CH), len(weight_VH), dtype=torch.float32, device=hidden_CH.device)
    return torch.log_softmax(project(hidden_CH, weight_VH, head.bias_V, logits_CV), dim=-1)


def _nearest(base: Likeliest, cut: slice, logq_CV: Tensor) -> Tensor:
    """The distribution nearest to the policy among those that have the base's kept tokens, and its mass of others.

    KL to it is KL over the kept tokens and the others as one, and so is the gradient: the others share their mass as
    the policy has them share it.
    """
    ids_CK, logp_CK = base.ids_MK[cut], base.logprobs_MK[cut]
    others_CV = logq_CV.scatter(1, ids_CK, -torch.inf)
    rest_C1 = (1 - logp_CK.exp().sum(dim=1, keepdim=True)).clamp(min=0).log()
    shared_CV = others_CV - others_CV.logsumexp(dim=1, keepdim=True) + rest_C1
    return shared_CV.scatter(1, ids_CK, logp_CK)
