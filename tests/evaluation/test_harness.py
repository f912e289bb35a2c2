"""General ability before and after: the harness's scores are those of our own evaluation, and mistakes are told."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lsemrl import micro
from lsemrl.cli.main import main
from lsemrl.data.comprehension import TASK
from lsemrl.data.prompts import PromptTemplate
from lsemrl.evaluation import harness_library
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.harness import run_harness
from lsemrl.evaluation.harness_scores import results, table
from lsemrl.evaluation.harness_settings import HarnessSettings, check_policy
from lsemrl.evaluation.harness_tasks import cmrc2018
from lsemrl.evaluation.tax import answer
from lsemrl.metrics.scorer import Scorer
from lsemrl.metrics.settings import MetricSettings
from lsemrl.micro import corpus
from lsemrl.modules.adapters.files import adapter_fingerprint
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from lsemrl.modules.sampling import greedy
from lsemrl.types import Example, UserError

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'lsemrl[lm-eval]'"
)
ROWS = corpus.comprehension("test", 60, seed=0)
SIZES = {"reading_large": 30, "reading_small": 18}


@pytest.fixture(scope="module")
def cmrc(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions of the embedded world in the form in which CMRC 2018 was released."""
    paragraphs = [
        {
            "id": f"P{at}",
            "context": row["context"],
            "qas": [
                {
                    "id": row["id"],
                    "question": row["question"],
                    "answers": [{"text": text, "answer_start": row["context"].find(text)} for text in row["answers"]],
                }
            ],
        }
        for at, row in enumerate(ROWS)
    ]
    path = tmp_path_factory.mktemp("cmrc") / "cmrc2018_dev.json"
    release = {"version": "v1.0", "data": [{"paragraphs": [paragraph], "title": ""} for paragraph in paragraphs]}
    path.write_text(json.dumps(release, ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of two multiple-choice tasks and the group of both."""
    folder = tmp_path_factory.mktemp("reading")
    for name, rows in choices().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{context}}\n问题：{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 2.0},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    group = {
        "group": "reading",
        "task": list(SIZES),
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 3.0},
    }
    (folder / "reading.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return str(folder)


def choices() -> dict[str, list[dict[str, Any]]]:
    """Rows of each task: the answer among other words, those of its passage first."""
    rows = []
    words = sorted({text for row in ROWS for text in row["answers"]})
    for at, row in enumerate(ROWS):
        others = sorted(
            (word for word in words if word not in row["answers"]), key=lambda word: word not in row["context"]
        )
        texts = [row["answers"][0], *others][:4]
        texts = texts[at % 4 :] + texts[: at % 4]
        label = texts.index(row["answers"][0])
        rows.append({"context": row["context"], "question": row["question"], "choices": texts, "label": label})
    large, small = SIZES.values()
    return {"reading_large": rows[:large], "reading_small": rows[large : large + small]}


def prompt(policy: Policy, row: dict[str, Any]) -> str:
    return PromptTemplate(template=TASK.template).render(policy.tokenizer, row)


def own_cmrc(policy: Policy, max_new_tokens: int = 128) -> dict[str, float]:
    examples = [
        Example(id=row["id"], prompt=prompt(policy, row), source=row["context"], references=tuple(row["answers"]))
        for row in ROWS
    ]
    return Scorer(MetricSettings(names=("cmrc",)))(answer(policy, examples, greedy(max_new_tokens), Batches(20)))


def own_accuracy(policy: Policy, rows: list[dict[str, Any]]) -> list[bool]:
    """Whether the likeliest choice is the right one, one plain forward pass each."""

    def logprob(asked: str, text: str) -> float:
        ids = [policy.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (asked, asked + text)]
        assert ids[1][: len(ids[0])] == ids[0]
        scores = policy.model(torch.tensor([ids[1]])).logits[0].log_softmax(-1)
        return sum(float(scores[at - 1, ids[1][at]]) for at in range(len(ids[0]), len(ids[1])))

    return [
        int(np.argmax([logprob(prompt(policy, row), text) for text in row["choices"]])) == row["label"] for row in rows
    ]


@needs_lm_eval
def test_before_and_after_equal_our_own_evaluation(
    tmp_path: Path, cmrc: str, reading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "general.yaml"
    config.write_text(yaml.safe_dump({"policy": {"adapter": "micro"}, "cmrc": cmrc, "batch_size": 16}))
    words = ["--tasks", "cmrc2018", "gsm8k", "reading", f"--include={reading}", f"--output={tmp_path / 'out'}"]
    main(["general", "--config", str(config), *words])
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "general.json").read_text(encoding="utf-8"))
    tasks = {task["name"]: task for task in record["tasks"]}

    policy = Policy(PolicySettings(adapter="micro"))
    policy.load()
    with policy.base():
        base, base_right = own_cmrc(policy), {name: own_accuracy(policy, rows) for name, rows in choices().items()}
    with policy.inference():
        trained, right = own_cmrc(policy), {name: own_accuracy(policy, rows) for name, rows in choices().items()}
    assert base["em"] > trained["em"] > 0  # so that the two cannot be mistaken for one another
    for name in ("em", "f1", "average", "answer_length"):
        scores = {when: tasks["cmrc2018"][when][f"{name},none"]["value"] for when in ("before", "after", "difference")}
        assert scores["before"] == pytest.approx(base[name], abs=1e-9)
        assert scores["after"] == pytest.approx(trained[name], abs=1e-9)
        assert scores["difference"] == pytest.approx(trained[name] - base[name], abs=1e-9)

    assert base_right != right
    both = {"before": np.concatenate(list(base_right.values())), "after": np.concatenate(list(right.values()))}
    for name in SIZES:
        assert tasks[name]["part"]
        assert tasks[name]["questions"] == SIZES[name]
        assert tasks[name]["before"]["acc,none"]["value"] == pytest.approx(np.mean(base_right[name]), abs=1e-9)
        assert tasks[name]["after"]["acc,none"]["value"] == pytest.approx(np.mean(right[name]), abs=1e-9)
    assert not tasks["reading"]["part"]
    assert tasks["reading"]["task_version"] == "3.0"
    assert tasks["reading"]["questions"] == sum(SIZES.values())
    for when, answers in both.items():
        assert tasks["reading"][when]["acc,none"]["value"] == pytest.approx(answers.mean(), abs=1e-9)
    changed = both["after"].astype(float) - both["before"].astype(float)
    paired = changed.std(ddof=1) / len(changed) ** 0.5
    assert tasks["reading"]["difference"]["acc,none"]["stderr"] == pytest.approx(paired)
    assert tasks["reading_small"]["before"]["acc,none"]["stderr"] > 0

    assert "Couldn't reach 'openai/gsm8k'" in record["skipped"]["gsm8k"]
    assert "it needs the network, or a Hugging Face cache that holds the data set" in record["skipped"]["gsm8k"]
    assert record["skipped"]["gsm8k"] in shown
    assert "gsm8k" not in tasks
    assert record["settings"]["chat"] is True
    assert record["settings"]["enable_thinking"] is False
    assert record["versions"]["lm-eval"].startswith("0.4.")
    for word in ("reading", "answer_length", f"{base['em']:.3f}", f"{trained['em'] - base['em']:+.3f}"):
        assert word in shown
    assert "reading_small" not in shown


@needs_lm_eval
def test_an_adapter_that_changes_nothing_differs_by_nothing(tmp_path: Path, cmrc: str, reading: str) -> None:
    policy = Policy(PolicySettings(lora=LoraSettings(rank=2)))  # its second factor is zero until it is trained
    policy.load()
    policy.save(tmp_path / "adapter")
    settings = HarnessSettings(
        tasks=["cmrc2018", "reading_small"], cmrc=cmrc, include=reading, limit=10, num_fewshot={"reading_small": 2}
    )
    general = run_harness(PolicySettings(adapter=str(tmp_path / "adapter")), settings, tmp_path / "out")
    assert [(result.name, result.questions, result.num_fewshot) for result in general.tasks] == [
        ("cmrc2018", 10, 0),
        ("reading_small", 10, 2),
    ]
    for result in general.tasks:
        assert result.before == result.after
        assert {(score.value, score.stderr) for score in result.difference.values()} == {(0.0, 0.0)}
    assert general.tasks[0].before["em,none"].value > 0.5
    assert table(general).row_count == 5


@needs_lm_eval
def test_generation_settings_of_the_model_play_no_part_and_thinking_is_off(
    tmp_path: Path, cmrc: str, reading: str
) -> None:
    model = shutil.copytree(micro.POLICY, tmp_path / "model")
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "repetition_penalty": 9.0}))
    chat = (model / "chat_template.jinja").read_text()
    thinking = "{% if enable_thinking is not defined or enable_thinking %}{{ raise_exception('thinks') }}{% endif %}"
    (model / "chat_template.jinja").write_text(thinking + chat)
    settings = HarnessSettings(tasks=["cmrc2018"], cmrc=cmrc, include=reading, limit=20, batch_size=20)
    scores = [
        run_harness(PolicySettings(model=name, adapter="micro"), settings, tmp_path / "out").tasks[0]
        for name in ("micro", str(model))
    ]
    assert (scores[0].before, scores[0].after) == (scores[1].before, scores[1].after)


@needs_lm_eval
def test_prompts_show_one_date_on_all_days(tmp_path: Path, cmrc: str, reading: str) -> None:
    model = shutil.copytree(micro.POLICY, tmp_path / "model")
    chat = (model / "chat_template.jinja").read_text()
    dated = "{% if strftime_now('%d %B %Y') != '26 July 2024' %}{{ raise_exception('another day') }}{% endif %}"
    (model / "chat_template.jinja").write_text(dated + chat)
    settings = HarnessSettings(tasks=["cmrc2018"], cmrc=cmrc, include=reading, limit=5, batch_size=5)
    assert run_harness(PolicySettings(model=str(model), adapter="micro"), settings, tmp_path / "out").tasks


@needs_lm_eval
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": ["cmrc2081"]}, "tasks names 'cmrc2081', which lm-eval .* did you mean .*cmrc2018"),
        ({"tasks": ["gsm8k"]}, r"none of the tasks can be run: gsm8k cannot be loaded \(.*needs the network"),
        ({"num_fewshot": {"cmrc2018": 3}}, r"num_fewshot\.cmrc2018 is 3, but the task cmrc2018 is defined with none"),
        ({"cmrc": "nowhere.json"}, r"cmrc is 'nowhere\.json', .* no such file"),
        ({"device": "gpu"}, "device is 'gpu'; choose cpu, cuda"),
        ({"chat": True}, "chat is true, but the tokenizer of policy.model .* has no chat template"),
    ],
)
def test_mistakes_are_told_before_weights_are_read(
    wrong: dict[str, Any],
    sentence: str,
    cmrc: str,
    reading: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapter = "micro"
    if wrong.get("chat"):
        model = str(shutil.copytree(micro.POLICY, tmp_path / "model"))
        adapter = str(shutil.copytree(micro.COLD_START, tmp_path / "adapter"))
        for folder in (model, adapter):
            (Path(folder) / "chat_template.jinja").unlink()
    monkeypatch.setattr(Policy, "load", lambda self: pytest.fail("weights were read"))
    settings = HarnessSettings(**({"tasks": ["cmrc2018"], "cmrc": cmrc, "include": reading} | wrong))
    with pytest.raises(UserError, match=sentence):
        run_harness(PolicySettings(model=model, adapter=adapter), settings, tmp_path)


def test_a_missing_harness_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(
        harness_library, "_manager", harness_library._manager.__wrapped__
    )  # the index may have been read
    with pytest.raises(SystemExit) as exit_:
        main(["general", "--policy.adapter=micro", "--tasks", "gsm8k", f"--output={tmp_path}"])
    assert exit_.value.code == 2
    assert "pip install 'lsemrl[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "other", "sentence"),
    [
        ({"adapter_scale": 0.5}, {}, r"out', which holds scores of adapter_fingerprint '.*', not '.* \* 0\.5'; name"),
        ({"dtype": "bfloat16"}, {}, "of dtype 'float32', not 'bfloat16'"),
        ({}, {"tasks": ["gsm8k", "mmlu"]}, r"of tasks \['gsm8k'\], not \['gsm8k', 'mmlu'\]"),
        ({}, {"limit": 9}, "of limit None, not 9"),
        ({}, {"batch_size": 9}, "lm-eval is not installed"),  # which goes on from there
    ],
)
def test_scores_of_another_adapter_or_otherwise_asked_are_not_replaced(
    policy: dict[str, Any], other: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(harness_library, "_manager", harness_library._manager.__wrapped__)
    settings = HarnessSettings(tasks=["gsm8k"], device="cpu")
    asked = {**dataclasses.asdict(settings), "chat": True, "enable_thinking": False, "decoding": "greedy"}
    by = {"adapter_fingerprint": adapter_fingerprint(micro.COLD_START), "dtype": "float32"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "general.json").write_text(json.dumps({"settings": asked, "policy": by}))
    with pytest.raises(UserError, match=sentence):
        run_harness(PolicySettings(adapter="micro", **policy), dataclasses.replace(settings, **other), tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": ["cmrc2018"]}, "cmrc is null, but tasks has cmrc2018"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"include": "nowhere"}, "include is 'nowhere', which is no folder"),
        ({"num_fewshot": {"mmul": 5}}, "num_fewshot names 'mmul', which is not among tasks"),
        ({"num_fewshot": {"mmlu": -1}}, "num_fewshot.mmlu is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        HarnessSettings(**({"tasks": ["mmlu"]} | wrong))


def test_an_adapter_is_needed() -> None:
    with pytest.raises(UserError, match=r"policy\.adapter is null"):
        check_policy(PolicySettings())


def test_cmrc_reads_the_release_and_flat_rows(cmrc: str, tmp_path: Path) -> None:
    flat = tmp_path / "flat.jsonl"
    flat.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    read = [list(cmrc2018.read(cmrc=path, version=1.0)["test"]) for path in (cmrc, str(flat))]
    rows = [{name: row[name] for name in ("context", "question", "answers")} for row in ROWS]
    assert read[0] == read[1] == [{**row, "answers": list(row["answers"])} for row in rows]
    assert len(cmrc2018.read(cmrc="micro")["test"]) == 500
    with pytest.raises(UserError, match="cmrc is null"):
        cmrc2018.read()


def test_tasks_tell_what_questions_they_are_of() -> None:
    def outcome(*questions: str) -> dict[str, Any]:
        samples = [{"filter": "none", "acc": 1, "doc_hash": each, "target_hash": "t"} for each in questions]
        row = {"acc,none": 1.0, "acc_stderr,none": 0.0, "sample_len": len(samples)}
        return {
            "results": {"t": row}, "group_subtasks": {}, "versions": {}, "n-shot": {"t": 0}, "samples": {"t": samples},
        }  # fmt: skip

    one, again, other = (
        next(results("t", outcome(*questions), outcome(*questions))).questions_sha256
        for questions in (("a", "b"), ("a", "b"), ("a", "c"))
    )
    assert one == again != other


def test_cmrc_scores_by_the_official_definition() -> None:
    doc = {"context": "甲在学校读书。", "question": "谁在读书？", "answers": ["甲", "老师甲"]}
    assert cmrc2018.prompt(doc) == "甲在学校读书。\n问题：谁在读书？"
    scores = cmrc2018.score(doc, ["学生甲。"])
    assert scores == {"em": 0.0, "f1": 0.5, "average": 0.25, "answer_length": 4.0}
    assert cmrc2018.score(doc, ["老师甲。"])["em"] == 1.0
