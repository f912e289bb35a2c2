"""Which folder a run takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lsemrl.errors import UserError
from lsemrl.runs import checkpoints, finish_run, is_rank_zero, open_run

CONFIG = {"seed_everything": 1, "trainer": {"max_epochs": 1, "devices": 1}, "config": ["a.yaml"]}


def opened(root: Path, config: object = CONFIG, *, resume: bool = True) -> tuple[str, str | None]:
    """As another process finds it, which ends at once."""
    code = (
        "import json, sys; from pathlib import Path; from lsemrl.runs import open_run;"
        "folder, found = open_run(Path(sys.argv[1]), json.loads(sys.argv[2]), resume=sys.argv[3] == 'True');"
        "print(json.dumps([folder.name, found and found.name]))"
    )
    words = [sys.executable, "-c", code, str(root), json.dumps(config), str(resume)]
    folder, found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return folder, found


def test_the_same_command_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    assert opened(tmp_path) == ("version_0", None)
    for step in (5, 20):
        (tmp_path / "version_0" / "checkpoints" / f"step_{step}").mkdir(parents=True)
    (tmp_path / "version_0" / "checkpoints" / ".step_30").mkdir()  # half of one
    assert opened(tmp_path) == ("version_0", "step_20")
    elsewhere = {**CONFIG, "trainer": {"max_epochs": 1, "devices": 4}, "config": ["b.yaml"], "checkpoints": {"keep": 1}}
    assert opened(tmp_path, elsewhere) == ("version_0", "step_20")
    assert opened(tmp_path, {**CONFIG, "seed_everything": 2}) == ("version_1", None)
    assert opened(tmp_path, resume=False) == ("version_2", None)
    finish_run(tmp_path / "version_0")
    finish_run(tmp_path / "version_2")
    assert opened(tmp_path) == ("version_3", None)


def test_what_came_to_nothing_is_begun_again_in_its_place(tmp_path: Path) -> None:
    assert opened(tmp_path) == ("version_0", None)
    (tmp_path / "version_0" / "samples.csv").write_text("one\n")
    assert opened(tmp_path) == ("version_0", None)
    assert sorted(path.name for path in (tmp_path / "version_0").iterdir()) == [".lock", "run.json"]


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    folder, _ = open_run(tmp_path, CONFIG, resume=True)
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    assert opened(tmp_path) == ("version_1", None)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", ".step_11", "step_x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_9", "step_10"]


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trainer\.default_root_dir is .*, which cannot be written to"):
        open_run(tmp_path / "file", CONFIG, resume=True)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_the_first_of_all_ranks(variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() == first
