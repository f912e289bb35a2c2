"""KL(base ‖ policy) through the head: against autograd on whole logits in float64, and what its parts mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lsemrl.kernels.divergence import Head, Likeliest, divergence_loss

M, H, V = 23, 7, 41


def heads(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Head, Head]:
    generator = torch.Generator().manual_seed(3)

    def head() -> Head:
        hidden, weight, shift = (torch.randn(shape, generator=generator).to(dtype) for shape in ((M, H), (V, H), (V,)))
        return Head(hidden, weight, shift if bias else None)

    return head(), head()


def asking(head: Head) -> Head:
    parts = (None if part is None else part.clone().requires_grad_() for part in vars(head).values())
    return Head(**dict(zip(vars(head), parts, strict=True)))


def by_autograd(policy: Head, base: Head, weights_M: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    leaves = [part.detach().double().requires_grad_() for part in vars(policy).values() if part is not None]
    logits = leaves[0] @ leaves[1].t() + (leaves[2] if len(leaves) > 2 else 0)
    others = base.hidden_MH.double() @ base.weight_VH.double().t() + (
        0 if base.bias_V is None else base.bias_V.double()
    )
    kl_M = torch.nn.functional.kl_div(
        logits.log_softmax(-1), others.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    loss = (kl_M * weights_M.double()).sum()
    loss.backward()
    return loss.detach(), kl_M.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_value_and_every_gradient_are_those_of_autograd_in_float64(bias: bool, chunk: int) -> None:
    policy, base = heads(bias=bias)
    weights_M = torch.rand(M, generator=torch.Generator().manual_seed(1))
    leaves = asking(policy)
    loss, kl_M = divergence_loss(leaves, base, weights_M, chunk_tokens=chunk)
    (3 * loss).backward()
    wanted, kl, gradients = by_autograd(policy, base, weights_M)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kl_M.double(), kl, rtol=1e-5, atol=1e-6)
    found = [part.grad for part in vars(leaves).values() if part is not None]
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one.double(), 3 * other, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_without_any_nothing_is_kept() -> None:
    policy, base = heads()
    hidden = policy.hidden_MH.clone().requires_grad_()
    loss, _ = divergence_loss(Head(hidden, policy.weight_VH, policy.bias_V), base, torch.ones(M))
    loss.backward()
    assert hidden.grad is not None and policy.weight_VH.grad is None
    with torch.no_grad():
        assert not divergence_loss(policy, base, torch.ones(M))[0].requires_grad


def test_of_itself_it_is_zero_and_pulls_nowhere() -> None:
    policy, _ = heads()
    leaves = asking(policy)
    loss, kl_M = divergence_loss(leaves, policy, torch.ones(M))
    loss.backward()
    assert kl_M.abs().max() < 1e-6 and leaves.hidden_MH.grad.abs().max() < 1e-6  # type: ignore[union-attr]


def likeliest(base: Head, kept: int) -> Likeliest:
    logits = base.hidden_MH.float() @ base.weight_VH.float().t() + base.bias_V
    logprobs, ids = logits.log_softmax(-1).topk(kept, dim=-1)
    return Likeliest(ids_MK=ids, logprobs_MK=logprobs)


def test_of_all_tokens_kept_it_is_the_whole_and_of_fewer_no_more() -> None:
    policy, base = heads()
    _, whole = divergence_loss(policy, base, torch.ones(M))
    before = torch.zeros(M)
    for kept in (1, 4, 16, V):
        _, found = divergence_loss(policy, likeliest(base, kept), torch.ones(M))
        assert (found >= before - 1e-5).all() and (found <= whole + 1e-5).all()
        before = found
    torch.testing.assert_close(before, whole, rtol=1e-4, atol=1e-5)


def test_of_kept_tokens_it_is_over_these_and_the_others_as_one_with_its_gradient() -> None:
    policy, base = heads()
    kept, leaves = likeliest(base, 5), asking(policy)
    loss, _ = divergence_loss(leaves, kept, torch.ones(M), chunk_tokens=6)
    loss.backward()
    hidden = policy.hidden_MH.double().requires_grad_()
    q = (hidden @ policy.weight_VH.double().t() + policy.bias_V.double()).softmax(-1)  # type: ignore[union-attr]
    q_MK, p_MK = q.gather(1, kept.ids_MK), kept.logprobs_MK.double().exp()
    rest = 1 - p_MK.sum(1)
    wanted = (p_MK * (p_MK / q_MK).log()).sum(1) + rest * (rest / (1 - q_MK.sum(1))).log()
    wanted.sum().backward()
    torch.testing.assert_close(loss.double(), wanted.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(leaves.hidden_MH.grad.double(), hidden.grad, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]


def test_what_the_base_never_says_or_says_for_certain_is_finite() -> None:
    policy, _ = heads()
    certain = Likeliest(ids_MK=torch.zeros(M, 1, dtype=torch.long), logprobs_MK=torch.zeros(M, 1))
    leaves = asking(policy)
    loss, kl_M = divergence_loss(leaves, certain, torch.ones(M))
    loss.backward()
    assert kl_M.isfinite().all() and leaves.hidden_MH.grad.isfinite().all()  # type: ignore[union-attr]
    base = Head(
        hidden_MH=torch.zeros(M, H),
        weight_VH=policy.weight_VH,
        bias_V=torch.full((V,), -1e4).index_fill(0, torch.tensor([2]), 0.0),
    )
    assert divergence_loss(policy, base, torch.ones(M))[1].isfinite().all()


def test_bfloat16_heads_are_computed_in_float32() -> None:
    policy, base = heads(dtype=torch.bfloat16)
    loss, _ = divergence_loss(policy, base, torch.ones(M))
    exact, _, _ = by_autograd(policy, base, torch.ones(M))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)


def test_logits_of_a_head_that_does_more_than_multiply() -> None:
    policy, base = heads(bias=False)
    own, other = (head.hidden_MH @ head.weight_VH.t() for head in (policy, base))  # type: ignore[union-attr]
    leaf = own.clone().requires_grad_()
    loss, _ = divergence_loss(Head(leaf), Head(other), torch.ones(M))
    loss.backward()
    wanted, _ = divergence_loss(policy, base, torch.ones(M))
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(leaf.grad, own.softmax(-1) - other.softmax(-1), rtol=1e-4, atol=1e-5)
