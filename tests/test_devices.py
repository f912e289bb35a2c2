"""Where is computed: on what there is, and on nothing that was never tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.accelerators.mps import MPSAccelerator as FabricsMPS
from lightning.pytorch.accelerators.mps import MPSAccelerator

from lsemrl.cli.main import main
from lsemrl.devices import computing_device
from lsemrl.types import UserError


@pytest.mark.parametrize(("devices", "expected"), [(0, "cpu"), (2, "cuda")])
def test_a_gpu_is_taken_where_there_is_one(devices: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    assert computing_device() == torch.device(expected)
    assert computing_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "devices", "sentence"),
    [
        ("gpu", 1, "device is 'gpu'; choose cpu, cuda, or cuda:1 and so on"),
        ("mps", 0, "device is 'mps'; choose cpu"),
        ("meta", 0, "device is 'meta'; choose cpu"),
        ("cuda", 0, "device is 'cuda', but torch sees no CUDA devices here"),
        ("cuda:1", 1, "device is 'cuda:1', but torch sees 1 CUDA device here"),
    ],
)
def test_what_is_not_there_is_refused(name: str, devices: int, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(UserError, match=sentence):
        computing_device(name)


def test_the_device_of_a_measurement_is_looked_at_before_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--config", "measure/translation.yaml", "--output", str(tmp_path / "out"), "--device", "foo"])
    assert "device is 'foo'; choose cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("accelerator", ["auto", "mps", "gpu"])
def test_a_run_goes_to_no_other_gpu_than_cudas(
    accelerator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Mac as Lightning sees it, which takes its GPU for auto and for gpu."""
    # Not PyTorch's own function: Lightning remembers what it said to an earlier test.
    for each in (FabricsMPS, MPSAccelerator):
        monkeypatch.setattr(each, "is_available", staticmethod(lambda: True))
    words = ["test", "--config", "sft.yaml", "--model.policy.adapter", "micro", "--data.micro.test=2"]
    words += [f"--trainer.accelerator={accelerator}", f"--trainer.default_root_dir={tmp_path}"]
    if accelerator == "auto":
        main(words)
        assert "GPU available" not in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().err
        assert f"the device of trainer.accelerator {accelerator!r} is 'mps'; choose cpu" in said


def test_another_system_is_refused_in_a_sentence() -> None:
    script = "import sys; sys.platform = 'win32'; import lsemrl.__main__"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "lsemrl: error: runs are locked as Linux and macOS lock files; on Windows, install lsemrl in WSL"
    ]
