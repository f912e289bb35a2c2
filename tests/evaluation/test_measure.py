"""`lsemrl measure`: from a configuration to measurement.json, for a base, an adapter and full fine-tuning."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.data.choice import ChoiceData
from lsemrl.data.comprehension import ComprehensionData
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows
from lsemrl.data.text import PlainText
from lsemrl.data.tokens import prompt_ids
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.evaluation import measure as measuring
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.measure import read_battery, read_measured, run_measure
from lsemrl.evaluation.measure_settings import MeasureSettings
from lsemrl.evaluation.measurement import BATCHES, FILE, Measured, check_own, hash_rows
from lsemrl.languages import Language
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.modules.alarm_log import Told
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.report.records import Report
from lsemrl.rewards import guards
from lsemrl.rewards.semantic import paid_for
from lsemrl.runs import ALARMS
from lsemrl.types import Example
from lsemrl.unfinished import Unfinished
from made_up import make_measured
from matrix import slow_but
from tiny import make_policy, save_tiny_model, stir

pytestmark = pytest.mark.usefixtures("no_plots")
SMALL = [
    "--target.init_args.micro.test=6",
    "--general.init_args.micro.test=5",
    "--text.rows=4",
    "--max_new_tokens=8",
    "--batch_size=3",
    "--device=cpu",
]


def measure(task: str, folder: Path, *words: str) -> Measured:
    main(["measure", "--config", str(CONFIGS / "measure" / f"{task}.yaml"), *SMALL, "--output", str(folder), *words])
    return Measured.read(folder / FILE)


def write_without(folder: Path, field: str) -> None:
    """A measurement as an lsemrl wrote it that did not know `field`."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    del content[field]
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


def tiny_settings(policy: PolicySettings, **fields: object) -> MeasureSettings:
    return MeasureSettings(
        policy=policy,
        target=TranslationData(micro=MicroRows(train=1, validation=0, test=3)),
        general=ComprehensionData(micro=MicroRows(train=1, validation=0, test=3)),
        text=PlainText(rows=3),
        metrics=MetricSettings(names=("chrf", "similarity")),
        max_new_tokens=4,
        device="cpu",
        **fields,  # type: ignore[arg-type]
    )


def test_rows_are_of_the_whole_file(tokenizer_of_tiny_model: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(f'{{"zh": "{at}", "bo": "{at}"}}\n' for at in range(10)), encoding="utf-8")
    target = TranslationData(micro=MicroRows(train=1, validation=1, test=1), test=Source(path=str(file)))
    for count, places in ((4, "0 2 5 7"), (10, "0 1 2 3 4 5 6 7 8 9"), (99, "0 1 2 3 4 5 6 7 8 9")):
        found = read_battery(
            target, None, None, tokenizer_of_tiny_model, target_rows=count, general_rows=1, say=lambda line: None
        )
        assert [example.reference for example in found.target] == places.split()


def test_plain_text_begins_as_the_tokenizer_begins_texts(tokenizer_of_tiny_model: PreTrainedTokenizerBase) -> None:
    target = TranslationData(micro=MicroRows(train=1, validation=0, test=1))

    def texts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        found = read_battery(
            target, None, PlainText(rows=2), tokenizer, target_rows=1, general_rows=1, say=lambda line: None
        )
        return prompt_ids(tokenizer, [row.prompt for row in found.text])

    with_bos = copy.deepcopy(tokenizer_of_tiny_model)
    with_bos.bos_token = with_bos.eos_token
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{with_bos.bos_token} $A", special_tokens=[(with_bos.bos_token, with_bos.bos_token_id)]
    )
    plain = texts(tokenizer_of_tiny_model)
    assert texts(with_bos) == [[with_bos.bos_token_id, *ids] for ids in plain]


@pytest.mark.parametrize("task", slow_but(["translation", "headline"], ["translation"]))
def test_base_and_arm_on_the_embedded_world(task: str, tmp_path: Path) -> None:
    base = measure(task, tmp_path / "base")
    arm = ["--arm=cold_start", "--label=Cold start", "--seed=3", "--policy.adapter=micro"]
    cold = measure(task, tmp_path / "cold", *arm)
    assert (base.arm, cold.arm, cold.seed, cold.policy["adapter"]) == ("base", "cold_start", 3, "micro")
    assert {part: rows.count for part, rows in base.data.items()} == {"target": 6, "general": 5, "text": 4}
    assert (base.general_name, base.text_name) == ("Chinese QA", "Chinese")
    assert base.data == cold.data and base.signatures == cold.signatures and base.conditions == cold.conditions
    assert base.base_fingerprint == cold.base_fingerprint
    assert base.weight_change == 0 and cold.weight_change > 0
    assert base.divergence["own"].to_base == pytest.approx(0, abs=1e-6)
    assert min(each.from_base for each in cold.divergence.values()) > 0
    assert {len(rows) for rows in cold.target_rows.values()} == {6}
    assert {len(rows) for rows in cold.general_rows.values()} == {5}
    assert {"chrf", "similarity", "similarity_reward", "language_rate", "meaning_f1", "meaning_exact"} <= set(
        cold.target_rows
    )
    lines = (tmp_path / "cold" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["output"] for line in lines] == [output.output for output in cold.outputs]
    assert len(cold.answers) == 5 and "divergence_rows" not in cold.conditions
    main(["tax", str(tmp_path), "--output", str(tmp_path / "tax")])
    report = Report.from_json(tmp_path / "tax" / "report.json")
    assert report.paper == task and report.contrast("cold_start", "base", "tax.em") is not None


def test_print_config_is_commented_and_runs_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", "--config", str(CONFIGS / "measure" / "real.yaml"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--print_config"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and "# Tau of the similarity reward" in shown
    assert yaml.safe_load(shown)["policy"]["model"] == "Qwen/Qwen3-4B"


def test_own_files_are_read_by_the_template(tmp_path: Path) -> None:
    def rows(name: str, *lines: dict[str, object]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return str(tmp_path / name)

    pairs = rows("pairs.jsonl", *({"id": at, "zh": f"老师买了{at}本书。", "bo": f"དེབ་{at}་ཉོས།"} for at in range(4)))
    test = rows("test.jsonl", {"id": "t", "zh": "学生读了信。", "bo": "སློབ་མས་ཡི་གེ་བཀླགས།"})
    asked = [{"id": at, "context": f"他买了{at}本书。", "question": "几本？", "answers": [str(at)]} for at in range(3)]
    (tmp_path / "text.txt").write_text("今天天气很好。我们去公园。\n他读书。她写信。\n", encoding="utf-8")
    main(
        [
            *("measure", "--config", str(CONFIGS / "measure" / "real.yaml"), "--output", str(tmp_path / "out")),
            *("--policy.model=micro", "--policy.dtype=float32", "--metrics.encoder=micro", "--max_new_tokens=4"),
            *(f"--target.init_args.source.path={pairs}", f"--target.init_args.test.path={test}", "--device=cpu"),
            f"--general.init_args.source.path={rows('train.jsonl', *asked[:2])}",
            f"--general.init_args.test.path={rows('dev.jsonl', *asked[2:])}",
            f"--text.path={tmp_path / 'text.txt'}",
        ]
    )
    measured = Measured.read(tmp_path / "out" / FILE)
    assert {part: found.count for part, found in measured.data.items()} == {"target": 1, "general": 1, "text": 2}


@pytest.mark.parametrize("text", slow_but(["--text.rows=4", "--text=null"], ["--text=null"]), ids=("text", "neither"))
def test_the_gain_alone_is_measured_without_general_data(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gain.yaml").write_text(
        yaml.safe_dump(
            yaml.safe_load((CONFIGS / "measure" / "translation.yaml").read_text(encoding="utf-8")) | {"general": None}
        ),
        encoding="utf-8",
    )
    few = ["--target.init_args.micro.test=6", "--max_new_tokens=8", "--device=cpu", text]
    for name, words in (("base", []), ("cold", ["--arm=cold_start", "--policy.adapter=micro"])):
        folder = tmp_path / "runs" / name
        main(["measure", "--config", str(tmp_path / "gain.yaml"), *few, *words, "--output", str(folder)])
        measured = Measured.read(folder / FILE)
        assert set(measured.data) == {"target"} | ({"text"} if text != "--text=null" else set())
        assert set(measured.divergence) == {*measured.data, "own"}
        assert not measured.general and not measured.general_rows and not measured.answers
        assert "cmrc" not in measured.signatures and measured.general_name == ""
    main(["tax", str(tmp_path / "runs"), "--output", str(tmp_path / "tax")])
    assert "Cold start gained" in (shown := capsys.readouterr().out) and "lost" not in shown
    report = Report.from_json(tmp_path / "tax" / "report.json")
    assert report.kept == "" and report.contrast("cold_start", "base", "tax.em") is None


@pytest.mark.parametrize(
    ("module", "name", "scores", "kept"),
    [
        pytest.param(
            "instruction.InstructionData",
            "instructions",
            {"chrf_sentence", "answer_length", "ended_rate", "leak"},
            "chrf_sentence",
            marks=pytest.mark.slow,
        ),
        ("choice.ChoiceData", "multiple choice", {"accuracy", "accuracy_per_token", "chance"}, "accuracy"),
    ],
)
def test_general_ability_may_be_of_another_kind(
    module: str, name: str, scores: set[str], kept: str, tmp_path: Path
) -> None:
    words = [f"--general=lsemrl.data.{module}", "--general.init_args.micro.train=1"]
    own = ["--arm=cold_start", "--policy.adapter=micro"]
    base, cold = (
        measure("translation", tmp_path / arm, *words, "--general.init_args.micro.test=6", *more)
        for arm, more in (("base", []), ("cold", own))
    )
    assert base.general_name == cold.general_name == name and base.data["general"].count == 6
    assert set(cold.general_rows) == {*scores, "nll"} and "cmrc" not in cold.signatures
    main(["tax", str(tmp_path), "--output", str(tmp_path / "tax")])
    report = Report.from_json(tmp_path / "tax" / "report.json")
    assert report.kept == kept and report.contrast("cold_start", "base", f"tax.{kept}") is not None
    assert f"points of {name} against the base" in (tmp_path / "tax" / "report.md").read_text(encoding="utf-8")


def test_a_label_of_ones_own_is_what_reports_call_general_ability(tmp_path: Path) -> None:
    assert measure("translation", tmp_path, "--general_label=my questions").general_name == "my questions"


@pytest.mark.slow
def test_fewer_rows_of_divergence_are_a_condition(tmp_path: Path) -> None:
    fewer, all_of_them = (measure("translation", tmp_path / n, f"--divergence_rows={n}") for n in ("2", "6"))
    assert fewer.conditions.pop("divergence_rows") == 2 and fewer.conditions == all_of_them.conditions
    assert len(fewer.divergence["target"].to_base_rows) == len(fewer.divergence["own"].to_base_rows) == 2


def test_a_gpu_that_has_no_bfloat16_is_told_before_weights_are_read(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(measuring, "computing_device", lambda name: torch.device("cuda"))
    monkeypatch.delattr(Policy, "load")
    settings = tiny_settings(PolicySettings(model=tiny_model, dtype="bfloat16"))
    with pytest.raises(AttributeError, match="load"):
        run_measure(settings, tmp_path)
    told = "this GPU does not compute bfloat16 itself, which makes it slow; set policy.dtype to float32\n"
    assert capsys.readouterr().err.endswith(told)


def test_full_fine_tuning_is_held_against_the_model_it_came_from(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Policy(PolicySettings(model=tiny_model, train="full", reference="none"))
    trained.load()
    stir(trained, scale=0.02)
    trained.save(tmp_path / "trained")
    base = run_measure(tiny_settings(PolicySettings(model=tiny_model)), tmp_path / "base")
    full = PolicySettings(model=str(tmp_path / "trained"), train="full")
    arm = run_measure(tiny_settings(full, arm="full", base=tiny_model), tmp_path / "arm")
    assert arm.base_fingerprint == base.base_fingerprint and arm.data == base.data
    assert arm.weight_change > 0 and arm.divergence["target"].to_base > 0
    other = save_tiny_model(tmp_path / "wider", hidden=48)
    with pytest.raises(UserError, match="other names or shapes"):
        run_measure(tiny_settings(full, arm="full", base=str(other)), tmp_path / "none")
    assert base.policy_fingerprint == "" and arm.policy_fingerprint not in ("", arm.base_fingerprint)
    assert run_measure(tiny_settings(full, arm="full", base=tiny_model), tmp_path / "arm") == arm
    monkeypatch.setattr(measuring, "measure", lambda *asked, **settings: 1 / 0)
    write_without(tmp_path / "arm", "policy_fingerprint")
    with pytest.raises(ZeroDivisionError):
        run_measure(tiny_settings(full, arm="full", base=tiny_model), tmp_path / "arm")
    arm.write(tmp_path / "arm")
    stir(trained, scale=0.02)
    trained.save(tmp_path / "trained")  # another training's, in the same place
    with pytest.raises(ZeroDivisionError):
        run_measure(tiny_settings(full, arm="full", base=tiny_model), tmp_path / "arm")


def test_full_fine_tuning_may_bring_tokens_that_its_base_has_rows_for(tmp_path: Path) -> None:
    for name, added in (("base", []), ("trained", ["ཀྵ"])):
        save_tiny_model(tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        words = AutoTokenizer.from_pretrained(tmp_path / name)
        model.resize_token_embeddings(len(words) + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[-1] = 0
        model.save_pretrained(tmp_path / name)
        words.add_tokens(added)
        words.save_pretrained(tmp_path / name)
    policy = Policy(PolicySettings(model=str(tmp_path / "trained"), train="full", reference="none"))
    assert measuring._load(policy, str(tmp_path / "base")) == policy.fingerprint
    assert len(policy.tokenizer("ཀྵ")["input_ids"]) == 1 < len(policy.base_tokenizer("ཀྵ")["input_ids"])


def test_an_adapter_is_measured_as_it_was_trained(tiny_model: str, tmp_path: Path) -> None:
    policy = make_policy(tiny_model)
    policy.save(tmp_path / "version_0" / "adapter")
    (tmp_path / "adapter").symlink_to("version_0/adapter")  # as an experiment's stage has it
    settings = PolicySettings(model=tiny_model, adapter=str(tmp_path / "adapter"))
    first = run_measure(tiny_settings(settings, arm="rl"), tmp_path / "one")
    told = Told(
        rollout_step=9,
        kind="ties",
        sentence="all groups tie",
        rows=({"source": "a", "reference": "b", "completion": "c", "reward": 0.5},),
    )
    (tmp_path / "version_0" / ALARMS).write_text(json.dumps(dataclasses.asdict(told)) + "\n")
    again = run_measure(tiny_settings(settings, arm="rl"), tmp_path / "two")
    assert first.divergence == again.divergence and first.divergence["own"].to_base > 0
    assert (first.alarms, Measured.read(tmp_path / "two" / FILE).alarms) == ((), (told,))


def test_beams_are_a_condition_and_follow_what_is_likelier(tiny_model: str, tmp_path: Path) -> None:
    settings = tiny_settings(PolicySettings(model=tiny_model))
    one, three = (
        run_measure(dataclasses.replace(settings, num_beams=beams), tmp_path / str(beams)) for beams in (1, 3)
    )
    assert "num_beams" not in one.conditions and three.conditions == {**one.conditions, "num_beams": 3}
    assert [said.id for said in three.outputs] == [said.id for said in one.outputs]
    assert three.outputs != one.outputs and three.answers != one.answers
    with pytest.raises(UserError, match="num_beams is 0; it must be at least 1"):
        dataclasses.replace(settings, num_beams=0)


def test_the_first_of_several_beams_that_is_sound_is_taken(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(tiny_settings(PolicySettings(model=tiny_model)), num_beams=3)
    likeliest = run_measure(settings, tmp_path / "likeliest")
    settings = dataclasses.replace(settings, guarded=True)
    guarded = run_measure(settings, tmp_path / "guarded")
    assert guarded.conditions == {**likeliest.conditions, "guarded": "copies, loops, broken"}
    monkeypatch.setattr(guards.CopyOfSource, "__call__", lambda _, said: torch.ones(len(said)))
    monkeypatch.setattr(guards.Repetition, "__call__", lambda _, said: torch.ones(len(said)))
    shut: set[str] = {said.output for said in likeliest.outputs}
    monkeypatch.setattr(guards.Broken, "__call__", lambda _, said: torch.tensor([float(said[0].text not in shut)]))
    others = run_measure(settings, tmp_path / "others")
    assert not shut & {said.output for said in others.outputs} and others.data == likeliest.data
    shut |= {said.output for said in others.outputs}
    third = run_measure(settings, tmp_path / "third")
    assert not shut & {said.output for said in third.outputs}
    shut |= {said.output for said in third.outputs}
    assert run_measure(settings, tmp_path / "none_is").outputs == likeliest.outputs
    with pytest.raises(UserError, match="guarded is true, but num_beams is 1, which finds one answer"):
        dataclasses.replace(settings, num_beams=1)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"arm": "rl"}, "policy.adapter and base are null"),
        ({"arm": "r-l"}, "arm is 'r-l'"),
        ({"base": "micro"}, "arm is 'base', but policy.adapter or base is set"),
        ({"arm": "rl", "base": "micro"}, "policy.train is lora"),
        ({"threshold": 1.0}, r"threshold \(tau\) is 1.0"),
        ({"target_rows": 0}, "target_rows is 0"),
        ({"divergence_rows": 0}, "divergence_rows is 0"),
    ],
)
def test_a_mistake_is_told_before_weights_are_read(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_settings(PolicySettings(), **fields)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="which cannot be written"):
        run_measure(tiny_settings(PolicySettings()), tmp_path / "file" / "out")


@pytest.mark.parametrize("choices", slow_but([False, True], [False]))
def test_a_measurement_that_was_stopped_goes_on_to_the_same_figures(
    choices: bool, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = make_policy(tiny_model)
    policy.save(tmp_path / "adapter")
    rows = tmp_path / "questions.jsonl"
    rows.write_text("".join(f'{{"question": "{at}", "choices": ["a", "bc", "d"], "answer": 1}}\n' for at in range(5)))
    asked = ChoiceData(source=Source(path=str(rows)), splits=Splits(validation_fraction=0.0, test_fraction=1.0))
    settings = dataclasses.replace(
        tiny_settings(PolicySettings(model=tiny_model, adapter=str(tmp_path / "adapter")), arm="rl"),
        batch_size=2,
        **({"general": asked} if choices else {}),
    )
    whole = run_measure(settings, tmp_path / "whole")
    another = {**whole.machine, "system": "another", "device": "a GPU"}
    done, add = [], Unfinished.add

    def stopped(part: Unfinished, line: str) -> None:
        add(part, line)
        done.append(line)
        if len(done) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Unfinished, "add", stopped)
    kept = tmp_path / "again" / f"{FILE}.unfinished"
    for stops in (1, 2, 3):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="interrupted; what was done is in"):
            if stops == 1:
                patch.setattr("lsemrl.evaluation.measure.machine", lambda: another)
            run_measure(settings, tmp_path / "again")
        assert len(kept.read_text().splitlines()) == 1 + 3 * stops
    with pytest.raises(UserError, match=r"holds what another command worked out \(9 lines\); move it away"):
        run_measure(dataclasses.replace(settings, max_new_tokens=5), tmp_path / "again")
    monkeypatch.setattr(Unfinished, "add", add)
    shutil.move(tmp_path / "adapter", tmp_path / "moved")
    moved = dataclasses.replace(settings, policy=PolicySettings(model=tiny_model, adapter=str(tmp_path / "moved")))
    run_measure(moved, tmp_path / "again")
    again, told = Measured.read(tmp_path / "again" / FILE), capsys.readouterr().err
    assert all(f"measurement that was stopped; {n} batches" in told for n in (3, 6, 9)) and not kept.exists()
    both = {name: f"{another[name]} then {whole.machine.get(name, 'none')}" for name in ("system", "device")}
    assert again.machine == {**whole.machine, **both}
    same: dict[str, Any] = {"created": "", "seconds": 0.0, "policy": whole.policy, "machine": whole.machine}
    assert dataclasses.replace(again, **same) == dataclasses.replace(whole, **same)
    shutil.move(tmp_path / "moved", tmp_path / "adapter")
    assert run_measure(settings, tmp_path / "again") == again and "measured already" in capsys.readouterr().err
    assert again.seconds > sum(json.loads(line)[0] for line in done)


def test_other_scores_are_made_of_the_answers_that_were_given(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(
        tiny_settings(PolicySettings(model=tiny_model)), metrics=MetricSettings(names=("chrf",)), batch_size=2
    )
    metrics = MetricSettings(names=("chrf", "bleu"), language="zh")
    other = dataclasses.replace(settings, metrics=metrics, label="Again")
    expected = run_measure(other, tmp_path / "new")
    folder = tmp_path / "old"
    run_measure(settings, folder)
    worked, each = [], Batches.each

    def watched(batches: Batches, examples: Any, work: Any, *size: Any) -> Any:
        return each(batches, examples, lambda *batch: worked.append(batch) or work(*batch), *size)

    monkeypatch.setattr(Batches, "each", watched)
    capsys.readouterr()
    found = run_measure(other, folder)
    told = capsys.readouterr().err
    assert not worked and f"are those of {folder / FILE}, and are scored anew" in told and "measuring: " not in told
    same: dict[str, Any] = {"created": "", "seconds": 0.0}
    assert dataclasses.replace(found, **same) == dataclasses.replace(expected, **same)
    assert found.seconds > sum(json.loads(line)[0] for line in (folder / BATCHES).read_text().splitlines()[1:]) > 0
    assert run_measure(settings, folder).target.keys() < found.target.keys() and not worked  # and back again

    for change in ({"max_new_tokens": 5}, {"batch_size": 3}, {"divergence_rows": 1}):
        run_measure(dataclasses.replace(other, **change), folder)  # type: ignore[arg-type]
        assert worked
        run_measure(settings, folder)
        worked.clear()
    for whose, name, found in ((Policy, "eos_ids", [7]), (measuring, "tokenizer_fingerprint", "another")):
        monkeypatch.setattr(whose, name, lambda *asked, found=found: found)
        run_measure(settings, folder)  # is neither measured already nor scored anew
        assert worked
        worked.clear()
    monkeypatch.setattr(measuring, "versions", lambda: {"torch": "another"})
    run_measure(other, folder)
    assert worked
    batches = folder / BATCHES
    whole = batches.read_text()
    for damaged in (whole[:-5], "\n".join(whole.split("\n")[:-2]) + "\n", whole[:-9] + "7" + whole[-8:], "", "\n"):
        batches.write_text(damaged)
        worked.clear()
        run_measure(settings if "bleu" in Measured.read(folder / FILE).target else other, folder)
        assert worked
    run_measure(other, folder)
    for gone in (BATCHES, FILE):
        (folder / gone).unlink()
        worked.clear()
        run_measure(settings, folder)
        assert worked


def test_what_was_measured_does_only_for_what_is_asked_again(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = MetricSettings(names=("chrf",))
    settings = dataclasses.replace(tiny_settings(PolicySettings(model=tiny_model)), metrics=metrics)
    battery, scorer = read_measured(settings)
    there = run_measure(settings, tmp_path, (battery, scorer))
    assert run_measure(settings, tmp_path, (battery, scorer)) == there
    assert f"measured already, {there.created}; delete {tmp_path / FILE} to measure again" in capsys.readouterr().err
    predictions = tmp_path / "predictions.jsonl"
    written = predictions.read_bytes()
    predictions.unlink()
    write_without(tmp_path, "policy_fingerprint")
    assert run_measure(settings, tmp_path, (battery, scorer)) == there and predictions.read_bytes() == written
    monkeypatch.setattr(measuring, "measure", lambda *asked, **settings: 1 / 0)
    for change in (
        {"max_new_tokens": 5},
        {"threshold": 0.5},
        {"label": "Another"},
        {"general_label": "My QA"},
        {"metrics": dataclasses.replace(metrics, names=("chrf", "bleu"))},
        {"metrics": dataclasses.replace(metrics, language="zh")},
        {"metrics": dataclasses.replace(metrics, language=Language(code="bo", threshold=0.5))},
    ):
        other = dataclasses.replace(settings, **change)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            run_measure(other, tmp_path, (battery, Scorer(other.metrics)))
    leak, earlier = there.signatures["leak"], there.signatures | {"leak": "by an earlier rule"}
    others = [earlier, there.signatures | {"squad": ""}, {k: v for k, v in there.signatures.items() if v != leak}]
    for change in ({"asked": ""}, *({"signatures": other} for other in others)):  # as an earlier lsemrl wrote it
        dataclasses.replace(there, **change).write(tmp_path)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            run_measure(settings, tmp_path, (battery, scorer))


def test_rows_are_told_apart_by_prompt_and_references_in_order() -> None:
    one, two = (Example(id=name, prompt=f"p{name}", source="s", references=(f"r{name}",)) for name in ("1", "2"))
    renamed = Example(id="other", prompt="p1", source="other", references=("r1",))
    assert hash_rows([one, two]) == hash_rows([renamed, two])
    assert len({hash_rows(rows).sha256 for rows in ([one, two], [two, one], [one])}) == 3


@pytest.mark.parametrize("threshold", [0.3, 0.0, -0.5])
def test_similarity_reward_is_the_rewards_own(threshold: float) -> None:
    """An empty or broken output too: with a negative tau its cosine of 0 would otherwise be paid."""
    from lsemrl.rewards import SemanticSimilarity
    from lsemrl.types import Completion

    reward = SemanticSimilarity(threshold=threshold)
    example = Example(id="1", prompt="p", source="s", references=("དགེ་རྒན་གྱིས་དེབ་ཉོས།",))
    texts = ("དགེ་རྒན་གྱིས་དེབ་ཉོས།", "སློབ་མ།", "", "དེབ\N{REPLACEMENT CHARACTER}")
    expected = reward([Completion(text=text, ended=True, example=example) for text in texts]).tolist()
    cosines = reward.similarity(texts, [example.references] * len(texts)).tolist()
    paid = [paid_for(text, cosine, threshold) for text, cosine in zip(texts, cosines, strict=True)]
    assert paid == pytest.approx(expected) and paid[2:] == [0, 0]


def test_a_measurement_is_not_written_over_that_of_another_arm(tmp_path: Path) -> None:
    make_measured("base").write(tmp_path)
    check_own(tmp_path, "base", 1)
    check_own(tmp_path / "new", "rl", 1)
    with pytest.raises(UserError, match="which holds the measurement of 'base'; name another folder"):
        check_own(tmp_path, "rl", 1)
    with pytest.raises(UserError, match="which holds the measurement of 'base', seed 1; name another folder"):
        check_own(tmp_path, "base", 2)
    (tmp_path / FILE).write_text('{"version": 1}')  # of which reports say that it be measured again
    check_own(tmp_path, "rl", 1)
