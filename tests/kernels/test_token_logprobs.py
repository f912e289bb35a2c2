from __future__ import annotations

import pytest
import torch

from lsemrl.kernels import reference, token_logprobs
from matrix import slow_but

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, in the interpreter


def compare(problem, judge, **options) -> None:
    """Values and all gradients against float64 and against float32 eager."""
    keep = {name: value for name, value in options.items() if name == "temperature"}
    results = []
    for given, function, arguments in (
        (problem, token_logprobs, options),
        (problem.to(torch.float32), reference.token_logprobs, keep),
        (problem.to(torch.float64), reference.token_logprobs, keep),
    ):
        logprobs_M, entropy_M = function(*given.head, bias_V=given.bias_V, **arguments)
        weights_M = torch.linspace(-1, 2, len(logprobs_M), device=logprobs_M.device)
        gradients = torch.autograd.grad((weights_M * logprobs_M).sum(), given.leaves)
        results.append([logprobs_M, entropy_M, *gradients])
    assert {tensor.dtype for tensor in results[0]} == {torch.float32}
    for ours, eager, truth in zip(*results, strict=True):
        judge(ours, eager, truth)


@pytest.mark.parametrize("vocabulary", slow_but([1, 2, 1003, 2048, 151_669, 151_936], [1, 2, 1003, 2048]))
def test_every_vocabulary(problem, judge, backend, vocabulary) -> None:
    compare(problem(tokens=3, vocabulary=vocabulary), judge, backend=backend)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5, 64, None])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_every_cut_and_temperature(problem, judge, backend, chunk_tokens, temperature) -> None:
    compare(problem(), judge, backend=backend, chunk_tokens=chunk_tokens, temperature=temperature)


@pytest.mark.parametrize("vocabulary", [1003, 70_003])  # oneDNN multiplies with the latter
def test_without_bias(problem, judge, backend, vocabulary) -> None:
    given = problem(vocabulary=vocabulary)
    ours, _ = token_logprobs(*given.head, backend=backend)
    eager, _ = reference.token_logprobs(*given.head)
    truth, _ = reference.token_logprobs(*given.to(torch.float64).head)
    judge(ours, eager, truth)


@pytest.mark.parametrize("shift", [-5e4, -1e30])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_logits_very_negative(problem, judge, backend, shift, temperature) -> None:
    given = problem()
    given.bias_V.data += shift
    compare(given, judge, backend=backend, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_ids_that_cannot_occur(problem, judge, backend, temperature) -> None:
    """Minus infinity, over the whole of a kernel's first block too, leaves no NaN."""
    given = problem(vocabulary=5000)
    given.bias_V.data[:4500] = -torch.inf
    given.targets_M.clamp_(min=4500)
    logprobs_M, entropy_M = token_logprobs(*given.head, bias_V=given.bias_V, backend=backend, temperature=temperature)
    (grad_V,) = torch.autograd.grad(logprobs_M.sum(), given.bias_V)
    assert not grad_V[:4500].any() and grad_V.isfinite().all()
    eager, truth = (
        reference.token_logprobs(
            seen.hidden_MH,
            seen.weight_VH[4500:],
            seen.targets_M - 4500,
            bias_V=seen.bias_V[4500:],
            temperature=temperature,
        )
        for seen in (given, given.to(torch.float64))
    )
    judge(logprobs_M, eager[0], truth[0])
    judge(entropy_M, eager[1], truth[1])


@pytest.mark.parametrize("lead", [5.0, 20.0, 60.0])
def test_a_confident_true_class_keeps_its_digits(problem, backend, lead) -> None:
    """Where p rounds to 1, log p and 1 - p are small numbers, not 0."""
    given = problem(tokens=1)
    given.bias_V.data[given.targets_M] += lead + 20
    grads = []
    for seen, function, options in (
        (given, token_logprobs, {"backend": backend}),
        (given.to(torch.float64), reference.token_logprobs, {}),
    ):
        logprobs_M, _ = function(*seen.head, bias_V=seen.bias_V, **options)
        grads.append((logprobs_M.detach().double(), torch.autograd.grad(logprobs_M.sum(), seen.bias_V)[0].double()))
    (ours_M, grad_V), (_, truth_V) = grads
    # The truth at the target is minus the sum of the others: float64 itself has no digits left of 1 - p below 1e-16.
    others = truth_V[torch.arange(len(truth_V), device=truth_V.device) != given.targets_M].sum()
    truth_V[given.targets_M] = -others
    torch.testing.assert_close(ours_M, torch.log1p(others.expand(1)), rtol=1e-4, atol=0)
    # A GPU takes numbers below float32's smallest normal one for zero.
    torch.testing.assert_close(grad_V, truth_V, rtol=1e-4, atol=torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize("vocabulary", [1003, 2048, 2049])
def test_first_and_last_id_as_targets(problem, judge, backend, vocabulary) -> None:
    given = problem(vocabulary=vocabulary)
    given.targets_M[:] = torch.tensor([0, vocabulary - 1, vocabulary - 1, 1, vocabulary - 2])
    compare(given, judge, backend=backend)


def test_no_tokens(problem, backend) -> None:
    given = problem(tokens=0)
    logprobs_M, entropy_M = token_logprobs(*given.head, bias_V=given.bias_V, backend=backend)
    assert logprobs_M.shape == entropy_M.shape == (0,)
    logprobs_M.sum().backward()
    assert given.hidden_MH.grad.shape == (0, 8)
    assert not given.weight_VH.grad.any() and not given.bias_V.grad.any()


def test_a_target_outside_the_vocabulary_is_never_a_number(problem, backend, device) -> None:
    given = problem()
    given.targets_M[1] = 1003
    if backend == "torch":
        if device.type == "cuda":
            pytest.skip("ends the CUDA context")
        with pytest.raises(RuntimeError, match="out of bounds"):
            token_logprobs(*given.head, backend=backend)
        return
    logprobs_M, _ = token_logprobs(*given.head, backend=backend)
    assert logprobs_M.isnan().tolist() == [False, True, False, False, False]


def test_not_a_number_in_is_not_a_number_out(problem, backend) -> None:
    given = problem(vocabulary=3000)
    given.hidden_MH.data[2] = torch.nan
    logprobs_M, entropy_M = token_logprobs(*given.head, backend=backend)
    assert logprobs_M.isnan().tolist() == entropy_M.isnan().tolist() == [False, False, True, False, False]


def test_one_logit_that_is_not_a_number_is_not_passed_over(problem, backend) -> None:
    given = problem(vocabulary=3000)
    given.targets_M.clamp_(max=2000)
    given.bias_V.data[2500] = torch.nan
    logprobs_M, entropy_M = token_logprobs(*given.head, bias_V=given.bias_V, backend=backend)
    assert logprobs_M.isnan().all() and entropy_M.isnan().all()


def test_a_second_backward_gives_the_same_and_the_upstream_gradient_counts(problem, backend) -> None:
    given = problem()
    logprobs_M, _ = token_logprobs(*given.head, bias_V=given.bias_V, chunk_tokens=2, backend=backend)
    once, again, thrice = (
        torch.autograd.grad(scale * logprobs_M.sum(), given.leaves, retain_graph=True) for scale in (1, 1, 3)
    )
    for first, second, third in zip(once, again, thrice, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(third, 3 * first)


def test_entropy_carries_no_gradient_and_nothing_does_without_grad_mode(problem, backend) -> None:
    given = problem()
    logprobs_M, entropy_M = token_logprobs(*given.head, backend=backend)
    assert logprobs_M.requires_grad and not entropy_M.requires_grad
    with torch.no_grad():
        assert not token_logprobs(*given.head, backend=backend)[0].requires_grad


def test_there_is_no_second_derivative(problem, backend) -> None:
    given = problem()
    logprobs_M, _ = token_logprobs(*given.head, backend=backend)
    (grad_MH,) = torch.autograd.grad(logprobs_M.sum(), given.hidden_MH, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad_MH.sum().backward()


def test_a_head_changed_before_backward_is_noticed(problem, backend) -> None:
    given = problem()
    logprobs_M, _ = token_logprobs(*given.head, backend=backend)
    with torch.no_grad():
        given.weight_VH.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs_M.sum().backward()


def test_hidden_states_of_another_dtype_get_their_gradient_in_it(problem, backend) -> None:
    given = problem()
    half_MH = given.hidden_MH.detach().half().requires_grad_()
    logprobs_M, _ = token_logprobs(half_MH, given.weight_VH, given.targets_M, backend=backend)
    (grad_MH,) = torch.autograd.grad(logprobs_M.sum(), half_MH)
    exact_MH = half_MH.detach().float().requires_grad_()
    expected_M, _ = reference.token_logprobs(exact_MH, given.weight_VH, given.targets_M)
    (expected_MH,) = torch.autograd.grad(expected_M.sum(), exact_MH)
    assert logprobs_M.dtype == torch.float32 and grad_MH.dtype == torch.float16
    torch.testing.assert_close(logprobs_M, expected_M, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_MH, expected_MH.half(), rtol=2e-3, atol=1e-4)


def test_inputs_that_are_not_contiguous(problem, judge, backend) -> None:
    given = problem()
    wide_MH = given.hidden_MH.detach().t().contiguous().t().requires_grad_()
    targets_M = torch.stack([given.targets_M, given.targets_M], dim=1)[:, 0]
    logprobs_M, _ = token_logprobs(wide_MH, given.weight_VH.t().contiguous().t(), targets_M, backend=backend)
    expected_M, _ = token_logprobs(*given.head, backend=backend)
    torch.testing.assert_close(logprobs_M, expected_M)
    torch.testing.assert_close(
        torch.autograd.grad(logprobs_M.sum(), wide_MH)[0], torch.autograd.grad(expected_M.sum(), given.hidden_MH)[0]
    )


def test_autocast_changes_nothing(problem, backend, device) -> None:
    given = problem()
    plain_M, _ = token_logprobs(*given.head, backend=backend)
    (plain_MH,) = torch.autograd.grad(plain_M.sum(), given.hidden_MH)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast_M, _ = token_logprobs(*given.head, backend=backend)
        (cast_MH,) = torch.autograd.grad(cast_M.sum(), given.hidden_MH)
    assert torch.equal(plain_M, cast_M) and torch.equal(plain_MH, cast_MH)


@pytest.mark.parametrize(("grad", "matmuls"), [(False, 3), (True, 9)])
def test_the_logits_never_exist_whole_and_nobody_waits(problem, backend, watch, grad, matmuls) -> None:
    """Three chunks: one matmul each, three with the gradient of a frozen head; nothing of more than a chunk's size."""
    given = problem(tokens=12)
    given.weight_VH.requires_grad_(False)
    with watch, torch.set_grad_enabled(grad):
        logprobs_M, _ = token_logprobs(*given.head, chunk_tokens=4, backend=backend)
        if grad:
            logprobs_M.sum().backward()
    assert watch.matmuls == matmuls
    assert watch.largest <= 4 * max(4 * 1008, given.weight_VH.numel())
    assert watch.synchronizations == 0


def test_watching_sees_what_it_should(problem, watch) -> None:
    given = problem(tokens=12)
    with watch:
        reference.token_logprobs(*given.head)[0].sum().item()
    assert watch.largest >= 4 * 12 * 1003 and watch.synchronizations == 1 and watch.matmuls == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("logits_dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_is_as_near_to_the_truth_as_eager(problem, judge, backend, logits_dtype) -> None:
    given = problem(tokens=300, vocabulary=20_000, width=64).to(torch.bfloat16)
    results = []
    for seen, function, options in (
        (given, token_logprobs, {"logits_dtype": logits_dtype, "backend": backend, "chunk_tokens": 128}),
        (given.to(torch.bfloat16), reference.token_logprobs, {}),
        (given.to(torch.float64), reference.token_logprobs, {}),
    ):
        logprobs_M, entropy_M = function(*seen.head, bias_V=seen.bias_V, **options)
        results.append([logprobs_M, entropy_M, *torch.autograd.grad(logprobs_M.sum(), seen.leaves)])
    assert [tensor.dtype for tensor in results[0][2:]] == [torch.bfloat16] * 3
    for ours, eager, truth in zip(*results, strict=True):
        judge(ours, eager, truth)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_never_waited_for(problem, backend) -> None:
    given = problem(tokens=12)
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            token_logprobs(*given.head, chunk_tokens=4, backend=backend)[0].sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
