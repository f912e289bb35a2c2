"""What is read beside a model's weights: a tokenizer that can end and pad a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import short_runs
from lsemrl.errors import UserError
from lsemrl.modules.policy import Policy
from lsemrl.modules.pretrained import read_config_and_tokenizer
from tiny import make_policy, save_tiny_model


def change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file; None deletes one."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def model(folder: Path, **tokens: None) -> Path:
    """A tiny model that ends with one token, without the `tokens` of its tokenizer that are None."""
    save_tiny_model(folder)
    change(folder / "generation_config.json", eos_token_id=1, pad_token_id=None)
    change(folder / "tokenizer_config.json", **tokens)
    return folder


def test_padding_with_the_eos_changes_no_number(tmp_path: Path) -> None:
    trained, metrics, texts = [], [], []
    for name, tokens in (("own", {}), ("eos", {"pad_token": None})):
        folder = model(tmp_path / name, **tokens)
        run = short_runs.run(short_runs.grpo(str(folder)), tmp_path / f"run_{name}", epochs=1)
        assert (run.policy.tokenizer.pad_token_id == run.policy.tokenizer.eos_token_id) is (name == "eos")
        trained.append(short_runs.trained(run))
        metrics.append(short_runs.metrics(tmp_path / f"run_{name}"))
        texts.append((tmp_path / f"run_{name}" / "samples.csv").read_text())
    assert metrics[0] == metrics[1]
    assert texts[0] == texts[1]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_policy_without_eos_in_its_tokenizer_ends_as_its_model_declares(tmp_path: Path) -> None:
    folder = model(tmp_path, eos_token=None)
    policy = make_policy(str(folder))
    assert policy.tokenizer.eos_token_id == 1
    assert policy.eos_ids() == [1]
    policy.save(tmp_path / "adapter")
    assert read_config_and_tokenizer(str(tmp_path), trust=False)[1].eos_token == policy.tokenizer.eos_token
    change(tmp_path / "generation_config.json", eos_token_id=None)
    assert Policy(policy.settings).tokenizer.eos_token_id == 1  # by config.json
    change(tmp_path / "config.json", eos_token_id=None)
    with pytest.raises(UserError, match="has no EOS token, and its model's configuration names none"):
        Policy(policy.settings)
