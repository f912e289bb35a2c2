from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lsemrl.kernels import torch_kernels
from lsemrl.kernels.dispatch import kernels_for


def fresh(code: str) -> str:
    """What a new interpreter prints, one to which Triton's own switch says nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_on_a_cpu_triton_is_neither_loaded_nor_asked_for_unless_it_interprets() -> None:
    pytest.importorskip("triton")
    code = (
        "import sys, torch, lsemrl.kernels as k\n"
        "k.token_logprobs(torch.randn(2, 3), torch.randn(4, 3), torch.tensor([0, 3])); print('triton' in sys.modules)\n"
        "from lsemrl.kernels.dispatch import kernels_for\n"
        "try: kernels_for('triton', torch.device('cpu'))\n"
        "except ValueError as error: print(error)"
    )
    loaded, said = fresh(code).splitlines()
    assert loaded == "False" and said.startswith("backend is 'triton' and the tensors are on cpu: ")


@pytest.fixture(params=[True, False], ids=["Ampere", "Turing"])
def ampere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    return bool(request.param)


def test_auto_is_torch_on_cpu_and_triton_where_it_is_installed_and_at_home(ampere: bool) -> None:
    pytest.importorskip("triton")
    assert kernels_for("auto", torch.device("cpu")) is torch_kernels
    assert kernels_for("torch", torch.device("cuda")) is torch_kernels
    assert kernels_for("triton", torch.device("cuda")).__name__ == "lsemrl.kernels.triton_kernels"  # type: ignore[attr-defined]
    assert (kernels_for("auto", torch.device("cuda")) is torch_kernels) == (not ampere)


def test_without_triton_auto_is_torch_and_triton_is_refused(ampere: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "lsemrl.kernels.triton_kernels", raising=False)
    assert kernels_for("auto", torch.device("cuda")) is torch_kernels
    with pytest.raises(ValueError, match="backend is 'triton', which is not installed: install it, or choose 'torch'"):
        kernels_for("triton", torch.device("cuda"))


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda': choose one of auto, triton, torch"):
        kernels_for("cuda", torch.device("cpu"))  # type: ignore[arg-type]
