"""Configuration files: found by name from anywhere, and always before what is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS, config_path, prepare_configs
from lsemrl.types import UserError


@pytest.mark.parametrize("name", ["grpo.yaml", "configs/grpo.yaml", "measure/translation.yaml"])
def test_a_shipped_file_is_found_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(config_path(name)) == CONFIGS / name.removeprefix("configs/")
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("a: 1\n")
    assert config_path(name) == name
    with pytest.raises(UserError, match=r"--config is 'nope.yaml', which cannot be read"):
        prepare_configs(["--config", "nope.yaml"])


def test_what_is_typed_overrides_a_file_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--model.optimizer.lr=0.125", "--config", "grpo.yaml", "--model.loss.beta", "0.5"]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    shown = capsys.readouterr().out
    assert "lr: 0.125" in shown and "beta: 0.5" in shown
