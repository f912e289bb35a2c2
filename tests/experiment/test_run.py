"""Running an experiment with a stand-in for the command line: what is skipped, resumed, reported and stopped."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from experiment.world import FAKE, STAGES, World
from lsemrl.errors import UserError
from lsemrl.experiment import run
from lsemrl.experiment.plan import VERBS
from lsemrl.experiment.run import _write_index, run_experiment
from lsemrl.experiment.state import begin

ALL = ["cold 1", "rl 1", "rl_test 1", "other 1"]
RUNNER = """
import signal, sys
from pathlib import Path
from lsemrl.experiment.read import read_experiment
from lsemrl.experiment.run import run_experiment

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # tests that run in the background ignore some
raise SystemExit(run_experiment(read_experiment(Path("trial.yaml"), Path("configs")), prefix=sys.argv[1:]))
"""


def doing(**what: str) -> list[dict[str, Any]]:
    """The stages, with what the stand-in is to do in some of them."""
    stages = copy.deepcopy(STAGES)
    for stage in stages:
        if stage["name"] in what:
            stage["overrides"] = {**stage.get("overrides", {}), "fake.do": what[stage["name"]]}
    return stages


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_everything_is_run_once(world: World) -> None:
    status, printed = world.run(seeds=[1, 2])
    assert status == 0
    assert world.started() == [*ALL, "cold 2", "rl 2", "rl_test 2", "other 2"]
    assert "8 done" in printed
    assert "[2/8] rl seed 1: started (new)" in printed
    adapter = world.output / "cold" / "seed_1" / "adapter"
    assert (adapter / "adapter_config.json").is_file()
    assert f"--model.policy.adapter={adapter}" in (world.output / "rl" / "seed_1" / "log.txt").read_text()
    done = json.loads((world.output / "rl" / "seed_1" / "done.json").read_text())
    assert done["versions"].keys() >= {"lsemrl", "torch", "lightning"}
    assert done["peak_bytes"] > 1e6 and done["seconds"] >= 0
    status, printed = world.run(seeds=[1, 2])
    assert status == 0
    assert world.started() == []
    assert "8 runs, 8 of them complete and unchanged" in printed


def test_a_change_runs_what_it_reaches_and_sets_aside_what_was_there(world: World) -> None:
    world.run()
    world.started()
    stages = copy.deepcopy(STAGES)
    stages[0]["overrides"] = {"model.loss.beta": 0.2}
    shown = world.plan(stages=stages)
    assert "rl seed 1: run, its settings changed" in shown
    assert "rl_test seed 1: run, what it builds on changed" in shown
    assert "cold seed 1: skip, complete and unchanged" in shown
    assert world.run(stages=stages)[0] == 0
    assert world.started() == ["rl 1", "rl_test 1"]
    folder = world.output / "rl" / "seed_1"
    old = world.folder / "out.superseded" / "rl" / "seed_1"
    assert (old / "1" / "done.json").is_file()
    assert (old / "1" / "version_0" / "adapter").is_dir()
    assert (folder / "adapter").resolve() == (folder / "version_0" / "adapter").resolve()
    status, printed = world.run()  # and back again
    assert status == 0 and world.started() == []
    assert f"rl seed 1: copied from {old / '1'}" in printed
    assert sorted(path.name for path in old.iterdir()) == ["1", "2"]
    shutil.rmtree(old / "1")
    stages[0]["overrides"] = {"model.loss.beta": 0.3}
    assert world.run(stages=stages)[0] == 0
    assert sorted(path.name for path in old.iterdir()) == ["2", "3"]


def test_what_an_output_without_a_name_held_is_set_aside_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder / "here").mkdir()
    monkeypatch.chdir(world.folder / "here")
    stages = [{"name": "cold", "verb": "fit", "configs": ["base.yaml"]}]
    assert world.run(stages=stages, output=".")[0] == 0
    stages[0]["overrides"] = {"a": 1}
    assert world.run(stages=stages, output=".")[0] == 0
    assert (world.folder / "here.superseded" / "cold" / "seed_1" / "1" / "done.json").is_file()


def test_data_that_are_not_there_change_nothing(world: World) -> None:
    Path("rows.jsonl").write_text("1")
    stages = [{"name": "cold", "verb": "fit", "configs": [], "overrides": {"data.path": "rows.jsonl"}}]
    world.run(stages=stages)
    Path("rows.jsonl").rename("away")
    with pytest.raises(UserError, match=r"cold seed 1 in .* was made by 'rows.jsonl', which is not there; put it back"):
        world.run(stages=stages)
    stages[0]["overrides"] = {"data.path": "away"}
    assert "cold seed 1: run, its settings changed" in world.plan(stages=stages)
    Path("away").rename("rows.jsonl")
    stages[0]["overrides"] = {"data.path": "rows.jsonl"}
    assert "cold seed 1: skip, complete and unchanged" in world.plan(stages=stages)


@pytest.mark.parametrize("file", ["configs/rl.yaml", "rows.jsonl"])
def test_what_is_edited_meanwhile_is_not_run(world: World, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    Path("rows.jsonl").write_text("1")
    stages = [{"name": "rl", "verb": "fit", "configs": ["rl.yaml"], "overrides": {"data.path": "rows.jsonl"}}]
    content, finish = Path(file).read_text(), run.finish

    def edited(*args: Any, **words: Any) -> str | None:
        Path(file).write_text(f"{content} ")
        if file.endswith("yaml"):
            Path(file).write_text("a: 1")
        return finish(*args, **words)

    monkeypatch.setattr(run, "finish", edited)
    status, printed = world.run(stages=stages, seeds=[1, 2])
    assert status == 1 and world.started() == ["rl 1"]
    assert f"{file} changed since this was started; the same command" in printed
    Path(file).write_text(content)
    assert "rl seed 1: skip" in (shown := world.plan(stages=stages, seeds=[1, 2])) and "rl seed 2: run, new" in shown


def test_a_changed_word_for_people_runs_nothing(world: World) -> None:
    world.run()
    world.started()
    stages = copy.deepcopy(STAGES)
    stages[0] |= {"label": "RL", "description": "GRPO."}
    assert world.run(stages=stages)[0] == 0
    assert world.started() == []
    index = json.loads((world.output / "experiment.json").read_text())
    assert [stage["label"] for stage in index["stages"]] == ["cold", "RL", "rl_test", "other"]


def test_a_failure_is_reported_and_the_rest_goes_on(world: World) -> None:
    status, printed = world.run(stages=doing(cold="fail"))
    assert status == 1
    assert world.started() == ["cold 1", "other 1"]
    assert "cold seed 1 failed after" in printed and "exit status 3" in printed
    assert "    line 99" in printed and "line 50" not in printed
    assert "rl seed 1 is not run: what it builds on failed" in printed
    assert "rl_test seed 1 is not run" in printed
    assert "missing: cold seed 1, rl seed 1, rl_test seed 1" in printed
    assert world.run(stages=doing(cold="fail"))[0] == 1
    assert world.started() == ["cold 1"]  # it is tried again; what is complete is not
    assert world.run()[0] == 0
    assert world.started() == ALL[:3]


def test_a_child_that_is_killed_is_named_by_its_signal(world: World) -> None:
    prefix = (sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)")
    text = io.StringIO()
    assert run_experiment(world.read(), prefix=prefix, console=Console(file=text, width=200)) == 1
    assert "ended by SIGKILL" in text.getvalue()


def test_a_fit_that_leaves_no_adapter_has_failed(world: World) -> None:
    status, printed = world.run(stages=doing(cold="no_adapter"))
    assert status == 1
    assert "it left no adapter" in printed
    assert not (world.output / "cold" / "seed_1" / "done.json").exists()


def test_an_adapter_that_is_gone_is_made_again(world: World) -> None:
    world.run()
    world.started()
    (world.output / "rl" / "seed_1" / "version_0" / "adapter").rename(world.folder / "away")
    assert "rl seed 1: run, its adapter is gone" in world.plan()
    assert world.run()[0] == 0
    assert world.started() == ["rl 1"]


def test_a_measurement_that_is_gone_is_made_again_and_not_copied(world: World) -> None:
    stages = [{"name": "measured", "verb": "measure", "configs": ["base.yaml"]}]
    assert world.run(stages=stages)[0] == 0
    folder = world.output / "measured" / "seed_1"
    (folder / "measurement.json").unlink()
    (folder / "predictions.jsonl").write_text("")
    second = str(world.folder / "second")
    assert "measured seed 1: run, new" in world.plan(stages=stages, output=second)
    assert "measured seed 1: run, its measurement.json is gone" in world.plan(stages=stages)
    world.started()
    assert world.run(stages=stages)[0] == 0
    assert world.started() == ["measured 1"] and (folder / "measurement.json").is_file()
    old = world.folder / "out.superseded" / "measured" / "seed_1" / "1"
    assert (old / "predictions.jsonl").is_file()  # what is left of it is no matter of the new one


def test_a_measure_that_leaves_none_has_failed(world: World) -> None:
    stages = [{"name": "measured", "verb": "measure", "configs": [], "overrides": {"fake.do": "nothing"}}]
    status, printed = world.run(stages=stages)
    assert status == 1 and "it left no measurement.json" in printed


def test_stages_run_side_by_side(world: World) -> None:
    # Each waits for what the other does, so that one at a time they would not end.
    marks = {name: world.output / name / "seed_1" / "version_0" for name in ("cold", "other")}
    stages = doing(cold=f"wait_for {marks['other']}", other=f"wait_for {marks['cold']}")
    assert world.run(parallel=2, stages=stages)[0] == 0
    assert sorted(world.started()) == sorted(ALL)


@pytest.mark.parametrize(
    ("do", "number"),
    [
        ("hang", signal.SIGINT),
        pytest.param("hang", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("hang", signal.SIGHUP, marks=pytest.mark.slow),
        ("hang_stubbornly", signal.SIGTERM),
    ],
)
def test_a_signal_stops_the_children_and_another_call_goes_on(world: World, do: str, number: int) -> None:
    world.write(stages=doing(rl=do))
    checkpoint = world.output / "rl" / "seed_1" / "version_0" / "checkpoints" / "step_5"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, *FAKE], stdout=subprocess.PIPE, text=True)
    wait_for(checkpoint.exists)
    runner.send_signal(number)
    if do == "hang_stubbornly":
        time.sleep(0.5)
        runner.send_signal(number)  # whoever asks twice need not wait
    printed, _ = runner.communicate(timeout=30)
    assert runner.returncode == 128 + number
    assert "the same command goes on from here" in printed
    assert not any(alive(entry["pid"]) for entry in world.journal())
    assert world.started() == ALL[:2]
    named = f"--checkpoints.resume={checkpoint.parents[1]}"  # else it would be looked for by where its adapter lies
    shown = world.plan(stages=doing(rl=do))
    assert "rl seed 1: run, not finished; goes on from version_0/checkpoints/step_5" in shown and named in shown
    assert world.run(stages=doing(rl=do))[0] == 0
    assert [named in entry["words"] for entry in world.journal()] == [True, False, False]
    assert world.started() == ALL[1:]
    assert json.loads((world.output / "rl" / "seed_1" / "done.json").read_text())["resumed"]


def test_a_child_may_take_its_time_to_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = itertools.count(step=3600.0)
    clock = SimpleNamespace(monotonic=lambda: next(hours), sleep=time.sleep)
    monkeypatch.setattr("lsemrl.experiment.run.time", clock)
    (world.folder / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), open('saved', 'w'), sys.exit(143)))\n"
        "open('ready', 'w')\n"
        "time.sleep(20)\n"
    )

    def interrupt() -> None:
        wait_for((world.folder / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=interrupt)
    asking.start()
    text = io.StringIO()
    prefix = (sys.executable, "-S", "child.py")
    assert run_experiment(world.read(), prefix=prefix, console=Console(file=text, width=200)) == 128 + signal.SIGTERM
    asking.join()
    assert (world.folder / "saved").exists()
    assert "waiting for the steps at work" in text.getvalue()


@pytest.mark.parametrize(
    ("verb", "goes_on"), [("measure", True), ("rehearse", True), ("best-of", True), ("general", False), ("fit", False)]
)
def test_what_goes_on_is_said_to_and_tells_no_duration(world: World, verb: str, goes_on: bool) -> None:
    stages = [{"name": "one", "verb": verb, "configs": [], "overrides": {}}]
    one = world.read(stages=stages).runs()[0]
    begin(one, "trial")
    told = "goes on from what is there" if goes_on else "starts again"
    assert f"one seed 1: run, not finished; {told}" in world.plan(stages=stages)
    if verb in ("best-of", "general"):  # the stand-in leaves none
        (one.folder / VERBS[verb].leaves).write_text("")
    if verb != "fit":
        world.run(stages=stages)
        assert json.loads((one.folder / "done.json").read_text())["resumed"] == goes_on


def test_what_no_seed_decides_is_run_once(world: World) -> None:
    """The identifier and, by it, the base; what builds on them does so with every seed."""
    stages = [
        {"name": "own", "verb": "rehearse"},
        {"name": "language", "verb": "fit-language"},
        {"name": "base", "verb": "measure", "overrides": {"metrics.language": "{stage:language}/identifier"}},
        {"name": "trained", "verb": "fit", "overrides": {"model.reward": "{stage:language}/identifier"}},
        {"name": "measured", "verb": "measure", "after": "trained"},
    ]
    plan, alone = (
        world.read(stages=[{"configs": [], **each} for each in stages], seeds=seeds) for seeds in ([3, 1], [1])
    )
    names = [run.name for run in plan.runs()]
    assert names == [
        *("own seed 3", "language seed 3", "base seed 3", "trained seed 3", "measured seed 3"),
        *("own seed 1", "trained seed 1", "measured seed 1"),
    ]
    last = plan.runs()[-2]
    assert f"--model.reward={world.output}/language/seed_3/identifier" in last.command
    assert last.hashes == alone.runs()[3].hashes  # whichever seeds there are
    assert "to run: 8 of 8" in world.plan(stages=[{"configs": [], **stage} for stage in stages], seeds=[3, 1])
    plan.output.mkdir()
    _write_index(plan, plan.runs())
    index = json.loads((plan.output / "experiment.json").read_text())
    assert [stage["seeds"] for stage in index["stages"]] == [[3, 1], [3], [3], [3, 1], [3, 1]]


def test_nobody_works_beside_a_child_that_was_left_behind(world: World) -> None:
    world.write(stages=doing(rl="hang"))
    checkpoint = world.output / "rl" / "seed_1" / "version_0" / "checkpoints" / "step_5"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, *FAKE], stdout=subprocess.DEVNULL)
    wait_for(checkpoint.exists)
    with pytest.raises(UserError, match=r"where an experiment is at work .*; wait for it, or end it"):
        world.run(stages=doing(rl="hang"))
    runner.kill()
    runner.wait()
    left = world.journal()[-1]["pid"]
    assert alive(left)
    with pytest.raises(UserError, match=f"where an experiment is at work .*{left}"):
        world.run(stages=doing(rl="hang"))
    os.kill(left, signal.SIGKILL)
    wait_for(lambda: not alive(left))
    assert world.run(stages=doing(rl="hang"))[0] == 0
    assert not (checkpoint.parents[2] / "version_1").exists()


def test_a_child_that_was_left_behind_and_came_to_its_end_is_not_run_again(world: World) -> None:
    world.write(stages=doing(rl="hang"))
    version = world.output / "rl" / "seed_1" / "version_0"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, *FAKE], stdout=subprocess.DEVNULL)
    wait_for((version / "checkpoints" / "step_5").exists)
    runner.kill()
    runner.wait()
    os.kill(world.journal()[-1]["pid"], signal.SIGKILL)
    wait_for(lambda: not alive(world.journal()[-1]["pid"]))
    (version / "adapter").mkdir()
    (version / "run.json").write_text(json.dumps({"identity": "", "finished": True}))
    shown = world.plan(stages=doing(rl="hang"))
    assert "rl seed 1: skip, came to its end after its experiment was killed" in shown
    before = world.started()
    assert world.run(stages=doing(rl="hang"))[0] == 0
    assert "rl" not in [Path(name).parent.name for name in world.started()[len(before) :]]
    assert (world.output / "rl" / "seed_1" / "adapter").resolve() == (version / "adapter").resolve()


def test_a_copy_of_a_run_is_none_of_its_versions(world: World) -> None:
    world.write(stages=doing(rl="fail"))
    assert world.run(stages=doing(rl="fail"))[0] == 1
    (world.output / "rl" / "seed_1" / "version_0_backup" / "checkpoints" / "step_9").mkdir(parents=True)
    assert "rl seed 1: run, not finished; starts again" in world.plan(stages=doing(rl="fail"))


def test_without_locks_experiments_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    assert world.run()[0] == 0


def test_a_checkpoint_of_other_settings_is_not_taken_up(world: World) -> None:
    world.write(stages=doing(cold="hang"))
    checkpoint = world.output / "cold" / "seed_1" / "version_0" / "checkpoints" / "step_5"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, *FAKE], stdout=subprocess.DEVNULL)
    wait_for(checkpoint.exists)
    runner.send_signal(signal.SIGTERM)
    runner.wait()
    stages = doing()
    stages[1]["overrides"]["a.b"] = 1
    assert world.run(stages=stages)[0] == 0
    assert not checkpoint.exists()  # moved away, before anything could go on from it


def test_a_verb_of_our_own_needs_nothing_special(world: World) -> None:
    stage = {"name": "measured", "verb": "measure", "configs": ["base.yaml"], "after": "rl"}
    assert world.run(stages=[*STAGES, stage])[0] == 0
    assert (world.output / "measured" / "seed_1" / "measurement.json").is_file()
    assert world.run(stages=[*STAGES, stage])[0] == 0
    assert len(world.started()) == 5


@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_of_somebody_else_is_left_alone(world: World, marked: bool) -> None:
    folder = world.output / "rl" / "seed_1"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("")
    if marked:
        identity = {"experiment": "another", "stage": "rl", "seed": 1, "hashes": {}, "files": []}
        (folder / "stage.json").write_text(json.dumps(identity))
    owner = "of experiment 'another'" if marked else "that no experiment has made"
    with pytest.raises(UserError, match=f"a folder {owner}, not of 'trial'; name another output"):
        world.plan()
    with pytest.raises(UserError, match=f"a folder {owner}, not of 'trial'; name another output"):
        world.run()
    assert world.started() == []


def test_a_record_that_is_broken(world: World) -> None:
    world.run()
    for name, field, values in (
        ("stage.json", "hashes", (None, 3)),
        ("stage.json", "files", (None, [["a"]])),
        ("done.json", "hash", (None,)),
        ("done.json", "seconds", (None, "x")),
        ("done.json", "resumed", (None,)),
        ("done.json", "peak_bytes", ("x",)),
    ):
        path = world.output / "rl" / "seed_1" / name
        whole = path.read_text()
        edited = [json.dumps(json.loads(whole) | {field: value}) for value in values]
        for content in ("{", "[]", "{}", "[" * 9000, *edited):
            path.write_text(content)
            with pytest.raises(UserError, match=rf"{name}' .* restore it, or move its folder away"):
                world.plan(seeds=[1, 2], seconds={"rl": 600})
        path.write_text(whole)


def test_a_folder_that_cannot_be_written(world: World) -> None:
    world.output.write_text("")
    with pytest.raises(UserError, match=r"output is .*, which cannot be written to"):
        world.run()


def test_the_plan_says_what_is_known_and_writes_nothing(world: World) -> None:
    shown = world.plan(seconds={"cold": 600})
    assert not world.output.exists()
    assert "[1/4] cold seed 1: run, new; about 10 min (as stated)" in shown
    assert "[2/4] rl seed 1: run, new; duration unknown" in shown
    assert "memory" not in shown
    assert "to run: 4 of 4; about 10 min one at a time, and 3 of unknown duration" in shown
    assert f"  lsemrl fit --config {world.configs}/base.yaml --seed_everything=1" in shown
    world.run()
    path = world.output / "rl" / "seed_1" / "done.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 7200.0, "peak_bytes": 3e9}))
    shown = world.plan(seeds=[1, 2])
    assert "rl seed 1: skip, complete and unchanged\n" in shown
    assert "rl seed 2: run, new; about 2 h 00 min (as seed 1); 3.0 GB of memory (as seed 1)" in shown
    assert "to run: 4 of 8; about 2 h 00 min one at a time" in shown
    shown = world.plan(seeds=[1, 2, 3], parallel=2)
    assert "to run: 8 of 12; about 2 h 00 min, 2 at a time (4 h 00 min one at a time)" in shown
    assert "to run: 4 of 4; about 2 h 00 min one at a time" in world.plan(seeds=[2])  # though seed 1 is not asked for


def test_what_is_stated_goes_by_what_complete_runs_took(world: World) -> None:
    """It was stated of another machine."""
    stated = {"cold": 600, "rl": 1200}
    world.run()
    shutil.rmtree(world.output / "rl")
    path = world.output / "cold" / "seed_1" / "done.json"
    done = json.loads(path.read_text()) | {"seconds": 150.0}
    for record, says in (
        ({}, "about 5 min (0.25 of what is stated, as of runs so far)"),
        ({"resumed": True}, "about 20 min (as stated)"),
        ({"copied_from": "elsewhere"}, "about 20 min (as stated)"),
    ):
        path.write_text(json.dumps(done | record))
        assert f"rl seed 1: run, new; {says}" in world.plan(seconds=stated)
    path.write_text(json.dumps(done))
    assert "(as stated)" in world.plan(seconds={"cold": 100, "rl": 1200})  # seconds say how fast it starts


def test_what_another_configuration_took_says_nothing(world: World) -> None:
    world.run()
    stages = copy.deepcopy(STAGES)
    stages[0]["overrides"] = {"trainer.max_steps": 9}
    assert "rl seed 2: run, new; duration unknown" in world.plan(seeds=[2], stages=stages)


def test_what_is_left_is_no_less_than_what_waits_for_each_other(world: World) -> None:
    printed = world.run(seconds={"*": 70}, parallel=4)[1]
    assert "cold seed 1: done in 0 s; about 2 min left" in printed


def test_on_a_terminal_one_bar_stands_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsemrl.experiment.run._POLL", 0.1)  # or it is gone before it is drawn
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=True)
    assert run_experiment(world.read(seconds={"*": 2}), prefix=FAKE, console=console) == 0
    shown = text.getvalue()
    assert "rl seed 1: done in" in shown
    assert "[1/4] cold seed 1" in shown
    assert "left" in shown
    assert "started" not in shown


def test_cores_are_shared_between_runs_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    show = (sys.executable, "-S", "-c", "import os; print('threads', os.environ.get('OMP_NUM_THREADS'))")
    log = world.output / "cold" / "seed_1" / "log.txt"
    run_experiment(world.read(), prefix=show, parallel=2, console=Console(file=io.StringIO()))
    assert "threads 4" in log.read_text()
    run_experiment(world.read(), prefix=show, console=Console(file=io.StringIO()))
    assert "threads None" in log.read_text()


def test_a_folder_beside_that_is_taken_away_is_no_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output in /tmp, where others come and go, had ended the plan in a traceback."""
    (gone := world.output.parent / "gone" / "away").mkdir(parents=True)
    scandir = os.scandir

    def vanished(path: Any = ".") -> Any:
        if str(path).rstrip("/").endswith(str(Path("gone") / "away")) or Path(path).name == "gone":
            raise FileNotFoundError(2, "No such file or directory", str(gone))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanished)
    assert "cold seed 1: run, new" in world.plan()


def test_what_another_experiment_has_done_is_copied(world: World) -> None:
    assert world.run()[0] == 0
    assert world.started() == ["cold 1", "rl 1", "rl_test 1", "other 1"]
    first = world.output
    # Another file, other names of stages, one stage that is new.
    stages = [
        {"name": "start", "verb": "fit", "configs": ["base.yaml"], "overrides": {"data.part": "cold"}},
        {"name": "grpo", "verb": "fit", "configs": ["rl.yaml"], "after": "start"},
        {"name": "more", "verb": "fit", "configs": ["rl.yaml"], "overrides": {"model.loss.beta": 0.2}, "after": "grpo"},
    ]
    fields = {"output": str(world.folder / "second"), "stages": stages}
    shown = world.plan(**fields)
    assert "start seed 1: copy, new; a copy of" in shown
    assert "to run: 1 of 3, to copy: 2" in shown
    status, told = world.run(**fields)
    assert status == 0
    assert f"grpo seed 1: copied from {first / 'rl' / 'seed_1'}" in told
    assert "1 done" in told and "2 copied" in told
    assert world.started() == ["more 1"]
    copy = world.folder / "second" / "grpo" / "seed_1"
    assert (copy / "adapter").resolve().is_relative_to(copy.resolve())
    assert json.loads((copy / "done.json").read_text())["copied_from"] == str(first / "rl" / "seed_1")
    assert "3 skipped" in world.run(**fields)[1]
    # It is a copy: what becomes of the first is none of its business, and a changed stage is run.
    shutil.rmtree(first)
    stages[1]["overrides"] = {"model.loss.beta": 0.3}
    world.run(**fields)
    assert world.started() == ["grpo 1", "more 1"]


def test_a_stage_is_renamed_in_the_file_alone(world: World) -> None:
    stages = [{"name": "cold", "verb": "fit", "configs": ["base.yaml"]}]
    world.run(stages=stages)
    world.started()
    stages[0]["name"] = "cold_start"
    there = world.output / "cold"
    there.rename(world.output / "cold_start")
    with pytest.raises(UserError, match=r"a folder of stage 'cold', not of 'cold_start'; .* move the folder back: "):
        world.plan(stages=stages)
    (world.output / "cold_start").rename(there)
    assert f"cold_start seed 1: copied from {there / 'seed_1'}" in world.run(stages=stages)[1]
    assert world.started() == []


def test_what_was_begun_here_and_is_complete_beside_is_copied(world: World) -> None:
    stages = [{"name": "cold", "verb": "fit", "configs": ["base.yaml"]}]
    second = {"stages": stages, "output": str(world.folder / "second")}
    one = world.read(**second).runs()[0]
    begin(one, "trial")
    (one.folder / "version_0" / "checkpoints" / "step_5").mkdir(parents=True)
    world.run(stages=stages)
    world.started()
    assert "1 copied" in world.run(**second)[1]
    assert world.started() == []
    assert (world.folder / "second.superseded/cold/seed_1/1/version_0/checkpoints/step_5").is_dir()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_what_is_another_run_by_now_is_not_copied(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str, how: str
) -> None:
    stages = [{"name": "cold", "verb": "fit", "configs": ["base.yaml"]}]
    world.run(stages=stages)
    first = world.output / "cold" / "seed_1"
    experiment = world.read(stages=stages, output=str(world.folder / "second"))
    copied = shutil.copytree

    def change() -> None:
        if how == "gone":
            shutil.rmtree(first)
        elif first.exists():
            record = json.loads((first / "done.json").read_text())
            (first / "done.json").write_text(json.dumps(record | {"hash": "another"}))

    def copytree(*args: Any, **words: Any) -> Any:
        change()
        return copied(*args, **words)

    if when == "meanwhile":
        monkeypatch.setattr(shutil, "copytree", copytree)
    adopt = run.adopt

    def adopted(*args: Any) -> bool:
        if when == "before":
            change()
        return adopt(*args)

    monkeypatch.setattr(run, "adopt", adopted)
    text = io.StringIO()
    world.started()
    assert run_experiment(experiment, prefix=FAKE, console=Console(file=text, width=300)) == 0
    assert world.started() == ["cold 1"]
    assert f"started ({first} is gone, or of another run by now)" in text.getvalue()
    assert not list((world.folder / "second" / "cold" / "seed_1").glob(".*"))
