"""Folders and files as somebody who means harm would send them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lsemrl import micro
from lsemrl.config_files import CONFIGS


def make_sent(folder: Path) -> dict[str, Path]:
    """Write them into `folder`; their paths by name."""
    data = {"class_path": "lsemrl.data.translation.TranslationData", "init_args": {"source": {"path": "micro"}}}
    configs = {
        "class_run": {"data": {"class_path": "evil.Evil", "init_args": {}}},
        "word_run": {"data": {**data, "init_args": {"splits": "evil.Evil"}}},
        "policy_run": {"model": {"init_args": {"policy": {"class_path": "evil.Evil"}}}},
        "linked_run": {},
    }
    paths = {}
    for name, changes in configs.items():
        paths[name] = folder / name
        (paths[name] / "adapter").mkdir(parents=True)
        config = {"model": {"init_args": {"policy": {"adapter": "micro"}, "sampling": {}}}, "data": data, **changes}
        (paths[name] / "config.yaml").write_text(json.dumps(config))  # which is YAML
    (paths["linked_run"] / "adapter" / "chat_template.jinja").symlink_to(Path("/etc/hostname"))
    paths["recursive_run"] = folder / "recursive_run"
    (paths["recursive_run"] / "adapter").mkdir(parents=True)
    (paths["recursive_run"] / "config.yaml").write_text("model: &m\n  init_args: *m\n  policy: *m\ndata: *m\n")
    for name, settings in (("pickled_adapter", {}), ("megatron_adapter", {"megatron_config": {"a": 1}})):
        paths[name] = Path(shutil.copytree(micro.COLD_START, folder / name))
        config = json.loads((paths[name] / "adapter_config.json").read_text())
        (paths[name] / "adapter_config.json").write_text(json.dumps(config | settings))
    weights = paths["pickled_adapter"] / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    paths["kernel_model"] = Path(shutil.copytree(micro.POLICY, folder / "kernel_model"))
    config = json.loads((paths["kernel_model"] / "config.json").read_text())
    (paths["kernel_model"] / "config.json").write_text(json.dumps(config | {"_attn_implementation": "evil/kernel"}))
    report = json.loads((CONFIGS.parent / "docs" / "results" / "demo_translation" / "report.json").read_text())
    paths["kinds_report"] = folder / "report.json"
    paths["kinds_report"].write_text(json.dumps(report | {"created": 5}))
    paths["kinds_measurement"] = folder / "measured"
    paths["kinds_measurement"].mkdir()
    (paths["kinds_measurement"] / "measurement.json").write_text(json.dumps({"version": 1, "arm": "../../x"}))
    return paths
