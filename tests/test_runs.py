"""Which folder a run takes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from full_disk import full_disk
from lsemrl.errors import UserError
from lsemrl.runs import (
    begin_run,
    checkpoints,
    file_sizes,
    find_run,
    finish_run,
    furthest_run,
    has_finished,
    is_rank_zero,
    later_run,
    steps_taken,
    truncate_files,
)

CONFIG: dict[str, object] = {"seed_everything": 1, "trainer": {"max_epochs": 1, "devices": 1}, "config": ["a.yaml"]}


def opened(root: Path, config: object = CONFIG, *, resume: bool = True) -> tuple[str, str | None]:
    """As another process finds it, which ends at once."""
    code = (
        "import json, sys; from pathlib import Path; from lsemrl.runs import begin_run, find_run;"
        "root, config, resume = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == 'True';"
        "found = find_run(root, config) if resume else None;"
        "folder = found.parents[1] if found else begin_run(root, config, resume=resume);"
        "print(json.dumps([folder.name, found and found.name]))"
    )
    words = [sys.executable, "-c", code, str(root), json.dumps(config), str(resume)]
    folder, found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return folder, found


def begin_apart(root: Path) -> Path:
    """The folder of another start, which finds the others at work."""
    name, _ = opened(root, resume=False)
    return root / name


def test_of_the_runs_beside_one_the_last_that_is_finished_is_later(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("version_0", "version_9", "version_10", "copy")]
    for run in runs:
        (run / "adapter").mkdir(parents=True)
        (run / "config.yaml").touch()
    (tmp_path / "version_11").mkdir()  # at work
    assert [later_run(run) for run in runs] == [runs[2], runs[2], None, None]
    assert later_run(tmp_path / "nowhere") is None


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
    finish_run(tmp_path / "version_0", 7)
    finish_run(tmp_path / "version_2", 7)
    assert opened(tmp_path) == ("version_3", None)


def test_a_folder_is_the_same_however_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cold/adapter").mkdir(parents=True)
    Path("other").mkdir()
    Path("rows.jsonl").touch()

    def typed(at: str, adapter: str = "cold/adapter") -> dict[str, object]:
        policy = {"model": "a/b", "adapter": at + adapter}
        rewards = [{"path": f"{at}rows.jsonl"}]
        return {"trainer": {"default_root_dir": f"{at}out"}, "model": {"policy": policy, "rewards": rewards}}

    absolute = f"{tmp_path}/"
    assert opened(Path("out"), typed("")) == ("version_0", None)
    Path("out/version_0/checkpoints/step_5").mkdir(parents=True)
    assert opened(tmp_path / "out", typed(absolute)) == ("version_0", "step_5")
    assert opened(tmp_path / "out", typed(absolute, "other")) == ("version_1", None)
    assert opened(tmp_path / "out", typed("", "nowhere")) == ("version_2", None)


def test_another_address_of_the_server_is_the_same_run(tmp_path: Path) -> None:
    def drawn(**sampling: object) -> dict[str, object]:
        return {**CONFIG, "model": {"sampling": {"engine": "vllm", **sampling}}}

    assert opened(tmp_path, drawn(server="http://a:8000", server_timeout=60)) == ("version_0", None)
    (tmp_path / "version_0" / "checkpoints" / "step_5").mkdir(parents=True)
    assert opened(tmp_path, drawn(server="http://b:9", server_timeout=90)) == ("version_0", "step_5")
    assert opened(tmp_path, drawn(server="http://a:8000", top_p=0.5)) == ("version_1", None)


def test_where_a_run_began_tells_it_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = Path("runs/version_0/checkpoints/step_5")
    there.mkdir(parents=True)

    def begun(resume: object) -> dict[str, object]:
        return {**CONFIG, "trainer": {"default_root_dir": "runs"}, "checkpoints": {"resume": str(resume), "keep": 1}}

    assert opened(Path("runs"), begun("auto")) == ("version_1", None)
    assert opened(Path("runs"), begun(there)) == ("version_2", None)
    for name in ("version_1", "version_2"):
        (Path("runs") / name / "checkpoints" / "step_7").mkdir(parents=True)
    shutil.rmtree(there)  # which the run needs no longer
    for typed in (there, there.absolute(), f"./{there}/"):
        assert opened(Path("runs"), begun(typed)) == ("version_2", "step_7")
    for typed in ("auto", "never"):
        assert opened(Path("runs"), begun(typed)) == ("version_1", "step_7")


def test_a_run_that_is_named_goes_on_wherever_it_reads_from(tmp_path: Path) -> None:
    assert opened(tmp_path) == ("version_0", None)
    run = tmp_path / "version_0"
    (run / "checkpoints" / "step_5").mkdir(parents=True)
    assert furthest_run(tmp_path) == run
    begin_apart(tmp_path)
    assert find_run(tmp_path, {}, run) == run / "checkpoints" / "step_5"
    assert opened(tmp_path) == ("version_1", None)  # the other is held
    finish_run(run, 7)
    assert furthest_run(tmp_path) is None
    with pytest.raises(UserError, match="a run that has ended; name one of its checkpoints/"):
        find_run(tmp_path, {}, run)


def test_a_run_that_is_named_does_what_it_was_begun_with(tmp_path: Path) -> None:
    (run := tmp_path / "version_0" / "checkpoints" / "step_5").mkdir(parents=True)
    begun = {
        "model": {
            "init_args": {"optimizer": {"lr": 1e-5}},
            "policy": {"model": "there", "rank": 8},
            "rewards": {"similarity": {"encoder": "there", "of an earlier one": 1}},
        },
        "data": [{"path": "there.tsv", "rows": 3, "columns": {"path": "b"}}],
        "trainer": {"max_steps": 9, "devices": 1},
        "gone": 1,
    }
    (tmp_path / "version_0" / "config.yaml").write_text(yaml.safe_dump(begun))
    moved: Any = yaml.safe_load(yaml.safe_dump(begun).replace("there", "elsewhere").replace("devices: 1", "devices: 2"))
    del moved["gone"], moved["model"]["rewards"]["similarity"]["of an earlier one"]
    assert find_run(tmp_path, {**moved, "new": 1}, run.parents[1]) == run
    for path, value, said in (
        (("model", "init_args", "optimizer", "lr"), 2e-5, r"model\.optimizer\.lr 1e-05 and not 2e-05"),
        (("trainer", "max_steps"), 12, r"trainer\.max_steps 9 and not 12"),
        (("data", 0, "rows"), 4, r"data\.0\.rows 3 and not 4"),
        (("data",), [], r"data \[{.*}\] and not \[\]"),
        (("model", "policy"), None, r"model\.policy {.*} and not None"),
        (("model", "rewards"), {}, r"model\.rewards\.similarity {.*} and not None"),
        (("model", "rewards", "length"), {"weight": 3.0}, r"model\.rewards\.length None and not {'weight': 3\.0}"),
        (("data", 0, "columns"), {"path": "c"}, r"data\.0\.columns\.path 'b' and not 'c'"),
    ):
        other = copy.deepcopy(moved)
        inner = other
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        with pytest.raises(UserError, match=f"begun with {said}; give that as it was, or name one of its checkpoints/"):
            find_run(tmp_path, other, run.parents[1])


def test_of_several_that_were_interrupted_the_furthest_goes_on(tmp_path: Path) -> None:
    """A second start by mistake, stopped, hides nothing of the first."""
    assert opened(tmp_path) == ("version_0", None)
    (tmp_path / "version_0" / "checkpoints" / "step_1000").mkdir(parents=True)
    for step in (None, 0):
        folder = begin_apart(tmp_path)
        if step is not None:
            (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
    assert opened(tmp_path) == ("version_0", "step_1000")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", None])
def test_whether_a_run_has_finished_is_looked_up_and_nothing_held(content: bytes | None, tmp_path: Path) -> None:
    assert opened(tmp_path) == ("version_0", None)
    (tmp_path / "version_0" / "checkpoints" / "step_5").mkdir(parents=True)
    (tmp_path / "version_0" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    record = tmp_path / "version_0" / "run.json"
    record.unlink() if content is None else record.write_bytes(content)
    assert not has_finished(tmp_path / "version_0")
    assert opened(tmp_path) == ("version_0", "step_5")  # by another process, which nobody keeps out


def test_without_locks_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", none)
    folder = begin_run(tmp_path, CONFIG, resume=True)
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    assert find_run(tmp_path, CONFIG) == folder / "checkpoints" / "step_5"


def test_what_came_to_nothing_is_begun_again_in_its_place(tmp_path: Path) -> None:
    assert opened(tmp_path) == ("version_0", None)
    for name in ("config.yaml", "samples.csv", "metrics.csv", "events.out.tfevents.17.host.1.2"):
        (tmp_path / "version_0" / name).write_text("one\n")
    assert opened(tmp_path) == ("version_0", None)
    assert sorted(path.name for path in (tmp_path / "version_0").iterdir()) == [".lock", "run.json"]


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    folder = begin_run(tmp_path, CONFIG, resume=True)
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    assert opened(tmp_path) == ("version_1", None)


@pytest.mark.parametrize(
    "name", ["adapter", "best", "checkpoints", "eval", "notes.md", "skipped.jsonl", "alarms.jsonl"]
)
def test_a_folder_with_anything_to_keep_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    """What was kept for others, what a sentence sent its reader to, and files that are no run's."""
    assert opened(tmp_path) == ("version_0", None)
    kept, samples = tmp_path / "version_0" / name, tmp_path / "version_0" / "samples.csv"
    kept.write_text("mine") if "." in name else kept.mkdir()
    samples.write_text("one\n")
    assert opened(tmp_path) == ("version_1", None)
    assert kept.exists() and samples.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 80, b"[]", b"\xff", b'{"identity": 1}', None])
def test_a_record_that_cannot_be_read_is_made_again_from_the_configuration(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert opened(tmp_path) == ("version_0", None)
    folder = tmp_path / "version_0"
    (folder / "checkpoints" / "step_5").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "run.json").unlink()
    if content is not None:
        (folder / "run.json").write_bytes(content)
    assert find_run(tmp_path, {**CONFIG, "seed_everything": 2}) is None
    assert "cannot be read" in caplog.text and "made again from config.yaml" in caplog.text
    assert find_run(tmp_path, CONFIG) == folder / "checkpoints" / "step_5"
    assert (folder / "run.json.damaged").exists() == (content is not None)
    (folder / "run.json").write_bytes(b"{")
    (folder / "adapter").mkdir()
    assert find_run(tmp_path, CONFIG) is None, "it has come to its end"


def test_a_run_that_nothing_tells_of_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "version_0" / "checkpoints" / "step_5").mkdir(parents=True)
    (tmp_path / "version_0" / "run.json").write_bytes(b"{")
    assert begin_run(tmp_path, CONFIG, resume=True).name == "version_1"
    assert "version_0/run.json cannot be read, nor config.yaml beside it: the run is left as it is" in caplog.text


def test_a_start_on_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(UserError, match=r"run\.json' cannot be written to"):
        begin_run(tmp_path, CONFIG, resume=True)
    assert not list(tmp_path.iterdir())


def test_all_of_many_starts_at_once_have_a_folder_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lsemrl.runs import new_folder\n"
        "print(*(new_folder(Path(sys.argv[1]) / 'runs').name for _ in range(60)))"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    names = [name for start in starts for name in start.communicate()[0].split()]
    assert len(set(names)) == len(names) == 240


def test_appended_files_end_where_the_checkpoint_left_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "samples.csv"
    path.write_text("a\nb\n")
    sizes = file_sizes(tmp_path)
    assert sizes == {"samples.csv": 4}
    path.write_text("a\nb\nc\n")
    (tmp_path / "skipped.jsonl").write_text("{}\n")
    truncate_files(tmp_path, sizes)
    assert path.read_text() == "a\nb\n" and not (tmp_path / "skipped.jsonl").exists() and not caplog.text
    for damaged in ("a\n", "a\nb\0", ""):  # shorter, or padded
        path.write_text(damaged)
        truncate_files(tmp_path, sizes)
        assert not path.exists() and "is not as its checkpoint left it: kept as" in caplog.text
    truncate_files(tmp_path, sizes)
    assert not path.exists() and "samples.csv is gone: it is begun again" in caplog.text
    assert sorted(each.read_text() for each in tmp_path.iterdir()) == ["", "a\n", "a\nb\0"]


@pytest.mark.parametrize("damage", ['"seven"', "[7]", "NaN", "1e999", "null", "{}"])
def test_a_damaged_record_tells_no_steps(damage: str, tmp_path: Path) -> None:
    """As `export` asks it, which then goes by what was logged and saved."""
    (tmp_path / "run.json").write_text(f'{{"finished": true, "rollout_step": {damage}}}')
    assert steps_taken(tmp_path) == 0
    (tmp_path / "run.json").write_text('{"finished": true, "rollout_step": 7}')
    assert steps_taken(tmp_path) == 7


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step_9", "step_10", ".step_11", "step_x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_9", "step_10"]


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trainer\.default_root_dir is .*, which cannot be written to"):
        begin_run(tmp_path / "file", CONFIG, resume=True)


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
