"""`lsemrl build-micro`: the embedded policy, encoder and cold start, from a seed."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from lsemrl.commands.trainer import run_trainer
from lsemrl.config_files import CONFIGS
from lsemrl.files import replace_folder, try_folder
from lsemrl.micro import NAME


def build_micro(*, output: Path, seed: int = 1) -> None:
    """Build them anew.

    Args:
        output: Folder to write policy/ and encoder/ to.
        seed: Of all that is drawn.
    """
    from lsemrl.micro.build import build  # torch, for which words that cannot be do not wait

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try_folder(output, "--output")
    build(output, seed=seed)
    with TemporaryDirectory() as folder:
        cold_start = ["fit", "--config", str(CONFIGS / "sft.yaml"), "--data.splits.part=cold_start"]
        policy = [f"--model.policy.model={output / 'policy'}", "--model.metrics.names=[chrf]"]
        length = ["--trainer.max_steps=200", "--trainer.max_epochs=-1", "--trainer.callbacks=null"]
        module = run_trainer([*cold_start, *policy, *length, f"--trainer.default_root_dir={folder}"]).model
        module.policy.settings = dataclasses.replace(module.policy.settings, model=NAME)  # its name once installed
        replace_folder(output / "cold_start", module.policy.save)
