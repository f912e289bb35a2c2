"""The kernels as machine code, which Triton makes for GPUs that are not here: wide loads, and nothing spilled."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lsemrl.kernels import triton_kernels

def compiled(kernel, types, aligned, arch):
    names = kernel.arg_names
    signature = dict(zip(names, [*types, "i32", "fp32", "constexpr"], strict=True))
    source = ASTSource(
        kernel,
        signature,
        constexprs={"BLOCK": triton_kernels.BLOCK},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    done = triton.compile(source, GPUTarget("cuda", arch, 32), {"num_warps": triton_kernels.WARPS})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = done.asm["ptx"]
    return {
        "spilled": [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\\d+)", usage)],
        "loads": len(re.findall(r"ld\\.global\\.v4\\.b32", ptx)),
        "stores": len(re.findall(r"st\\.global\\.v4\\.b32", ptx)),
    }

found = []
for arch in json.loads(sys.argv[1]):
    for logits in ("*bf16", "*fp32"):
        types = [logits, "i64", "*i64", "*fp32", "i64"]
        rows = ["logits_ptr", "logits_stride"]
        found.append(compiled(triton_kernels._sum_rows, types, rows, arch))
        rows += ["out_ptr", "out_stride"]
        found.append(compiled(triton_kernels._make_gradient, [*types, logits, "i64"], rows, arch))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_rows_are_read_in_wide_loads_whatever_the_vocabulary() -> None:
    """Nothing is said of the vocabulary; it may be odd."""
    # In a process of its own, as in this one Triton interprets.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps([80, 90])],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sums, gradients = (json.loads(done.stdout)[at::2] for at in (0, 1))
    assert len(sums) == len(gradients) == 4
    assert all(one["loads"] for one in sums)
    assert all(one["loads"] and one["stores"] for one in gradients)
    assert not any(number for one in (*sums, *gradients) for number in one["spilled"])
    assert all(one["spilled"] for one in (*sums, *gradients))  # it was found in what the tool says
