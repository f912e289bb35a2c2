"""Mistakes are told before Lightning loads, and nothing is refused that the parser proper would take."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentError
from inspect import signature
from pathlib import Path

import pytest

from lsemrl.cli.first_look import POLICIES, first_look
from lsemrl.cli.main import users_mistake
from lsemrl.config_files import CONFIGS
from lsemrl.errors import UserError
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.grpo_settings import check_grpo

MISTAKES = [
    ("--model.optimizer.lrr=1", "--model.optimizer.lrr=1 (the nearest is model.optimizer.lr)"),
    ("--model.optimizer.warmup=1", "--model.optimizer.warmup=1"),  # no name is taken for another that it begins
    ("--trainer.max_stps=1", "--trainer.max_stps=1 (the nearest is trainer.max_steps)"),
    ("--checkpoints.kep=1", "--checkpoints.kep=1 (the nearest is checkpoints.keep)"),
    ("--modle.x=1", "--modle.x=1"),
    ("--data.splits.part=nope", "data.splits.part: Expected"),
    ("--data.source.pat=x", "--source.pat=x (the nearest is source.path)"),
    ("--data.class_path=lsemrl.data.translation.Nothing", "has no attribute 'Nothing'"),
    ("--data.source.path=nope.jsonl", "path is 'nope.jsonl', and there is no such file"),
    ("--data.source.path=nope.what", "path is 'nope.what', whose format is unknown"),
    ("--data.template.template={foo}", "template.template '{foo}' has the unknown placeholder {foo}"),
    ("--data.batch_size=0", "batch_size is 0"),
    ("--data.seed=-1", "data.seed is -1"),
    ("--model.class_path=lsemrl.modules.sft.SFTT", "model.class_path is 'lsemrl.modules.sft.SFTT'; give lsemrl"),
    ("--model.metrics.language=xx", "metrics.language is 'xx'"),
    ("--model.max_new_tokens=0", "model.max_new_tokens is 0"),
    ("--model.micro_batch_tokens=0", "model.micro_batch_tokens is 0"),
    ("--model.policy.lora.rank=0", "policy.lora.rank is 0"),
    ("--model.policy.adapter=nope", "policy.adapter is 'nope', which is not there"),
    ("--model.anchor.path=nope.jsonl", "model.anchor.path is 'nope.jsonl', and there is no such file"),
    ("--model.optimizer.lr=.nan", "lr is nan"),
]
CONTRADICTIONS = [
    ("--model.policy.reference=none", "loss.beta is 0.02 but policy.reference is none"),
    ("--model.sampling.temperature=0", "sampling.temperature is 0"),
    ("--model.sampling.num_generations=1", "num_generations is 1"),
    ("--model.optimizer_batch_size=7", "model.optimizer_batch_size is 7, which does not divide the"),
    ("--model.optimizer_batch_size=0", "model.optimizer_batch_size is 0"),
]
HEAVY = ("lightning.pytorch", "transformers", "sentence_transformers", "peft", "torch._dynamo")


def refused(*words: str) -> str:
    with pytest.raises(Exception) as error:
        first_look(words)
    sentence = users_mistake(error.value)
    assert sentence is not None
    return sentence


@pytest.mark.parametrize(("word", "sentence"), MISTAKES)
def test_a_mistake_is_refused(word: str, sentence: str) -> None:
    assert sentence in refused("--config=sft.yaml", word)


@pytest.mark.parametrize(("word", "sentence"), CONTRADICTIONS)
def test_settings_of_grpo_that_contradict_each_other_are_refused(word: str, sentence: str) -> None:
    assert sentence in refused("--config=grpo.yaml", word)


def test_what_is_not_given_is_what_grpo_takes() -> None:
    taken, own = signature(GRPO).parameters, signature(check_grpo).parameters
    assert {name: each.default for name, each in own.items()} == {name: taken[name].default for name in own}


def test_a_mistake_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model: {init_args: {optimizer: {lrr: 1}}}\n")
    sentence = refused("--config=sft.yaml", f"--config={path}")
    assert "'model.optimizer' does not accept option 'lrr' (the nearest is model.optimizer.lr)" in sentence
    path.write_text("trainer: {max_stps: 1}\n")
    assert "max_stps" in refused("--config=sft.yaml", f"--config={path}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {init_args: {batch_size: }}", "data.batch_size: Expected a int. Got value: null"),
        ("data: {init_args: {source: {columns: }}}", "data.source.columns: Expected a dict. Got value: null"),
        ("model: {init_args: {optimizer: {lr: null}}}", "model.optimizer.lr: Expected a float. Got value: null"),
        ("model: {init_args: {metrics: {language: null}}}", "model.metrics.language: "),
        ("model: {init_args: }", "model.init_args in own.yaml is null; write `field: value` lines below it, or leave"),
        ("data: {init_args: [1]}", "data.init_args in own.yaml is [1]; write"),
        ("model: [1]", "model: [1] is neither a file of its fields nor a class"),
    ],
)
def test_nothing_in_place_of_a_value_is_refused_in_a_file_as_on_the_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(text, encoding="utf-8")
    assert says in refused("--config=grpo.yaml", "--config=own.yaml")


def test_an_encoder_of_a_reward_may_not_be_null(tmp_path: Path) -> None:
    part = "{class_path: lsemrl.rewards.SemanticSimilarity, init_args: {encoder: null}}"
    (tmp_path / "own.yaml").write_text(f"model: {{init_args: {{rewards: {{similarity: {part}}}}}}}")
    sentence = refused("--config=grpo.yaml", f"--config={tmp_path / 'own.yaml'}")
    assert "model.rewards.encoder: Expected a str. Got value: null" in sentence


def test_a_class_may_stand_alone_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"model: {POLICIES[0]}")
    first_look(["--config=sft.yaml", f"--config={tmp_path / 'own.yaml'}"])


@pytest.mark.parametrize(
    "words",
    [
        ["sft.yaml", "--config=replay.yaml"],
        ["grpo.yaml", "--config=fsdp.yaml"],
        ["grpo.yaml", "--config", "ddp.yaml", "--trainer.devices", "2"],
        ["headline.yaml", "--config=sft.yaml"],
        ["sft.yaml", "--trainer.logger", "wandb", "--trainer.strategy.find_unused_parameters", "true"],
        ["sft.yaml", "--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.max_time=null"],
        ["sft.yaml", "--model.init_args.optimizer.lr", "1e-3", "--model.anchor=null", "--checkpoints.monitor=null"],
        ["sft.yaml", f"--model={POLICIES[0]}", "--model.policy.model=org/name", "--model.metrics.names=[chrf]"],
        ["sft.yaml", "--model", "one_of_ones_own.Policy", "--model.anything", "1"],
        [
            "sft.yaml",
            f"--model={POLICIES[1]}",
            "--model.rewards.x=lsemrl.rewards.Chrf",
        ],  # another class than the file's
        ["grpo.yaml", "--model.rewards.similarity.encoder=nowhere", "--verbose=true", "--return_predictions=false"],
        ["sft.yaml", "--model.loss.beta=1", "--print_config"],
        ["sft.yaml", "--help"],
        ["sft.yaml", "stray"],
    ],
)
def test_what_may_be_right_is_not_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    first_look(["--config", *words])


def test_an_encoder_of_a_reward_of_ones_own_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_ones_own.py").write_text(
        "from lsemrl.rewards import Chrf\n"
        "class Mine(Chrf):\n"
        "    def __init__(self, encoder: str, weight: float = 1.0) -> None: super().__init__(weight=weight)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = "{x: {class_path: rewards_of_ones_own.Mine, init_args: {encoder: 'a:b'}}}"
    first_look(["--config", "grpo.yaml", f"--model.rewards={mine}"])
    with pytest.raises(UserError, match="encoder is 'a:b', and there is no such folder"):
        first_look(["--config", "grpo.yaml", "--model.rewards.similarity.encoder=a:b"])


def test_shipped_configurations_pass() -> None:
    for path in [*(CONFIGS / "paper").glob("[gs]*.yaml"), *(CONFIGS / "real").glob("*.yaml")]:
        try:
            first_look([f"--config={path}"])
        except UserError as error:
            assert "there is no such" in str(error)  # rows and an encoder of a user's own


LINES = [
    ("measure --output x --nope 1", "unrecognized arguments: --nope=1"),
    ("measure --output x --config measure/translation.yaml --arm rl", "arm is 'rl', but policy.adapter"),
    (
        "measure --output x --config measure/translation.yaml --arm rl --policy.adapter nope",
        "policy.adapter is 'nope', which is not there",
    ),
    (
        "fit-reward --data.init_args.source.path x",  # its data is no class
        "--data.init_args.source.path=x (the nearest is data.source.path)",
    ),
    ("rehearse --output x.jsonl --nope 1", "unrecognized arguments: --nope=1"),
    ("rehearse --output x/own.jsonl --prompts nope", "--prompts is 'nope', which cannot be read"),
    ("general --tasks gsm8k", "policy.adapter is null"),
    ("best-of --config grpo.yaml --nope", "unrecognized arguments: --nope;"),
    ("best-of --config sft.yaml", "give lsemrl.modules.grpo.GRPO, or a class of your own that extends one"),
    ("fit", "model is not given; put a whole configuration first, such as --config grpo.yaml"),
    ("fit --config sft.yaml --data null", "data is not given; put a whole configuration first"),
    ("fit --config sft.yaml --model null", "model is not given; put a whole configuration first"),
    ("fit --config sft.yaml --config none.yaml", "model is not given; put a whole configuration first"),
    ("fit-reward --data.source.path nope.jsonl", "path is 'nope.jsonl', and there is no such file"),
    ("fit --config grpo.yaml --model.policy.model ./nope", "policy.model is './nope', and there is no such folder"),
    (f"fit --config sft.yaml --model.policy.model {'a' * 5000}:", "there is no such folder; name a model's"),
    ("fit --config sft.yaml --model.policy.model own/name", "nor that model in "),
    ("fit --config sft.yaml --model.policy.model .", "which is no model's folder (it has no config.json)"),
    ("fit --config grpo.yaml --model.rewards.similarity.encoder ./nope", "encoder is './nope', and there is no such"),
    (
        "fit --config grpo.yaml --data.source.path rows.jsonl",
        "no row of 'rows.jsonl' has the column 'zh' for the field 'zh'; its columns are 'en', 'bo'",
    ),
    ("init nope.tsv --from zh --to bo --output x", "path is 'nope.tsv', and there is no such file"),
    ("curve nope --output x --config measure/translation.yaml", "RUN is 'nope', and there is no such folder"),
]


def test_a_line_and_its_mistakes_wait_for_nothing_that_takes_seconds(tmp_path: Path) -> None:
    code = (
        "import json, sys; from lsemrl.cli.first_look import first_look; from lsemrl.cli.main import main\n"
        "for config in ('sft', 'grpo'): first_look([f'--config={config}.yaml'])\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: main(words.split())\n"
        "    except SystemExit as end: print(end.code, file=sys.stderr)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    (tmp_path / "rows.jsonl").write_text('{"en": "a", "bo": "b"}\n', encoding="utf-8")
    (tmp_path / "none.yaml").write_text("model: null\n")
    typed = json.dumps([words for words, _ in LINES])  # one after the other, for each takes seconds to begin
    done = subprocess.run([sys.executable, "-c", code, typed], capture_output=True, text=True, cwd=tmp_path)
    told = done.stderr.splitlines()
    assert done.stdout.splitlines() == ["[]"], done.stderr
    assert told[1::2] == ["2"] * len(LINES), told
    for said, (_, sentence) in zip(told[::2], LINES, strict=True):
        assert sentence in said
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "none.yaml"}


def test_a_file_may_leave_out_what_stands_between_a_field_and_its_class(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    for within in ("{loss: {%s: 0.1}}", "{init_args: {loss: {%s: 0.1}}}"):
        overlay.write_text(f"model: {within % 'beta'}")
        first_look(["--config", str(CONFIGS / "grpo.yaml"), "--config", str(overlay)])
        overlay.write_text(f"model: {within % 'bta'}")
        with pytest.raises(ArgumentError, match="bta"):
            first_look(["--config", str(CONFIGS / "grpo.yaml"), "--config", str(overlay)])


def test_what_is_wrong_in_such_a_file_is_told_as_in_any(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    for within in ("{optimizer: {lr: %s}}", "{init_args: {optimizer: {lr: %s}}}"):
        for value, says in (
            ("abc", "model.optimizer.lr: Expected a float"),
            (".inf", "lr is inf; give a finite number"),
        ):
            overlay.write_text(f"model: {within % value}")
            assert says in refused("--config=grpo.yaml", f"--config={overlay}")
