"""GRPO and SFT under a real Trainer: steps do not depend on how they are cut up, and a run can be taken up again."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.torch_version import TorchVersion

from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.checkpoints import Checkpoints
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.losses import LossSettings
from lsemrl.modules.metrics_log import MetricsLog
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.modules.sft import SFT
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.modules.trainer_settings import check_callbacks, check_manual, check_trainer, planned_steps
from lsemrl.rewards import Reward
from lsemrl.rewards.advantages import AdvantageSettings
from lsemrl.rewards.patience import Patience
from lsemrl.types import Completion
from matrix import slow_but

DOCS = Path(__file__).parents[2] / "docs" / "watch.md"
METRICS = MetricSettings(names=("chrf", "language_rate"))


class Tibetan(Reward):
    """A reward that any model can learn: the share of characters that are Tibetan; silence has none."""

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        counts = [sum("ༀ" <= letter <= "࿚" for letter in completion.text) for completion in completions]
        lengths = [len(completion.text) for completion in completions]
        return torch.tensor([count / max(length, 1) for count, length in zip(counts, lengths, strict=True)])


def policy_settings(model: str, **settings: Any) -> PolicySettings:
    return PolicySettings(model=model, lora=LoraSettings(rank=4, alpha=8.0, dropout=0.0), **settings)


def grpo(model: str, **settings: Any) -> GRPO:
    torch.manual_seed(5)
    defaults: dict[str, Any] = {
        "rewards": {"tibetan": Tibetan()},
        "policy": policy_settings(model),
        "sampling": Sampling(num_generations=4, temperature=1.0, top_p=1.0, max_new_tokens=8),
        "optimizer": OptimizerSettings(lr=1e-2, warmup_ratio=0.0, schedule="constant"),
        "metrics": METRICS,
    }
    return GRPO(**{**defaults, **settings})


def sft(model: str, **settings: Any) -> SFT:
    torch.manual_seed(5)
    defaults: dict[str, Any] = {
        "policy": policy_settings(model),
        "optimizer": OptimizerSettings(lr=1e-2, warmup_ratio=0.0, schedule="constant"),
        "metrics": METRICS,
        "max_new_tokens": 8,
    }
    return SFT(**{**defaults, **settings})


def data(batch_size: int = 4) -> TranslationData:
    return TranslationData(micro=MicroRows(train=40, validation=8, test=8), batch_size=batch_size)


def run(module: LightningModule, folder: Path, steps: int = 2, batch_size: int = 4, **settings: Any) -> Trainer:
    torch.manual_seed(11)
    trainer = Trainer(
        **{
            "max_steps": steps,
            "max_epochs": -1,
            "accelerator": "cpu",
            "logger": MetricsLog(str(folder)),
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [Checkpoints(every_n_steps=0)],
            "limit_val_batches": 0,
            **settings,
        }
    )
    trainer.fit(module, datamodule=TrainerData(data(batch_size)))
    return trainer


def trained(module: LightningModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("updates", "max_steps", "planned"), [(16, 4, 16), (3, 4, 6), (1, 4, 4), (2, -1, 40)])
def test_a_batch_that_is_begun_takes_all_its_steps(updates: int, max_steps: int, planned: int) -> None:
    """The schedule would have ended before, and left the last ones a rate of 0."""
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(train_dataloader=lambda: range(10)),
        limit_train_batches=1.0,
        val_check_interval=1.0,
        limit_val_batches=0,
        check_val_every_n_epoch=None,
        max_epochs=2,
        max_steps=max_steps,
    )
    assert planned_steps(trainer, updates) == planned


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("accumulate_grad_batches", 4, "raise data.batch_size"),
        ("gradient_clip_val", 1.0, "set model.optimizer.max"),
    ],
)
def test_what_the_trainer_would_do_for_others_is_refused_with_what_does_it_here(
    field: str, value: float, says: str
) -> None:
    with pytest.raises(UserError, match=f"trainer.{field} is {value}; {says}"):
        check_manual(Trainer(**{field: value}, accelerator="cpu", logger=False))


@pytest.mark.parametrize(
    ("kind", "hardware", "dtype", "told"),
    [
        ("cuda", False, "bfloat16", True),
        ("cuda", False, "float32", False),
        ("cuda", True, "bfloat16", False),
        ("cpu", False, "bfloat16", False),
    ],
)
def test_a_gpu_that_has_no_bfloat16_is_told(
    kind: str,
    hardware: bool,
    dtype: Any,
    told: bool,
    tiny_model: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware)
    trainer = Trainer(accelerator="cpu", logger=False)
    trainer.strategy._root_device = torch.device(kind)  # type: ignore[attr-defined]
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        check_trainer(trainer, Policy(PolicySettings(model=tiny_model, dtype=dtype)), "fit")
    said = "this GPU does not compute bfloat16 itself, which makes it slow; set policy.dtype to float32, and trainer"
    assert any(line.startswith(said) for line in caplog.messages) == told


@pytest.mark.parametrize(("version", "right"), [("2.8.0+cpu", False), ("2.10.0+cpu", True)])
def test_gradients_that_pytorch_would_add_up_are_refused(
    version: str, right: bool, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    trainer = Trainer(strategy=ModelParallelStrategy(), devices=2, accelerator="cpu", logger=False)
    policy = Policy(PolicySettings(model=tiny_model))
    refused = pytest.raises(UserError, match=r"PyTorch 2\.8 adds up .* use the overlay configs/ddp")
    with nullcontext() if right else refused:
        check_trainer(trainer, policy, "fit")
    check_trainer(trainer, policy, "validate")


@pytest.mark.parametrize("make", [grpo, sft])
def test_micro_batches_do_not_change_the_step(make: Any, tiny_model: str, tmp_path: Path) -> None:
    whole, pieces = make(tiny_model, micro_batch_tokens=10_000), make(tiny_model, micro_batch_tokens=40)
    run(whole, tmp_path / "whole")
    run(pieces, tmp_path / "pieces")
    one, other = trained(whole), trained(pieces)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-5)
    losses = [[float(row["loss"]) for row in rows(tmp_path / run_name)] for run_name in ("whole", "pieces")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("level", slow_but(["token", "sequence"], ["sequence"]))
def test_ratios_do_not_depend_on_micro_batches_either(level: Any, tiny_model: str, tmp_path: Path) -> None:
    """Off policy, where ratios are not 1, with truncated completions left out."""
    losses, weights = [], []
    for tokens in (10_000, 40):
        loss = LossSettings(importance_sampling_level=level, loss_type="grpo", mask_truncated_completions=True)
        module = grpo(tiny_model, micro_batch_tokens=tokens, num_iterations=3, loss=loss)
        run(module, tmp_path / str(tokens), steps=6)
        losses.append([float(row["loss"]) for row in rows(tmp_path / str(tokens))])
        weights.append(trained(module))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5, nan_ok=True)
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)


def test_nothing_is_learned_where_every_completion_is_left_out(tiny_model: str, tmp_path: Path) -> None:
    module = grpo(tiny_model, loss=LossSettings(mask_truncated_completions=True))
    module.policy.eos_ids = lambda: [10**6]  # type: ignore[method-assign]  # nobody ever ends
    module.policy.load()
    before = trained(module)
    run(module, tmp_path, steps=1)
    (row,) = rows(tmp_path)
    assert float(row["completions/clipped_ratio"]) == 1
    assert float(row["grad_norm"]) == 0
    assert all(math.isnan(float(row[name])) for name in ("loss", "kl", "entropy", "clip_ratio/region_mean"))
    assert all(torch.equal(value, before[name]) for name, value in trained(module).items())


def test_a_step_says_where_its_time_and_memory_went(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run(grpo(tiny_model), tmp_path, steps=1)
    (row,) = rows(tmp_path)
    seconds = {name: float(row[f"timing/{name}"]) for name in ("rollout", "reward", "reference", "update")}
    assert all(value > 0 for value in seconds.values())
    assert float(row["timing/reward_share"]) == pytest.approx(seconds["reward"] / sum(seconds.values()))
    assert float(row["tokens_per_second"]) == pytest.approx(float(row["num_tokens"]) / sum(seconds.values()), rel=1e-3)
    assert 0 <= float(row["padding/update"]) <= 0.1
    assert 0 <= float(row["padding/rollout"]) < 1
    assert "memory: about" in caplog.text and "memory: the peak was" in caplog.text


def test_a_trainer_whose_rows_nobody_keeps_says_that_there_are_no_alarms(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run(grpo(tiny_model), tmp_path / "kept", steps=1)
        assert "alarms are off" not in caplog.text
        run(grpo(tiny_model), tmp_path, steps=1, logger=False, default_root_dir=tmp_path)
    assert "alarms are off, which read the rows of a MetricsLog" in caplog.text


def test_grpo_learns_what_is_rewarded(tiny_model: str, tmp_path: Path) -> None:
    sampling = Sampling(num_generations=8, temperature=1.0, top_p=1.0, max_new_tokens=8)
    optimizer = OptimizerSettings(lr=2e-2, warmup_ratio=0.0, schedule="constant")
    module = grpo(tiny_model, loss=LossSettings(beta=0.0), sampling=sampling, optimizer=optimizer)
    run(module, tmp_path, steps=60, batch_size=8)
    rewards = [float(row["reward"]) for row in rows(tmp_path)]
    assert fmean(rewards[-10:]) > fmean(rewards[:4]) + 0.05  # four seeds go from .67 to .79 and up to .90


def test_sft_learns_the_references(tiny_model: str, tmp_path: Path) -> None:
    module = sft(tiny_model)
    run(module, tmp_path, steps=30, batch_size=8)
    losses = [float(row["loss"]) for row in rows(tmp_path)]
    assert losses[0] > math.log(1473) - 2
    assert losses[-1] < losses[0] - 2


@pytest.mark.slow
def test_the_kl_penalty_holds_the_policy_back(tiny_model: str, tmp_path: Path) -> None:
    drift = {}
    for beta in (0.0, 5.0):
        run(grpo(tiny_model, loss=LossSettings(beta=beta or 1e-9)), tmp_path / str(beta), steps=12)
        drift[beta] = float(rows(tmp_path / str(beta))[-1]["kl"])
    assert drift[5.0] < drift[0.0] / 3


@pytest.mark.parametrize(
    "settings",
    [
        {"num_iterations": 2},
        {"optimizer_batch_size": 8},
        {"num_iterations": 2, "optimizer_batch_size": 8},
    ],
)
def test_several_steps_on_one_batch(settings: dict[str, int], tiny_model: str, tmp_path: Path) -> None:
    module = grpo(tiny_model, **settings)
    steps = settings.get("num_iterations", 1) * (16 // settings.get("optimizer_batch_size", 16))
    assert run(module, tmp_path, steps=2 * steps).global_step == 2 * steps
    assert module.rollout_step == 2
    last = rows(tmp_path)[-1]
    assert float(last["rollout_step"]) == 1
    assert float(last["optimizer_step"]) == 2 * steps
    assert float(last["clip_ratio/region_mean"]) > 0  # a second step is off policy


def test_a_first_step_is_on_policy(tiny_model: str, tmp_path: Path) -> None:
    run(grpo(tiny_model), tmp_path, steps=1)
    (row,) = rows(tmp_path)
    assert float(row["clip_ratio/region_mean"]) == 0
    assert float(row["kl"]) == pytest.approx(0, abs=1e-5)
    # On policy the surrogate is the mean advantage weighted by length; dapo with equal lengths would give 0.
    assert abs(float(row["loss"])) < 0.5


class Looks(Tibetan):
    """Whether the reward is asked in mixed precision."""

    mixed: bool | None = None

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        self.mixed = torch.is_autocast_enabled("cpu")
        return super().__call__(completions)


@pytest.mark.parametrize("timeout", [60.0, None])
def test_rewards_know_nothing_of_the_policys_precision(timeout: float | None, tiny_model: str, tmp_path: Path) -> None:
    part = Looks()
    module = grpo(tiny_model, rewards={"looks": part}, patience=Patience(timeout=timeout))
    run(module, tmp_path, steps=1, precision="bf16-mixed")
    assert part.mixed is False


def test_a_reference_that_nobody_asks_for_is_not_kept(tiny_model: str) -> None:
    full = PolicySettings(model=tiny_model, train="full")
    free = LossSettings(beta=0.0)
    for module, kept in (
        (grpo(tiny_model, policy=full), True),
        (grpo(tiny_model, policy=full, loss=free), False),
        (sft(tiny_model, policy=full), False),
    ):
        module.policy.load()
        assert (module.policy.reference_model is not None) == kept


def test_a_batch_that_does_not_divide_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer_batch_size is 5, which does not divide the 16 completions"):
        run(grpo(tiny_model, optimizer_batch_size=5), tmp_path)


@pytest.mark.parametrize(("field", "lost"), [("log_every_n_steps", "logged"), ("limit_train_batches", "trained")])
def test_to_log_or_train_nothing_is_refused(field: str, lost: str, tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{field} is 0, so that nothing would be {lost}"):
        run(sft(tiny_model), tmp_path, **{field: 0})


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_ranks_that_would_be_copies_of_a_process_are_refused(strategy: str) -> None:
    with pytest.raises(
        UserError, match=r"trainer\.strategy makes ranks by copying .* use the overlay configs/ddp\.yaml"
    ):
        check_manual(Trainer(strategy=strategy, devices=2, accelerator="cpu", logger=False))


@pytest.mark.parametrize(
    ("callback", "says"),
    [
        (EarlyStopping("val/chr", mode="max"), "goes by 'val/chr', which validation does not measure; choose one of"),
        (EarlyStopping("chrf", mode="max"), r"goes by 'chrf', which validation does not measure; .* val/chrf"),
        (EarlyStopping("val/chrf"), "goes by 'val/chrf' with mode min, and of that more is better; set mode to max"),
        (EarlyStopping("val/ter", mode="max"), "mode max, and of that less is better; set mode to min"),
        (LearningRateFinder(), r"knows no optimizer of ours; set model\.optimizer\.lr"),
    ],
)
def test_callbacks_that_would_stop_a_run_at_its_best_are_refused(callback: Callback, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_callbacks([callback], ["val/chrf", "val/ter"])
    check_callbacks([EarlyStopping("val/chrf", mode="max"), EarlyStopping("loss")], ["val/chrf", "val/ter"])


@pytest.mark.parametrize(
    ("monitor", "says"),
    [("los", "choose one of loss, or set its strict"), ("xyz", "choose one of .*grad_norm, .*loss")],
)
def test_a_run_that_is_to_end_by_what_no_step_logs_ends_at_its_first(
    monitor: str, says: str, tiny_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"goes by '{monitor}', which no step of training logs; {says}"):
        run(sft(tiny_model), tmp_path, callbacks=[Checkpoints(every_n_steps=0), EarlyStopping(monitor)])
    assert len(rows(tmp_path)) == 1


def test_what_a_callback_logs_later_can_end_a_run(tiny_model: str, tmp_path: Path) -> None:
    of = [EarlyStopping("val/chrf", mode="max"), EarlyStopping("loss"), EarlyStopping("mine", strict=False)]
    callbacks = [Checkpoints(every_n_steps=0), *of]
    run(sft(tiny_model), tmp_path, callbacks=callbacks, limit_val_batches=1.0, val_check_interval=2)
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize("field", ["val_check_interval", "check_val_every_n_epoch"])
def test_to_validate_every_0_batches_is_refused(field: str, tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{field} is 0; .* never set trainer\.limit_val_batches to 0"):
        run(sft(tiny_model), tmp_path, **{field: 0, "limit_val_batches": 1.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": Sampling(num_generations=1)}, "num_generations is 1"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature is 0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens is 0"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"rewards": {}}, "rewards is empty"),
    ],
)
def test_mistakes_are_told_before_weights_load(settings: dict[str, Any], message: str, tiny_model: str) -> None:
    with pytest.raises(UserError, match=message):
        grpo(tiny_model, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": Sampling(server="http://gpu:8000")}, "server is 'http://gpu:8000', but .*engine is auto"),
        ({"sampling": Sampling(engine="loop", server_sleeps=True)}, "server_sleeps is True, but .*engine is loop"),
        ({"ref_model_mixup_alpha": 0.6}, r"mixup_alpha is 0\.6, but policy\.ref_model_sync_steps is null"),
        ({"ref_model_sync_steps": 5, "loss": LossSettings(beta=0.0)}, r"sync_steps is 5, but loss\.beta is 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(settings: dict[str, Any], message: str, tiny_model: str) -> None:
    own = {name: settings.pop(name) for name in [*settings] if name.startswith("ref_model")}
    with pytest.raises(UserError, match=message):
        grpo(tiny_model, **settings, policy=policy_settings(tiny_model, **own))
    with pytest.raises(UserError, match=r"ref_model_sync_steps is 5, but SFT is held to no reference"):
        sft(tiny_model, policy=policy_settings(tiny_model, ref_model_sync_steps=5))


def test_beta_needs_a_reference(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"beta is 0\.04 but policy\.reference is none"):
        grpo(tiny_model, policy=policy_settings(tiny_model, reference="none"))


def is_documented(name: str) -> bool:
    table = DOCS.read_text(encoding="utf-8").partition("## What is logged")[2]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    known = [re.sub("<.*?>", "[^/]+", each) for each in ["step", *re.findall("`(.*?)`", first)]]
    return any(re.fullmatch(each, name) for each in known)


def test_what_only_some_runs_log_is_documented_too() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parents[1] / "src" / "lsemrl").rglob("*.py"))
    names = {f"timing/{stage}" for stage in re.findall(r"""lap\("([a-z]+)""", source)}
    names |= {f"rewards/any/{count}" for count in re.findall(r"""_counts\["(.*?)"\]""", source)}
    names |= set(re.findall('"((?:anchor|sampling)/[a-z_/]+)":', source))
    assert len(names) > 12 and {name for name in names if not is_documented(name)} == set()


def test_validation_measures_and_samples_are_kept(tiny_model: str, tmp_path: Path) -> None:
    module = grpo(tiny_model, samples_every=1)
    run(module, tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=2)
    assert {name for name in rows(tmp_path)[0] if not is_documented(name)} == set()
    assert any(row.get("val/chrf") for row in rows(tmp_path))
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as file:
        samples = list(csv.DictReader(file))
    assert {row["rollout_step"] for row in samples} == {"0", "1"}
    assert set(samples[0]) >= {"source", "reference", "completion", "reward", "advantage", "tibetan"}
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("verb", "name"), [("validate", "validation"), ("test", "test"), ("predict", "test")])
def test_a_split_without_rows_is_told(verb: str, name: str, tiny_model: str, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    data = TrainerData(TranslationData(micro=MicroRows(train=4, validation=0, test=0)))
    with pytest.raises(UserError, match=f"no {name} rows; give it a {name} source, or raise splits.{name}_fraction"):
        getattr(trainer, verb)(sft(tiny_model), datamodule=data)


@pytest.mark.slow
def test_leave_one_out_and_batch_scaling_run(tiny_model: str, tmp_path: Path) -> None:
    for name, settings in (
        ("loo", AdvantageSettings(scale_rewards="none", leave_one_out=True)),
        ("batch", AdvantageSettings(scale_rewards="batch")),
    ):
        run(grpo(tiny_model, advantages=settings), tmp_path / name, steps=1)
        assert math.isfinite(float(rows(tmp_path / name)[0]["loss"]))
