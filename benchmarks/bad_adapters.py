"""Adapters that cannot be read as what they say they are, made of the embedded cold start, for bad_inputs.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsemrl import micro

Tensors = dict[str, Tensor]

CONFIGS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "trained_biases": {"bias": "all"},
    "ia3": {"peft_type": "IA3"},
    "classifier": {"task_type": "SEQ_CLS"},
    "newer_peft": {"use_newest_trick": True, "peft_version": "9.9"},
    "no_such_layer": {"target_modules": ["query"]},
    "other_rank": {"r": 4, "rank_pattern": {}},
    "lacks_magnitudes": {"use_dora": True},
}
"""Fields of adapter_config.json."""

WEIGHTS: dict[str, Callable[[Tensors], Tensors]] = {
    "no_tensors": lambda tensors: {},
    "one_factor": lambda tensors: {key: value for key, value in tensors.items() if "lora_A" in key},
    "one_layer": lambda tensors: {key: value for key, value in tensors.items() if ".layers.0." in key},
    "not_finite": lambda tensors: {key: value * torch.nan for key, value in tensors.items()},
    "of_the_base": lambda tensors: tensors | {"base_model.model.model.norm.weight": torch.ones(1)},
}
"""What becomes of its tensors."""


def make_adapters(folder: Path) -> dict[str, Path]:
    """Write every adapter to a folder of its own in `folder`."""
    paths = {name: folder / f"adapter_{name}" for name in (*CONFIGS, *WEIGHTS, "cut_short", "torn_passport")}
    for path in paths.values():
        shutil.copytree(micro.COLD_START, path)
    for name, fields in CONFIGS.items():
        config = paths[name] / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    for name, spoil in WEIGHTS.items():
        weights = paths[name] / "adapter_model.safetensors"
        save_file(spoil(load_file(weights)), weights)
    os.truncate(paths["cut_short"] / "adapter_model.safetensors", 5000)
    (paths["torn_passport"] / "lsemrl.json").write_text('{"base": "mi')
    return paths
