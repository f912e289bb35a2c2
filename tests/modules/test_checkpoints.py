"""A run that was stopped goes on to the same bits, and a checkpoint that is not whole is not read."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from full_disk import full_disk
from lsemrl import files
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules import run_state
from lsemrl.modules.adapters.loading import REFERENCE, adapter_tensors
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.best import read_best
from lsemrl.modules.checkpoints import Checkpoints, Interrupted
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.reference import held_against
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.snapshot import read_snapshot, write_snapshot
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.rewards import Chrf
from matrix import slow_but, slow_cases_but
from short_runs import At, Stop, grpo, metrics, run, sft, stop, trained
from tiny import make_policy

Make = Callable[..., PolicyModule]
Whole = tuple[PolicyModule, Path]


KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "grpo": (grpo, {}),
    "sft": (sft, {}),
    "full": (grpo, {"train": "full"}),
    "synced": (grpo, {"ref_model_sync_steps": 3}),
    "averaged": (grpo, {"ref_model_sync_steps": 4, "ref_model_mixup_alpha": 0.6}),
    "full averaged": (grpo, {"train": "full", "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.6}),
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A run of a kind that nobody stopped, and its folder."""

    @cache
    def whole(kind: str) -> Whole:
        make, settings = KINDS[kind]
        folder = tmp_path_factory.mktemp("whole")
        return run(make(tiny_model, **settings), folder), folder

    return whole


@pytest.mark.parametrize(
    ("kind", "at", "every"),
    [
        ("grpo", 7, 3),
        ("sft", 7, 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                *(("grpo", *stop) for stop in ((4, 3), (5, 2), (8, 7))),
                *((kind, *stop) for kind in ("synced", "averaged", "full averaged") for stop in ((5, 2), (7, 3))),
                ("full", 7, 3),
            ]
        ),
    ],
)
def test_it_ends_as_if_nothing_had_happened(
    kind: str, at: int, every: int, uninterrupted: Callable[[str], Whole], tiny_model: str, tmp_path: Path
) -> None:
    """(5, 2) goes on at the beginning of the second epoch, the others in the middle of one.

    At 4 a reference is averaged, and at 6 it is synchronised: one of the two stops meets it, the other falls between.
    """
    whole, expected = uninterrupted(kind)
    (make, settings), folder = KINDS[kind], tmp_path / "stopped"
    with pytest.raises(Stop):
        run(make(tiny_model, **settings), folder, At(at, stop), every_n_steps=every)
    newest = max((folder / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))
    resumed = run(make(tiny_model, **settings), folder, resume=str(newest))
    assert resumed.rollout_step == whole.rollout_step == 8
    one, other = trained(whole), trained(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(folder) == metrics(expected)
    for name in ("samples.csv", "best/adapter_model.safetensors", "adapter/model.safetensors"):
        files = [place / name for place in (folder, expected)]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("number", slow_but([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
def test_a_signal_saves_and_stops(
    number: int, uninterrupted: Callable[[str], Whole], tiny_model: str, tmp_path: Path
) -> None:
    whole, _ = uninterrupted("grpo")
    folder, before = tmp_path / "stopped", signal.getsignal(number)
    name, saved = signal.Signals(number).name, folder / "checkpoints" / "step_5"
    with pytest.raises(Interrupted) as told:
        run(grpo(tiny_model), folder, At(5, lambda: os.kill(os.getpid(), number)), every_n_steps=0)
    assert told.value.signal == number
    said = f"stopped by {name}, saved in {saved}; --checkpoints.resume {saved} goes on from there"
    assert str(told.value) == said  # for the same command would not find it, outside of `lsemrl fit`
    assert signal.getsignal(number) == before
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_5"]
    resumed = run(grpo(tiny_model), folder, resume=str(folder / "checkpoints" / "step_5"), every_n_steps=0)
    assert all(torch.equal(value, trained(whole)[name]) for name, value in trained(resumed).items())


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_not_saved_is_not_said_to_be(tiny_model: str, tmp_path: Path) -> None:
    def stopped(folder: str, act: Callable[[], object] = terminate, at: int = 1, **keep: Any) -> str:
        settings = {"every_n_steps": 0, "monitor": None, **keep}
        with pytest.raises(Interrupted) as told:
            run(sft(tiny_model), tmp_path / folder, At(at, act), **settings)
        return str(told.value)

    anew = "the same command begins anew"
    none = f"not saved, since checkpoints.keep is 0, or trainer.enable_checkpointing false; {anew}"
    assert stopped("none", keep=0) == f"stopped by SIGTERM, {none}"
    with ExitStack() as stack:
        said = stopped("full", lambda: (stack.enter_context(full_disk(20_000)), terminate()))
    assert said.startswith("stopped by SIGTERM, not saved, since it could not be written (File too large")
    assert said.endswith(f"; {anew}")
    with ExitStack() as stack:
        act = lambda: (stack.enter_context(full_disk(20_000)), terminate())  # noqa: E731
        said = stopped("later", act, at=2, every_n_steps=1)
    assert said.endswith(f"; --checkpoints.resume {tmp_path}/later/checkpoints/step_1 goes on from the last checkpoint")
    assert [path.name for path in tmp_path.glob("*/checkpoints/*")] == ["step_1"]


def test_a_run_that_was_stopped_before_its_first_step_stands_where_it_began(tiny_model: str, tmp_path: Path) -> None:
    class First(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            terminate()

    run(sft(tiny_model), tmp_path / "before", epochs=1, monitor=None)
    saved = tmp_path / "before" / "checkpoints" / "step_4"
    with pytest.raises(Interrupted, match=f"saved in {saved}; --checkpoints.resume {saved} goes on from there"):
        run(sft(tiny_model), tmp_path / "after", First(), resume=str(saved), monitor=None)


def time_is_up() -> None:
    """As SLURM says it: once to be heeded, and again when a step takes too long."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("answer", slow_but(["queued", "refused", "missing"], ["queued"]))
def test_slurm_is_asked_to_run_the_job_again_when_time_is_up(
    answer: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "tibetan", "SLURM_JOB_ID": "4711"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    asked, program = tmp_path / "asked", tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    if answer != "missing":
        refusal = "echo no such job >&2; exit 1\n" if answer == "refused" else ""
        program.write_text(f'#!/bin/sh\necho "$@" > {asked}\n{refusal}')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(Interrupted, match="stopped by SIGUSR1, saved in"):
        run(grpo(tiny_model), tmp_path / "run", At(5, time_is_up), every_n_steps=0)
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step_5"]
    assert not list(tmp_path.rglob("*.ckpt"))
    if answer == "missing":
        assert "SLURM job 4711 was not queued again" in caplog.text
        return
    assert asked.read_text() == "requeue 4711\n"
    said = "is queued again" if answer == "queued" else "was not queued again (no such job"
    assert f"SLURM job 4711 {said}" in caplog.text


def test_it_holds_what_is_trained_and_nothing_that_runs(tiny_model: str, tmp_path: Path) -> None:
    module = run(grpo(tiny_model, ref_model_sync_steps=3), tmp_path)
    folder = tmp_path / "checkpoints" / "step_8"
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_6", "step_8"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(weights) == len(module.policy.trained())
    assert all("lora_" in name for name in weights)
    assert set(load_file(folder / "reference.safetensors")) == set(held_against(module.policy))
    assert read_snapshot(folder)["rollout_step"] == 8


def test_whoever_trains_on_goes_on_from_the_end(
    uninterrupted: Callable[[str], Whole], tiny_model: str, tmp_path: Path
) -> None:
    whole, _ = uninterrupted("sft")
    run(sft(tiny_model), tmp_path / "short", epochs=1)
    end = tmp_path / "short" / "checkpoints" / "step_4"
    longer = run(sft(tiny_model), tmp_path / "longer", epochs=2, resume=str(end))
    assert longer.rollout_step == whole.rollout_step
    assert next(row["step"] for row in metrics(tmp_path / "longer")) == "4"
    with pytest.raises(UserError, match=r"has come to its end; raise trainer\.max_epochs"):
        run(sft(tiny_model), tmp_path / "again", epochs=1, resume=str(end))


@pytest.fixture(scope="module")
def stopped(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stop):
        run(grpo(tiny_model), folder, At(7, stop))
    return folder


@pytest.fixture
def saved(stopped: Path, tmp_path: Path) -> Path:
    """A folder with its two checkpoints, step_3 and step_6, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "saved") / "checkpoints"


def forge(path: Path) -> None:
    path.write_text(path.read_text().replace('"rollout_step": 6', '"rollout_step": 5'))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: os.truncate(folder / "optimizer.safetensors", 100), "optimizer.safetensors is not as it was"),
        pytest.param(
            lambda folder: (folder / "adapter" / "adapter_model.safetensors").unlink(),
            "safetensors is missing",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda folder: os.truncate(folder / "state.json", 100),
            "state.json is not JSON",
            marks=pytest.mark.slow,
        ),
        (lambda folder: forge(folder / "state.json"), "state.json is not as it was written"),
    ],
)
def test_damage_is_told_and_the_one_before_offered(
    damage: Callable[[Path], None], reason: str, saved: Path, tiny_model: str
) -> None:
    damage(saved / "step_6")
    with pytest.raises(UserError) as told:
        run(grpo(tiny_model), saved.parent, resume=str(saved / "step_6"))
    assert "is damaged" in str(told.value)
    assert reason in str(told.value)
    assert f"to go on from the one before, {str(saved / 'step_3')!r}" in str(told.value)
    shutil.rmtree(saved / "step_6")
    assert run(grpo(tiny_model), saved.parent, resume=str(saved / "step_3")).rollout_step == 8


def test_another_configuration_is_refused(saved: Path, tiny_model: str, tmp_path: Path) -> None:
    for module, rows, reason in (
        (grpo(tiny_model, train="full"), 16, "does not hold this policy's trained weights"),
        (grpo(tiny_model, ref_model_sync_steps=3), 16, "policy.reference is 'initial', but"),
        (grpo(tiny_model), 20, "on other rows than data now gives"),
    ):
        with pytest.raises(UserError, match=reason):
            run(module, tmp_path / "other", resume=str(saved / "step_6"), rows=rows)


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.1), (0.1, 0.0)])
def test_a_run_goes_on_with_a_kl_penalty_or_without_one(
    before: float, now: float, tiny_model: str, tmp_path: Path
) -> None:
    cold = tmp_path / "cold"
    make_policy(tiny_model).save(cold)

    def held(beta: float) -> GRPO:
        return GRPO(
            rewards={"chrf": Chrf()},
            policy=PolicySettings(model=tiny_model, adapter=str(cold)),
            sampling=Sampling(num_generations=4, temperature=1.0, max_new_tokens=4),
            loss=LossSettings(beta=beta),
            metrics=MetricSettings(names=("chrf",)),
        )

    with pytest.raises(Stop):
        run(held(before), tmp_path / "run", At(4, stop), epochs=1)
    module = run(held(now), tmp_path / "on", resume=str(tmp_path / "run" / "checkpoints" / "step_3"), epochs=1)
    assert (REFERENCE in module.policy.model.peft_config) == bool(now)
    if now:
        first = load_file(cold / "adapter_model.safetensors")
        for key, weight in adapter_tensors(module.policy.model, REFERENCE).items():
            assert torch.equal(weight, first[key])


def test_batches_go_on_where_the_last_one_ended_or_not_at_all(tiny_model: str, tmp_path: Path) -> None:
    seen: list[str] = []

    class See(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, *_: int) -> None:
            seen.extend(example.id for example in batch.examples)

    def by(size: int) -> TranslationData:
        return TranslationData(micro=MicroRows(train=24, validation=4, test=4), batch_size=size)

    with pytest.raises(Stop):
        run(sft(tiny_model), tmp_path / "a", See(), At(3, stop), data=by(4), epochs=1, monitor=None, every_n_steps=1)
    saved = tmp_path / "a" / "checkpoints" / "step_2"
    del seen[8:]
    with pytest.raises(UserError, match=r"written 8 rows into an epoch, .* resume it with data\.batch_size 4 or 8$"):
        run(sft(tiny_model), tmp_path / "b", data=by(6), epochs=1, resume=str(saved), monitor=None)
    run(sft(tiny_model), tmp_path / "b", See(), data=by(8), epochs=1, resume=str(saved), monitor=None)
    assert len(seen) == len(set(seen)) == 24
    # Two of three steps by now have been taken, of four in all: the rate does not fall to 0 before its end.
    rates = [float(row["learning_rate"]) for row in metrics(tmp_path / "b") if row.get("learning_rate")]
    assert rates == pytest.approx([7.5e-3, 2.5e-3])


def test_rows_of_an_epoch_go_on_in_the_order_that_it_was_begun_in(tiny_model: str, tmp_path: Path) -> None:
    def ordered(seed: int) -> dict[str, Any]:
        micro = MicroRows(train=16, validation=4, test=4)
        return {"data": TranslationData(micro=micro, batch_size=4, seed=seed), "monitor": None, "every_n_steps": 2}

    first, saved = tmp_path / "first", tmp_path / "first" / "checkpoints"
    with pytest.raises(Stop):
        run(sft(tiny_model), first, At(3, stop), **ordered(0))
    with pytest.raises(UserError, match=r"data\.seed is 7, and .*step_2' was written within an epoch .*, by 0; resume"):
        run(sft(tiny_model), tmp_path / "other", resume=str(saved / "step_2"), **ordered(7))
    run(sft(tiny_model), first, resume=str(saved / "step_2"), epochs=1, **ordered(0))
    assert run(sft(tiny_model), tmp_path / "other", resume=str(saved / "step_4"), **ordered(7)).rollout_step == 8


def test_a_run_of_sft_does_not_go_on_by_rl(tiny_model: str, tmp_path: Path) -> None:
    run(sft(tiny_model), tmp_path / "sft", epochs=1, monitor=None)
    saved = tmp_path / "sft" / "checkpoints" / "step_4"
    with pytest.raises(UserError, match=r"step_4', of a run of SFT, and model is GRPO; leave resume out, and begin"):
        run(grpo(tiny_model), tmp_path / "rl", resume=str(saved), monitor=None)


def test_what_is_of_the_run_goes_on_with_any_number_of_ranks(tiny_model: str) -> None:
    before, ranks = grpo(tiny_model), []
    for failures, lowered, parts in ((1, None, 4), (2, 8, 1), (4, 16, 1)):
        own = {"skipped": [3, 0], "micro_batch_tokens": lowered, "sampling_parts": parts}
        rewards = before.reward_mix.state()
        next(iter(rewards.values()))["failures"] = failures
        ranks.append({**before.own_state(), **own, "rewards": rewards})
    assert [run_state.followed(ranks, rank, 3) for rank in range(3)] == ranks
    on_two = [grpo(tiny_model) for _ in range(2)]
    for rank, module in enumerate(on_two):
        module.resume_state(run_state.followed(ranks, rank, 2))
        module.on_train_start()
        assert (module.skipped.count, module.micro_batch_tokens, module.sampling_parts) == (3, 8, 4)
    assert [sum(module.reward_mix.counters.values()) for module in on_two] == [5, 2]
    new = run_state.followed([before.own_state()], 1, 2)
    assert (new["micro_batch_tokens"], new["rewards"]) == (None, {})


def test_what_is_no_checkpoint_is_told_before_weights_are_read(tiny_model: str, tmp_path: Path) -> None:
    module = sft(tiny_model)
    with pytest.raises(
        UserError, match=r"nowhere' is no checkpoint \(it has no state\.json\); name a folder under the"
    ):
        run(module, tmp_path / "run", resume=str(tmp_path / "nowhere"))
    assert module.policy.model is None


def test_a_checkpoint_of_somebody_elses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: str) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "state.json").touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(.*Permission denied\); give it back its rights"):
        read_snapshot(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "step_1", {"format": 99}, lambda folder: None)
    with pytest.raises(UserError, match="has format 99, and this lsemrl reads up to 1; upgrade lsemrl"):
        read_snapshot(tmp_path / "step_1")


def test_lightnings_own_checkpoints_are_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set checkpoints\.every_n_steps"):
        run(sft(tiny_model), tmp_path, ModelCheckpoint(tmp_path))


def test_a_full_disk_loses_nothing_that_was_complete(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save, calls = run_state.save_file, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(run_state, "save_file", full)
    with caplog.at_level("WARNING"), pytest.raises(Stop):
        run(sft(tiny_model), tmp_path, At(7, stop))
    assert "step_6 could not be written ([Errno 28] No space left on device); training goes on" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_3"]
    read_snapshot(tmp_path / "checkpoints" / "step_3")


def test_an_unwritable_metrics_file_is_told(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    log.log_metrics({"a": 1.0}, 0)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(UserError, match=r"metrics\.csv' cannot be written to \(Is a directory\); mend that"):
        log.log_metrics({"a": 1.0}, 1)


@pytest.mark.parametrize("size", [0, 3, 60])
def test_a_row_of_metrics_is_there_whole_or_not_at_all(size: int, tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    for step in range(2):
        log.log_metrics({"a": 1.0}, step)
    before = log.path.read_bytes()
    with full_disk(min(size, len(before) + 3)), pytest.raises(UserError, match="make room, and run the same command"):
        log.log_metrics({"a" if size else "b": 1.0}, 2)
    assert log.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("damage", "sound"),
    [
        (lambda text: text.replace(b"0.25", b"0.2\xff"), [0, 2]),
        (lambda text: text.replace(b"0.25,1\r\n", b"0.25,"), [0]),  # two rows in one
        (lambda text: text + b"\0" * 40, [0, 1, 2]),
        (lambda text: text.replace(b"0.25,1", b"\0\0\0\0\0\0"), [0, 2]),
        (lambda text: text.replace(b"0.25,1", b'"0.25,1'), [0, 2]),
        (lambda text: text.replace(b"0.25,1", b"0.25,one"), [0, 2]),
        (lambda text: b"\0" * len(text), []),
        (lambda text: text.partition(b"\n")[2], []),
    ],
)
def test_rows_that_cannot_be_read_are_kept_aside_and_the_others_go_on(
    damage: Callable[[bytes], bytes], sound: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(str(tmp_path))
    for step in range(3):
        log.log_metrics({"a": step / 4}, step)
    damaged = damage(log.path.read_bytes())
    log.path.write_bytes(damaged)
    again = MetricsLog(str(tmp_path))
    again.rewind(3)
    again.log_metrics({"a": 0.75}, 3)
    with log.path.open(newline="") as file:
        assert [(row["a"], row["step"]) for row in csv.DictReader(file)] == [
            (str(at / 4), str(at)) for at in [*sound, 3]
        ]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == damaged
    assert f"kept as {tmp_path / 'metrics.csv.damaged'}, and begun again with {len(sound)} rows" in caplog.text


def test_files_beside_a_checkpoint_are_no_hindrance(
    saved: Path, tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved.parent
    (folder / "metrics.csv").write_bytes(b"\0" * 500)
    os.truncate(folder / "samples.csv", 100)
    assert run(grpo(tiny_model), folder, resume=str(saved / "step_6")).rollout_step == 8
    with (folder / "samples.csv").open(newline="") as file:
        assert {row["rollout_step"] for row in csv.DictReader(file)} == {"6", "7"}
    assert {row["step"] for row in metrics(folder)} == {"6", "7"}
    assert all((folder / f"{name}.csv.damaged").is_file() for name in ("metrics", "samples"))


@pytest.mark.parametrize(
    ("size", "name"),
    slow_cases_but([(0, "metrics.csv"), (6_000, "samples.csv"), (20_000, "adapter")], [(6_000, "samples.csv")]),
)
def test_a_full_disk_stops_a_run_with_the_file_named_and_it_goes_on(
    size: int, name: str, tiny_model: str, tmp_path: Path
) -> None:
    with ExitStack() as stack, pytest.raises(UserError) as error:
        run(grpo(tiny_model), tmp_path, At(4, lambda: stack.enter_context(full_disk(size))), monitor=None)
    assert f"'{tmp_path / name}' cannot be written to (File too large); make room" in str(error.value)
    assert not [path for path in tmp_path.rglob(".*")]
    resumed = run(grpo(tiny_model), tmp_path, resume=str(tmp_path / "checkpoints" / "step_3"), monitor=None)
    assert resumed.rollout_step == 8
    assert len(metrics(tmp_path)) == 10


def test_rows_are_taken_back_and_a_torn_one_dropped_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(str(tmp_path))
    for step in range(4):
        log.log_metrics({"a": step / 4}, step)
    log.log_metrics({"b": 2.0}, 3)
    with log.path.open("a") as file:
        file.write("0.1,")
    again = MetricsLog(str(tmp_path))
    again.rewind(3)
    again.log_metrics({"a": 0.9}, 3)
    with log.path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            *({"a": str(step / 4), "b": "", "step": str(step)} for step in range(3)),
            {"a": "0.9", "b": "", "step": "3"},
        ]
    assert "ends in the middle of a row, which is left out" in caplog.text
    log.path.unlink()
    MetricsLog(str(tmp_path)).rewind(3)
    assert "is gone: it is begun again" in caplog.text


@pytest.mark.parametrize("metric", ["ter", "metricx", "copied"])
def test_the_worst_by_a_metric_is_not_kept_as_the_best(metric: str) -> None:
    with pytest.raises(UserError, match=rf"monitor is 'val/{metric}', of which less is better, .*; set it to min"):
        Checkpoints(monitor=f"val/{metric}")
    assert Checkpoints(monitor=f"val/{metric}", mode="min").mode == "min"


def test_the_best_is_kept_by_a_metric_that_is_measured(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor is 'val/bleu', which validation does not measure; .* val/chrf"):
        run(sft(tiny_model), tmp_path, monitor="val/bleu")
    run(sft(tiny_model), tmp_path / "kept")
    best = read_best(tmp_path / "kept" / "best")
    assert best
    rows = reversed(metrics(tmp_path / "kept"))  # of equal ones the first
    scores = {float(row["val/chrf"]): int(row["step"]) for row in rows if row["val/chrf"]}
    assert best.value == pytest.approx(max(scores))
    assert best.step == scores[max(scores)] + 1  # steps taken, as checkpoints are named


def test_a_run_that_ends_before_its_first_validation_says_so(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(**settings: Any) -> str:
        caplog.clear()
        trainer = Trainer(
            **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, **settings},
            num_sanity_val_steps=0,
            callbacks=[Checkpoints(every_n_steps=0, keep=0, monitor="val/chrf")],
            default_root_dir=tmp_path,
        )
        data = TranslationData(micro=MicroRows(train=8, validation=4, test=4), batch_size=4)
        with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
            trainer.fit(sft(tiny_model), datamodule=TrainerData(data))
        return caplog.text

    says = "run of {} steps ends before its first validation, after {}, so that nothing is chosen by val/chrf"
    assert says.format(4, 6) in told(val_check_interval=1.0, check_val_every_n_epoch=3)
    assert says.format(4, 5) in told(val_check_interval=5, check_val_every_n_epoch=None)
    assert "first validation" not in told(check_val_every_n_epoch=2)


def test_what_a_kill_left_half_done_is_swept(saved: Path, tiny_model: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = saved / f".new-{platform.node()}-{gone.pid}-01234567-89abcdef"
    (left / "adapter").mkdir(parents=True)
    files._sweep.cache_clear()
    run(grpo(tiny_model), saved.parent, resume=str(saved / "step_6"))
    assert sorted(path.name for path in saved.iterdir()) == ["step_6", "step_8"]
