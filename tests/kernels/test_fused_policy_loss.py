from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lsemrl.kernels import fused_policy_loss, reference
from matrix import slow_but

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, in the interpreter
LENGTHS = (3, 1, 5, 2, 1)


def clipped(tokens: int, device: torch.device):
    """A clipped policy loss with a KL term, whose denominator is known beforehand."""
    generator = torch.Generator().manual_seed(1)
    change_M, advantages_M, ref_M = torch.randn(3, tokens, generator=generator).to(device)
    kept: dict[str, Tensor] = {}

    def loss_fn(cut: slice, logprobs_C: Tensor, entropy_C: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        old_C = kept.setdefault(str(cut), logprobs_C.detach() + 0.3 * change_M[cut].to(logprobs_C.dtype))
        ratio_C = (logprobs_C - old_C).exp()
        weighted_C = torch.min(ratio_C * advantages_M[cut], ratio_C.clamp(0.8, 1.2) * advantages_M[cut])
        d_C = 0.1 * ref_M[cut] + old_C - logprobs_C
        loss_C = -weighted_C + 0.04 * (d_C.exp() - d_C - 1)
        metrics = {"entropy": entropy_C.sum() / tokens, "clipped": ((ratio_C - 1).abs() > 0.2).float().sum() / tokens}
        return loss_C.sum() / tokens, metrics

    return loss_fn


def linear(tokens: int, device: torch.device):
    """A loss whose gradient to every log-probability is a constant, so that all dtypes see the same."""
    weights_M = torch.linspace(-1, 2, tokens, device=device)

    def loss_fn(cut: slice, logprobs_C: Tensor, entropy_C: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (weights_M[cut] * logprobs_C).sum(), {"entropy": entropy_C.sum()}

    return loss_fn


def compare(problem, judge, loss_fn, *, bias: bool = True, **options) -> None:
    """Loss, metrics and all gradients against float64 and against float32 eager."""
    keep = {name: value for name, value in options.items() if name == "temperature"}
    results = []
    for given, function, arguments in (
        (problem, fused_policy_loss, options),
        (problem.to(torch.float32), reference.fused_policy_loss, keep),
        (problem.to(torch.float64), reference.fused_policy_loss, keep),
    ):
        bias_V = given.bias_V if bias else None
        loss, metrics = function(*given.head, loss_fn, bias_V=bias_V, **arguments)
        results.append([loss, *metrics.values(), *torch.autograd.grad(loss, given.leaves[: 3 if bias else 2])])
    assert {tensor.dtype for tensor in results[0]} == {torch.float32}
    for ours, eager, truth in zip(*results, strict=True):
        judge(ours, eager, truth)


def test_a_large_head_without_a_bias(problem, judge, backend) -> None:
    given = problem(vocabulary=70_003)
    compare(given, judge, linear(5, given.hidden_MH.device), bias=False, backend=backend)


@pytest.mark.parametrize("vocabulary", slow_but([1, 1003, 151_669, 151_936], [1, 1003, 151_669]))
def test_every_vocabulary(problem, judge, backend, device, vocabulary) -> None:
    compare(problem(tokens=3, vocabulary=vocabulary), judge, linear(3, device), backend=backend)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 12, 100, None])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_every_cut_and_temperature(problem, judge, backend, device, chunk_tokens, temperature) -> None:
    compare(
        problem(tokens=12),
        judge,
        linear(12, device),
        backend=backend,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
    )


@pytest.mark.parametrize("shift", [-5e4, -1e30])
def test_all_logits_very_negative(problem, judge, backend, device, shift) -> None:
    given = problem()
    given.bias_V.data += shift
    compare(given, judge, linear(5, device), backend=backend)


def test_a_confident_true_class_keeps_its_digits(problem, backend, device) -> None:
    given = problem(tokens=1)
    given.bias_V.data[given.targets_M] += 60
    loss, _ = fused_policy_loss(
        *given.head, lambda _, logprobs_C, __: (logprobs_C.sum(), {}), bias_V=given.bias_V, backend=backend
    )
    (grad_V,) = torch.autograd.grad(loss, given.bias_V)
    assert 0 < float(grad_V[given.targets_M]) < 1e-12
    torch.testing.assert_close(
        grad_V.double().sum().abs(),
        torch.zeros((), dtype=torch.float64, device=device),
        rtol=0,
        atol=1e-4 * float(grad_V[given.targets_M]),
    )


@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_a_clipped_loss_is_that_of_autograd(problem, backend, device, chunk_tokens) -> None:
    given = problem(tokens=12)
    loss_fn = clipped(12, device)
    options = {"chunk_tokens": chunk_tokens, "backend": backend}
    loss, metrics = fused_policy_loss(*given.head, loss_fn, **options)
    whole = problem(tokens=12)
    logprobs_M, entropy_M = reference.token_logprobs(*whole.head)
    cuts = [slice(start, min(start + chunk_tokens, 12)) for start in range(0, 12, chunk_tokens)]
    parts = [loss_fn(cut, logprobs_M[cut], entropy_M[cut]) for cut in cuts]
    expected = sum(part for part, _ in parts)
    torch.testing.assert_close(loss, expected)
    for name in ("entropy", "clipped"):
        torch.testing.assert_close(metrics[name], sum(values[name] for _, values in parts))
        assert not metrics[name].requires_grad
    assert 0 < metrics["clipped"] < 1
    for ours, theirs in zip(
        torch.autograd.grad(loss, given.leaves[:2]), torch.autograd.grad(expected, whole.leaves[:2]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sequences_stay_whole(problem, backend, device) -> None:
    """A ratio of sequences, cut only between them, is that of the whole batch."""
    given, whole = problem(tokens=12), problem(tokens=12)
    bounds = [sum(LENGTHS[:at]) for at in range(len(LENGTHS) + 1)]
    seen: list[tuple[int, int]] = []

    def loss_fn(cut: slice, logprobs_C: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append((cut.start, cut.stop))
        sizes = [stop - start for start, stop in pairwise(bounds) if cut.start <= start < cut.stop]
        means = torch.stack([part.mean() for part in logprobs_C.split(sizes)])
        return means.square().sum(), {}

    loss, _ = fused_policy_loss(*given.head, loss_fn, lengths=LENGTHS, chunk_tokens=4, backend=backend)
    assert seen == [(0, 4), (4, 9), (9, 12)]
    expected, _ = reference.fused_policy_loss(*whole.head, loss_fn)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, given.hidden_MH)[0],
        torch.autograd.grad(expected, whole.hidden_MH)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_upstream_gradient_counts_and_a_second_backward_gives_the_same(problem, backend, device) -> None:
    given = problem(tokens=12)
    loss, _ = fused_policy_loss(*given.head, linear(12, device), bias_V=given.bias_V, chunk_tokens=5, backend=backend)
    once, thrice, again = (torch.autograd.grad(scale * loss, given.leaves, retain_graph=True) for scale in (1, -3.0, 1))
    for first, third, second in zip(once, thrice, again, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(third, -3 * first)


def test_there_is_no_second_derivative(problem, backend, device) -> None:
    given = problem()
    loss, _ = fused_policy_loss(*given.head, linear(5, device), backend=backend)
    (grad_MH,) = torch.autograd.grad(loss, given.hidden_MH, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad_MH.sum().backward()


def test_gradients_reach_what_made_the_hidden_states(problem, backend, device) -> None:
    given = problem()
    body = torch.nn.Linear(8, 8, device=device)
    for function, options in ((fused_policy_loss, {"backend": backend}), (reference.fused_policy_loss, {})):
        loss, _ = function(body(given.hidden_MH), given.weight_VH, given.targets_M, linear(5, device), **options)
        (loss / 2).backward()
        if function is fused_policy_loss:
            ours = body.weight.grad.clone()
            body.zero_grad()
    torch.testing.assert_close(ours, body.weight.grad, rtol=1e-4, atol=1e-5)


def test_no_tokens(problem, backend) -> None:
    given = problem(tokens=0)
    seen = []

    def loss_fn(cut: slice, logprobs_C: Tensor, entropy_C: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append((cut, logprobs_C.shape, entropy_C.shape))
        return logprobs_C.sum(), {"entropy": entropy_C.sum()}

    loss, metrics = fused_policy_loss(*given.head, loss_fn, bias_V=given.bias_V, backend=backend)
    loss.backward()
    assert seen == [(slice(0, 0), (0,), (0,))]
    assert loss == 0 and metrics["entropy"] == 0
    assert given.hidden_MH.grad.shape == (0, 8)
    assert not given.weight_VH.grad.any() and not given.bias_V.grad.any()


@pytest.mark.parametrize("constant", [False, True])
def test_all_tokens_masked(problem, backend, constant) -> None:
    """Zero weights, and a loss that does not depend on a chunk at all, give zero gradients."""
    given = problem()

    def loss_fn(cut: slice, logprobs_C: Tensor, _: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return (logprobs_C.new_zeros(()) if constant else (0 * logprobs_C).sum()), {}

    loss, _ = fused_policy_loss(*given.head, loss_fn, bias_V=given.bias_V, chunk_tokens=2, backend=backend)
    loss.backward()
    assert loss == 0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in given.leaves)


@pytest.mark.parametrize(
    ("hidden", "weight", "matmuls"), [(True, False, 2), (True, True, 3), (False, True, 2), (False, False, 1)]
)
def test_one_pass_with_as_few_matmuls_as_possible(problem, backend, watch, device, hidden, weight, matmuls) -> None:
    given = problem(tokens=12)
    given.hidden_MH.requires_grad_(hidden)
    given.weight_VH.requires_grad_(weight)
    with watch:
        loss, _ = fused_policy_loss(*given.head, linear(12, device), chunk_tokens=4, backend=backend)
        if loss.requires_grad:
            loss.backward()
    assert loss.requires_grad == (hidden or weight)
    assert watch.matmuls == 3 * matmuls
    assert watch.largest <= 4 * max(4 * 1008, given.weight_VH.numel())
    assert watch.synchronizations == 0


def test_without_grad_mode_nothing_is_differentiated(problem, backend, watch, device) -> None:
    given = problem(tokens=12)
    with watch, torch.no_grad():
        loss, _ = fused_policy_loss(*given.head, linear(12, device), backend=backend, chunk_tokens=4)
    assert not loss.requires_grad and watch.matmuls == 3


def test_a_loss_that_is_no_scalar_is_refused(problem, backend) -> None:
    with pytest.raises(ValueError, match=r"loss_fn returned a loss of shape \[5\]"):
        fused_policy_loss(*problem().head, lambda _, logprobs_C, __: (logprobs_C, {}), backend=backend)


def test_a_loss_scale_saves_gradients_that_float16_would_lose(problem, backend, device) -> None:
    given = problem()
    half_MH = given.hidden_MH.detach().half().requires_grad_()
    grads = []
    for tiny, scale in ((1.0, 1.0), (2.0**-24, 2.0**24)):

        def loss_fn(_: slice, logprobs_C: Tensor, __: Tensor, tiny: float = tiny) -> tuple[Tensor, dict[str, Tensor]]:
            return tiny * logprobs_C.sum(), {}

        loss, _ = fused_policy_loss(half_MH, given.weight_VH, given.targets_M, loss_fn, backend=backend)
        grads.append(torch.autograd.grad(scale * loss, half_MH)[0])
    assert grads[0].dtype == torch.float16 and grads[0].any()
    assert torch.equal(*grads)


def test_a_float16_head_is_refused_where_it_needs_a_gradient(problem, backend, device) -> None:
    given = problem()
    half_VH = given.weight_VH.detach().half()
    with pytest.raises(ValueError, match=r"the dtype of the weight is torch.float16, .* underflows"):
        fused_policy_loss(given.hidden_MH, half_VH, given.targets_M, linear(5, device), backend=backend)
    with torch.no_grad():
        fused_policy_loss(given.hidden_MH, half_VH, given.targets_M, linear(5, device), backend=backend)


def test_autocast_changes_nothing(problem, backend, device) -> None:
    given = problem()
    plain, _ = fused_policy_loss(*given.head, linear(5, device), backend=backend)
    (plain_MH,) = torch.autograd.grad(plain, given.hidden_MH)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast, _ = fused_policy_loss(*given.head, linear(5, device), backend=backend)
        (cast_MH,) = torch.autograd.grad(cast, given.hidden_MH)
    assert torch.equal(plain, cast) and torch.equal(plain_MH, cast_MH)


@pytest.mark.parametrize("logits_dtype", [None, torch.float32])
def test_a_half_precision_head_sums_its_gradient_in_float32(problem, judge, backend, device, logits_dtype) -> None:
    """A token a chunk: summed in bfloat16, the gradient of the head would stop growing."""
    if backend == "triton" and device.type != "cuda":
        pytest.skip("Triton's interpreter computes bfloat16 wrongly")
    given = problem(tokens=400, vocabulary=37).to(torch.bfloat16)
    results = []
    for seen, function, options in (
        (given, fused_policy_loss, {"chunk_tokens": 1, "logits_dtype": logits_dtype, "backend": backend}),
        (given.to(torch.bfloat16), reference.fused_policy_loss, {}),
        (given.to(torch.float64), reference.fused_policy_loss, {}),
    ):
        loss, _ = function(*seen.head, lambda _, logprobs_C, __: (logprobs_C.sum(), {}), bias_V=seen.bias_V, **options)
        results.append([loss, *torch.autograd.grad(loss, seen.leaves)])
    assert [tensor.dtype for tensor in results[0]] == [torch.float32] + 3 * [torch.bfloat16]
    for ours, eager, truth in zip(*results, strict=True):
        judge(ours, eager, truth)


def test_stored_logits_may_have_another_dtype_than_the_head(problem, device) -> None:
    given = problem(tokens=12)
    exact, _ = fused_policy_loss(*given.head, linear(12, device), backend="torch")
    half, _ = fused_policy_loss(*given.head, linear(12, device), backend="torch", logits_dtype=torch.bfloat16)
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        torch.autograd.grad(half, given.hidden_MH)[0],
        torch.autograd.grad(exact, given.hidden_MH)[0],
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_never_waited_for(problem, backend, device) -> None:
    given = problem(tokens=12)
    loss_fn = linear(12, device)
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            fused_policy_loss(*given.head, loss_fn, lengths=LENGTHS, chunk_tokens=4, backend=backend)[0].backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_a_chunk_of_logits_and_the_gradient(device) -> None:
    hidden_MH = torch.randn(8192, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight_VH = torch.randn(151_936, 256, device=device, dtype=torch.bfloat16)
    targets_M = torch.randint(151_936, (8192,), device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_policy_loss(hidden_MH, weight_VH, targets_M, linear(8192, device), chunk_tokens=1024)[0].backward()
    chunk = 1024 * 151_936 * 2
    assert torch.cuda.max_memory_allocated() - before < 1.1 * chunk + 4 * hidden_MH.numel() * 2
