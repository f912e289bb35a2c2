"""One step of GRPO from the embedded cold start, as `lsemrl fit` leaves it."""

from __future__ import annotations

from pathlib import Path

from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS

SMALL = [
    "--data.micro={train: 20, validation: 4, test: 4}",
    "--trainer.max_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.callbacks=null",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_val_batches=0",
]


def fit_small(root: Path) -> Path:
    """The run's folder under `root`."""
    small = [*SMALL, "--data.splits.cold_start_count=8", "--data.batch_size=4", "--model.optimizer.lr=0.01"]
    main(["fit", "--config", str(CONFIGS / "grpo.yaml"), *small, f"--trainer.default_root_dir={root}"])
    return root / "version_0"
