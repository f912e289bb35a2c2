from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from lsemrl.kernels import torch_kernels, triton_kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, in the interpreter
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def run(kernels, logits_CV: Tensor, targets_C: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sums and gradient of a chunk that is overwritten."""
    tokens = len(targets_C)
    sums_4C = torch.empty(4, tokens, device=logits_CV.device)
    kept_CV = kernels.sum_rows(logits_CV, targets_C, 0.8, sums_4C)
    factors_2C = torch.randn(2, tokens, generator=torch.Generator().manual_seed(0)).to(logits_CV.device)
    return sums_4C, kernels.make_gradient(kept_CV, targets_C, 0.8, torch.cat([sums_4C[:1], factors_2C]), dtype)


@pytest.mark.parametrize("vocabulary", [1, 5, 2047, 2048, 2049, 6000])
def test_both_kernels_say_the_same(device, vocabulary) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_CV = (4 * torch.randn(4, vocabulary, generator=generator)).to(device)
    targets_C = torch.randint(vocabulary, (4,), generator=generator).to(device)
    for ours, theirs in zip(
        run(triton_kernels, logits_CV.clone(), targets_C), run(torch_kernels, logits_CV, targets_C), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_apart_are_read_and_written_and_nothing_between_them(device) -> None:
    wide_CW = torch.randn(3, 32, device=device)
    before_CW = wide_CW.clone()
    targets_C = torch.tensor([0, 10, 4], device=device)
    ours_4C, ours_CV = run(triton_kernels, wide_CW[:, :11], targets_C)
    assert ours_CV.data_ptr() == wide_CW.data_ptr()
    theirs_4C, gradient_CV = run(torch_kernels, before_CW[:, :11].clone(), targets_C)
    torch.testing.assert_close(ours_4C, theirs_4C)
    torch.testing.assert_close(wide_CW[:, :11], gradient_CV)
    assert torch.equal(wide_CW[:, 11:], before_CW[:, 11:])


def test_row_offsets_beyond_31_bits(device) -> None:
    """Rows 2^30 + 16 elements apart: the third begins beyond 2^31. The 8.6 GB between them are never touched."""
    apart = 2**30 + 16  # itself within 31 bits, else Triton would take it for 64
    memory = torch.zeros(0, device=device).new_empty(2 * apart + 1003)  # not torch.empty, which writes NaN here
    logits_CV = memory.as_strided((3, 1003), (apart, 1))
    logits_CV.copy_(torch.randn(3, 1003))
    near_CV = logits_CV.clone()
    targets_C = torch.tensor([3, 1002, 0], device=device)
    for ours, theirs in zip(
        run(triton_kernels, logits_CV, targets_C), run(torch_kernels, near_CV, targets_C), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_another_dtype_leaves_the_logits(device) -> None:
    logits_CV = torch.randn(2, 2112, device=device)[:, :2100]
    before_CV = logits_CV.clone()
    targets_C = torch.tensor([5, 2099], device=device)
    _, ours_CV = run(triton_kernels, logits_CV, targets_C, torch.float16)
    assert torch.equal(logits_CV, before_CV)
    assert ours_CV.dtype == torch.float16 and ours_CV.stride() == (2112, 1)
    _, theirs_CV = run(torch_kernels, before_CV, targets_C, torch.float16)
    torch.testing.assert_close(ours_CV, theirs_CV)


def test_no_rows(device) -> None:
    run(triton_kernels, torch.empty(0, 7, device=device), torch.empty(0, dtype=torch.int64, device=device))


@pytest.mark.gpu
@gpu
def test_more_rows_than_other_grid_dimensions_hold(device) -> None:
    logits_CV = torch.randn(70_000, 8, device=device)
    targets_C = torch.randint(8, (70_000,), device=device)
    ours_4C, _ = run(triton_kernels, logits_CV.clone(), targets_C)
    theirs_4C, _ = run(torch_kernels, logits_CV, targets_C)
    torch.testing.assert_close(ours_4C, theirs_4C, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@gpu
def test_no_length_is_compiled_in(device, monkeypatch) -> None:
    """Once a vocabulary whose rows are aligned and one whose are not have been seen, nothing compiles again."""
    import triton

    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **about: compiled.append(about["fn"]))

    def use(tokens: int, vocabulary: int) -> None:
        logits_CV = torch.randn(tokens, -(-vocabulary // 16) * 16, device=device)[:, :vocabulary]
        run(triton_kernels, logits_CV, torch.zeros(tokens + 1, dtype=torch.int64, device=device)[1:])

    use(4, 4096)
    use(5, 1003)
    compiled.clear()
    for tokens, vocabulary in ((1, 4096), (17, 151_936), (32, 151_669), (1664, 2000), (3, 8)):
        use(tokens, vocabulary)
    assert not compiled
