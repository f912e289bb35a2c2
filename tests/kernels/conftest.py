"""The same tests for both backends, on a GPU where one is present, else on the CPU with Triton interpreted."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HAS_TRITON = importlib.util.find_spec("triton") is not None

if HAS_TRITON and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if "triton.language" in sys.modules:
        # transformers has imported Triton already, and its own jitted functions were made to be compiled.
        importlib.reload(sys.modules["triton.language.standard"])
        importlib.reload(sys.modules["triton.language"])


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    if request.param == "triton" and not HAS_TRITON:
        pytest.skip("Triton is not installed")
    return request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialized memory is NaN: what a kernel forgets to write cannot pass for a number."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    yield


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Arguments of a call."""

    hidden_MH: Tensor
    weight_VH: Tensor
    targets_M: Tensor
    bias_V: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """The same in another dtype, as new leaves that need gradients."""
        cast = {
            name: value.detach().to(dtype).clone().requires_grad_()
            for name, value in vars(self).items()
            if value.is_floating_point()
        }
        return dataclasses.replace(self, **cast)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What needs gradients."""
        return self.hidden_MH, self.weight_VH, self.bias_V

    @property
    def head(self) -> tuple[Tensor, Tensor, Tensor]:
        """The positional arguments."""
        return self.hidden_MH, self.weight_VH, self.targets_M


@pytest.fixture
def problem(device: torch.device) -> Callable[..., Problem]:
    """Makes float32 problems; logits have a standard deviation of about 3."""

    def make(tokens: int = 5, vocabulary: int = 1003, width: int = 8, seed: int = 0) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        return Problem(
            hidden_MH=torch.randn(tokens, width, generator=generator).to(device).requires_grad_(),
            weight_VH=torch.randn(vocabulary, width, generator=generator).to(device).requires_grad_(),
            targets_M=torch.randint(vocabulary, (tokens,), generator=generator).to(device),
            bias_V=torch.randn(vocabulary, generator=generator).to(device).requires_grad_(),
        )

    return make


@pytest.fixture
def judge() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Ours must be about as near to the truth (float64) as the eager formula of the same dtype is."""

    def judged(ours: Tensor, eager: Tensor, truth: Tensor) -> None:
        assert ours.shape == truth.shape
        truth = truth.detach()
        error, yardstick = (float((tensor.detach().double() - truth).abs().max()) for tensor in (ours, eager))
        rounding = torch.finfo(eager.dtype).eps * float(truth.abs().max())
        assert error <= 2 * yardstick + 4 * rounding, f"error {error:.3g}, eager {yardstick:.3g}"

    return judged


class Watch(TorchDispatchMode):
    """Counts operators and notes the memory of the largest result, in bytes, of this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result

    @property
    def matmuls(self) -> int:
        """Matrix products."""
        return sum(self.calls[name] for name in ("mm", "addmm", "addmm_"))

    @property
    def synchronizations(self) -> int:
        """Operators that make the host wait for a device."""
        return sum(
            self.calls[name] for name in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2")
        )


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A `Watch` to be entered; backward passes run in this thread, on every device."""
    with torch.autograd.set_multithreading_enabled(False):
        yield Watch()
