"""Models that are no whole causal language model: the embedded policy with its configuration or weights changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lsemrl import micro

KINDS = {"mt5": "mt5", "picture_model": "vit", "mamba": "mamba", "bert": "bert"}
"""Folders, and the model_type that each says it is."""
_FIELDS: dict[str, dict[str, object]] = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "four_bits": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "own_code": {"model_type": "my_own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
    "dynamic_positions": {
        "max_position_embeddings": 30,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0},
    },
    "other_shapes": {"intermediate_size": 8},
}


def make_bases(folder: Path) -> dict[str, Path]:
    """Write every model to a folder of its own in `folder`."""
    weights = ("torn_weights", "pickled", "lacks_weights", "lacks_a_shard")
    paths = {name: folder / name for name in (*KINDS, *_FIELDS, *weights)}
    for path in paths.values():
        shutil.copytree(micro.POLICY, path)
    for name, kind in KINDS.items():
        stored = {"architectures": ["BertForMaskedLM"]} if kind == "bert" else {}
        AutoConfig.for_model(kind, **stored).save_pretrained(paths[name])
    for name, fields in _FIELDS.items():
        config = paths[name] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    (paths["own_code"] / "configuration_own.py").write_text("raise SystemExit('this has run')\n")
    files = {name: paths[name] / "model.safetensors" for name in weights}
    files["torn_weights"].write_bytes(files["torn_weights"].read_bytes()[:100_000])
    files["pickled"].rename(paths["pickled"] / "pytorch_model.bin")
    tensors = load_file(files["lacks_weights"])
    kept = {name: value for name, value in tensors.items() if "layers.0.mlp" not in name}
    save_file(kept, files["lacks_weights"], {"format": "pt"})
    files["lacks_a_shard"].unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
    (paths["lacks_a_shard"] / "model.safetensors.index.json").write_text(json.dumps(index))
    return paths
