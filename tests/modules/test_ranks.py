"""Two ranks that draw unlike completions, and deal them into unlike numbers of micro-batches, stay in step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
import sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.evaluation.scorer import MetricSettings
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.policy import LoraSettings, PolicySettings
from lsemrl.modules.sampler import Sampling
from lsemrl.rewards import Chrf

model, folder, truncated = sys.argv[1:]
torch.manual_seed(5)
module = GRPO(
    rewards={"chrf": Chrf()},
    policy=PolicySettings(model=model, lora=LoraSettings(rank=4, dropout=0.0)),
    sampling=Sampling(num_generations=4, temperature=1.0, max_new_tokens=8),
    loss=LossSettings(mask_truncated_completions=truncated == "left out"),
    metrics=MetricSettings(names=("chrf",)),
    micro_batch_tokens=40,
    samples_every=1,
)
if truncated == "left out" and os.environ.get("LOCAL_RANK") == "1":
    module.policy.eos_ids = lambda: [10**6]  # this rank has nothing to learn from, and no micro-batch
trainer = Trainer(
    strategy="ddp", devices=2, accelerator="cpu", max_steps=3, max_epochs=-1, enable_progress_bar=False,
    callbacks=[Checkpoints(keep=0)], enable_model_summary=False, limit_val_batches=0,
    default_root_dir=folder,
)
trainer.fit(module, datamodule=TranslationData(micro=MicroRows(train=40, validation=4, test=4), batch_size=4))
total = sum(float(p.detach().double().abs().sum()) for p in module.parameters() if p.requires_grad)
Path(folder, f"rank_{trainer.global_rank}").write_text(repr(total))
"""


@pytest.mark.parametrize("truncated", ["kept", "left out"])
def test_two_ranks_end_with_the_same_weights(truncated: str, tiny_model: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), tiny_model, str(tmp_path), truncated],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = (float((tmp_path / f"rank_{rank}").read_text()) for rank in (0, 1))
    assert one == other
