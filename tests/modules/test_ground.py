"""What a resumed run finds: models as they were, and the settings it is given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsemrl import micro
from lsemrl.data.task import MicroRows
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.languages import Language
from lsemrl.modules.best import read_best
from lsemrl.modules.ground import check_ground, given_to, ground
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.optimizer_settings import OptimizerSettings
from lsemrl.rewards import LanguageConsistency, SemanticSimilarity
from short_runs import At, Stop, grpo, run, sft, stop, trained
from tiny import make_policy
from two_languages import saved


def spoil(path: Path) -> None:
    """Change the last number of the first weight, which no glance at its beginning would see."""
    weights = load_file(path)
    name = min(weights)
    weights[name].view(-1)[-1] += 0.5
    save_file(weights, path, metadata={"format": "pt"})


def swap_words(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    one, other = sorted(words, key=words.__getitem__)[-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def module_of(place: Path) -> GRPO:
    """Whose base, adapter and encoder lie in a folder."""
    made = grpo(str(place / "model"), adapter=str(place / "adapter"))
    made.reward_mix.parts["chrf"] = SemanticSimilarity(encoder=str(place / "encoder"), cache_dir="none")
    return made


@pytest.fixture(scope="module")
def stopped(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a run stands on, and that run, stopped."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_model, place / "model")
    shutil.copytree(micro.ENCODER, place / "encoder")
    make_policy(tiny_model).save(place / "adapter")
    (place / "adapter" / "lsemrl.json").unlink()  # whose word would be asked first
    with pytest.raises(Stop):
        run(module_of(place), place / "run", At(4, stop))
    return place


@pytest.fixture(scope="module")
def checkpoint(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of a run that was stopped, to be gone on with in other folders."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(Stop):
        run(grpo(tiny_model), folder, At(4, stop))
    return str(folder / "checkpoints" / "step_3")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda place: spoil(place / "model" / "model.safetensors"), r"^policy\.model is not what it was when"),
        (lambda place: swap_words(place / "adapter" / "tokenizer.json"), r"^policy's tokenizer is not what it was"),
        (lambda place: spoil(place / "adapter" / "adapter_model.safetensors"), r"^policy\.adapter is not what it was"),
        (
            lambda place: spoil(place / "encoder" / "model.safetensors"),
            r"^rewards\.chrf\.encoder is not what",
        ),
        (
            lambda place: (place / "model" / "generation_config.json").write_text('{"eos_token_id": [5]}'),
            "^what ends a text is not what it was when",
        ),
    ],
    ids=["base", "tokenizer", "adapter", "encoder", "ends"],
)
def test_what_has_changed_under_a_run_is_told(
    change: Callable[[Path], None], named: str, stopped: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(stopped, tmp_path / "place")
    change(place)
    with pytest.raises(UserError, match=named):
        run(module_of(place), place / "run", resume=str(place / "run" / "checkpoints" / "step_3"))


def test_validation_on_other_rows_is_told(checkpoint: str, tiny_model: str) -> None:
    """What is in best/ was chosen on those before."""
    fewer = TranslationData(micro=MicroRows(train=16, validation=3, test=4), batch_size=4)
    with pytest.raises(UserError, match=r"^data\.validation is not what it was when"):
        run(grpo(tiny_model), Path(checkpoint).parents[1], resume=checkpoint, data=fewer)


def test_identifiers_are_known_by_what_they_judge_by(tiny_model: str, tmp_path: Path) -> None:
    (there := tmp_path / "there").mkdir()
    saved(there)
    about = json.loads((other := Path(shutil.copytree(there, tmp_path / "other")) / "identifier.json").read_text())
    other.write_text(json.dumps({**about, "threshold": 0.9 * about["threshold"]}))
    shutil.copytree(there, tmp_path / "moved")
    policy = make_policy(tiny_model)

    def found(name: str) -> dict[str, str]:
        module = grpo(tiny_model)
        language = Language(code="pcm", identifier=str(tmp_path / name))
        module.reward_mix.parts["language"] = LanguageConsistency(language=language)
        return ground(policy, [], {}, module.languages(), {})

    before = found("there")
    check_ground(before, found("moved"), tmp_path, same_run=True)
    with pytest.raises(UserError, match=r"^rewards\.language\.language\.identifier is not what it was"):
        check_ground(before, found("other"), tmp_path, same_run=True)


def test_own_rewards_are_known_by_what_they_were_given_to_read(tiny_model: str, tmp_path: Path) -> None:
    model, words, cache = tmp_path / "model", tmp_path / "words", tmp_path / "cache"
    for folder in (model, cache):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    words.write_text("one")
    init = {"model": str(model), "words": str(words), "cache": str(cache), "weight": 1.0, "none": None}
    own, shipped = {"class_path": "mine.Mine", "init_args": init}, {"class_path": "lsemrl.rewards.Chrf"}
    policy = make_policy(tiny_model)

    def found() -> dict[str, str]:
        return ground(policy, [], {}, {}, given_to({"own": own, "shipped": shipped, "bare": {"class_path": "m.M"}}))

    before = found()
    (cache / "more").write_text("what it has written")
    check_ground(before, found(), tmp_path, same_run=True)
    check_ground(before, {}, tmp_path, same_run=True)
    for changed in (model / "weights.bin", words):
        changed.write_text("other")
        with pytest.raises(
            UserError, match=rf"^rewards\.own\.{changed.name.replace('weights.bin', 'model')} is not what"
        ):
            check_ground(before, found(), tmp_path, same_run=True)
        changed.unlink()


def test_only_what_is_known_of_both_is_compared_and_any_adapter(tmp_path: Path) -> None:
    """Of a run that an earlier lsemrl wrote less is known; encoders may be typed otherwise."""
    before = {"policy.model": "a", "rewards.one.encoder 'there'": "b", "rewards.gone.encoder 'there'": "c"}
    now = {"policy.model": "a", 'rewards.one.encoder "it\'s"': "b", "data.validation": "d"}
    check_ground(before, now, tmp_path, same_run=True)
    with pytest.raises(UserError, match=r"^rewards\.one\.encoder is not what it was"):
        check_ground({**before, "rewards.one.encoder 'there'": "other"}, now, tmp_path, same_run=True)
    for one, other in ((before, {**now, "policy.adapter": "e"}), ({**before, "policy.adapter": "e"}, now)):
        with pytest.raises(UserError, match=r"^policy\.adapter is not what it was"):
            check_ground(one, other, tmp_path, same_run=False)


@pytest.mark.slow
def test_a_run_of_another_folder_may_be_paid_otherwise(checkpoint: str, tiny_model: str, tmp_path: Path) -> None:
    other = grpo(tiny_model)
    other.reward_mix.parts["chrf"] = SemanticSimilarity(cache_dir="none")
    run(other, tmp_path / "other", resume=checkpoint)


def test_a_rate_and_a_schedule_given_on_resume_are_used(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(sft(tiny_model), tmp_path / "run", At(4, stop))
    module, rates = sft(tiny_model), []
    module.optimizer = OptimizerSettings(lr=3e-4, schedule="constant", warmup_ratio=0.0)

    def note() -> None:
        rates.extend(group["lr"] for group in module.trainer.optimizers[0].param_groups)

    checkpoint = str(tmp_path / "run" / "checkpoints" / "step_3")
    run(module, tmp_path / "other", At(3, note), At(4, note), At(8, note), resume=checkpoint)
    assert rates == [3e-4, 3e-4]


def test_a_seed_given_on_resume_is_used(
    checkpoint: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, seed = [], torch.manual_seed
    for at, given in enumerate((11, 12, 12)):
        monkeypatch.setattr(torch, "manual_seed", lambda _, given=given: seed(given))
        ends.append(trained(run(grpo(tiny_model), tmp_path / str(at), epochs=1, resume=checkpoint)))
    assert not all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert all(torch.equal(value, ends[2][name]) for name, value in ends[1].items())


def test_the_best_of_another_metric_is_no_bar(tiny_model: str, tmp_path: Path) -> None:
    """Nor that of another run, whose best/ lies elsewhere."""
    with pytest.raises(Stop):
        run(sft(tiny_model), tmp_path / "run", At(4, stop), monitor="val/chrf", mode="min")
    state = tmp_path / "run" / "checkpoints" / "step_3"
    module = run(sft(tiny_model), tmp_path / "run", resume=str(state), monitor="val/chrf", mode="max")
    best = read_best(tmp_path / "run" / "best")
    assert best and best.mode == "max" and best.value == float(module.trainer.callback_metrics["val/chrf"])
