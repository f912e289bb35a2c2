"""The presets for Qwen3-4B, through the command line, on a Qwen3 and an XLM-R of their shape that fit into a test.

The models lie where the presets look for them, in the format of the hub: Qwen/Qwen3-4B and hfl/cino-base-v2.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from lsemrl.cli.main import main
from lsemrl.config_files import CONFIGS
from lsemrl.experiment.read import read_experiment
from lsemrl.micro import corpus
from lsemrl.modules.adapters.config import new_config
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings, PolicySettings
from matrix import slow_but

PAPER = CONFIGS / "paper"
OVERLAY = PAPER / "qwen3_4b.yaml"
EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# What a machine without a GPU, and a test, cannot afford; the rest is the preset's.
SMALL = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.policy.dtype=float32"]
SMALL += ["--trainer.max_steps=1", "--trainer.callbacks=null", "--trainer.enable_progress_bar=false"]
SMALL += ["--trainer.limit_val_batches=0", "--data.splits.cold_start_count=16", "--data.batch_size=4"]


def qwen3_4b(**changes: object) -> Qwen3Config:
    """The configuration that Qwen3-4B is published with."""
    settings: dict[str, object] = {
        "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000},
    }  # fmt: skip
    return Qwen3Config(**settings | changes)  # type: ignore[arg-type]


def train_tokenizer(kind: str, texts: list[str], special: list[str], size: int) -> Tokenizer:
    if kind == "bpe":  # of bytes, as Qwen's
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer: trainers.Trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    backend.train_from_iterator(texts, trainer)
    return backend


def write_jsonl(path: Path, rows: list[corpus.Record]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_cmrc(path: Path, count: int) -> None:
    """In CMRC 2018's own nesting."""
    data = [
        {"paragraphs": [{"context": row["context"], "qas": [{key: row[key] for key in ("id", "question", "answers")}]}]}
        for row in corpus.comprehension("test" if "dev" in path.name else "train", count, seed=0)
    ]
    path.write_text(json.dumps({"version": "v1.0", "data": data}, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with models and data under the presets' names; the current one."""
    home = tmp_path_factory.mktemp("home")
    pairs, headlines = corpus.translation("train", 240, seed=0), corpus.headline("train", 120, seed=0)
    (home / "data").mkdir()
    write_jsonl(home / "data" / "pairs.jsonl", pairs)
    write_jsonl(home / "data" / "headlines.jsonl", headlines)
    write_cmrc(home / "data" / "cmrc2018_train.json", 8)
    write_cmrc(home / "data" / "cmrc2018_dev.json", 8)
    text = [str(row["text"]) for row in corpus.chinese_text("test", 4, seed=0)]
    (home / "data" / "chinese.txt").write_text("\n".join(text), encoding="utf-8")

    texts = [str(row[key]) for row in pairs for key in ("zh", "bo")]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer("bpe", texts, special, 600),
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT,
    )  # fmt: skip
    torch.manual_seed(0)
    shrunken = qwen3_4b(
        vocab_size=len(tokenizer) + 24,  # as Qwen's, whose head has rows that no token has
        hidden_size=40, intermediate_size=152, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, eos_token_id=2, bos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    model = Qwen3ForCausalLM(shrunken)
    # As published: sampling of its own, which must play no part, and two ids that end a text.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[2, 0], pad_token_id=0
    )
    for each in (model, tokenizer):
        each.save_pretrained(home / "Qwen" / "Qwen3-4B")

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer("unigram", texts, special, 500),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip
    cino = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    for each in (XLMRobertaModel(cino), tokenizer):
        each.save_pretrained(home / "hfl" / "cino-base-v2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        yield home


def preset(verb: str, *names: str) -> list[str]:
    return [verb, *(word for name in names for word in ("--config", str(PAPER / name)))]


def metrics(folder: Path) -> dict[str, float]:
    (row,) = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return {name: float(value) for name, value in row.items() if value}


@pytest.fixture(scope="module")
def encoder(home: Path) -> Path:
    quick = ["--train.device=cpu", "--train.batch_size=16", "--held_out=8", f"--grpo={PAPER / 'grpo.yaml'}"]
    main([*preset("fit-reward", "reward.yaml"), *quick, "--data.splits.cold_start_count=16"])
    return home / "runs" / "paper" / "reward"


@pytest.fixture(scope="module")
def cold_start(home: Path) -> Path:
    main([*preset("fit", "sft.yaml"), *SMALL, "--data.splits.part=cold_start"])
    return home / "runs" / "paper" / "sft" / "version_0"


def test_the_encoder_reads_as_the_paper_says_and_its_overlay_fits_the_preset(encoder: Path) -> None:
    assert SentenceTransformer(str(encoder / "encoder"), device="cpu").max_seq_length == 128
    assert json.loads((encoder / "calibration.json").read_text())["encoder"] == "hfl/cino-base-v2"
    parts = yaml.safe_load((encoder / "reward.yaml").read_text())["model"]["init_args"]["rewards"]
    assert {name: part["init_args"]["weight"] for name, part in parts.items()} == {"similarity": 1.5, "language": 1.0}


def test_the_cold_start_adapts_the_linears_of_attention_and_mlp(cold_start: Path) -> None:
    adapter = json.loads((cold_start / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 128, 0.05)
    assert {name.rsplit(".", 1)[-1] for name in adapter["target_modules"]} == LINEARS
    assert adapter["base_model_name_or_path"] == "Qwen/Qwen3-4B"
    assert math.isfinite(metrics(cold_start)["loss"]) and metrics(cold_start)["grad_norm"] > 0


def test_prompts_are_chats_without_thinking_and_both_ends_count(home: Path) -> None:
    from lsemrl.data.prompts import PromptTemplate

    policy = Policy(PolicySettings(model="Qwen/Qwen3-4B", train="full", reference="none"))
    policy.load()
    assert policy.eos_ids() == [0, 2]
    for name in ("sft.yaml", "grpo.yaml"):
        content = yaml.safe_load((PAPER / name).read_text(encoding="utf-8"))
        template = PromptTemplate(template="翻译成藏文：{source}", **content["data"]["init_args"]["template"])
        prompt = template.render(policy.tokenizer, {"source": "狗"})
        assert prompt == "<|im_start|>user\n翻译成藏文：狗<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert policy.tokenizer(prompt)["input_ids"][0] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
def test_grpo_steps_from_the_cold_start_and_is_measured(cold_start: Path, encoder: Path, home: Path) -> None:
    adapter = f"--model.policy.adapter={cold_start / 'adapter'}"
    short = "--model.sampling.max_new_tokens=32"  # a random model never ends
    main([*preset("fit", "grpo.yaml"), "--config", str(encoder / "reward.yaml"), *SMALL, short, adapter])
    folder = home / "runs" / "paper" / "grpo" / "version_0"
    found = metrics(folder)
    assert all(math.isfinite(found[name]) for name in ("loss", "reward", "kl", "grad_norm"))
    assert 0 < found["completions/mean_length"] <= 32
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 64
    base = ["--policy.dtype=float32", "--device=cpu", "--max_new_tokens=16"]
    few = ["--target_rows=4", "--general_rows=4", "--target.init_args.splits.cold_start_count=16"]
    for output, words in (("base", []), ("rl", ["--arm=rl", f"--policy.adapter={folder / 'adapter'}"])):
        main([*preset("measure", "measure_translation.yaml"), *base, *few, *words, f"--output=measured/{output}"])
    main(["tax", "measured", "--output", "tax"])
    report = json.loads((home / "tax" / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["base", "rl"]


@pytest.mark.slow
def test_headlines_and_replay_step(encoder: Path, home: Path) -> None:
    rewards = ["--config", str(encoder / "reward.yaml")]
    # A random model never ends: shorter outputs, so that the test does.
    short = "--model.sampling.max_new_tokens=8"
    main(
        [*preset("fit", "grpo.yaml", "headline.yaml"), *rewards, *SMALL, short, "--trainer.default_root_dir=headlines"]
    )
    assert math.isfinite(metrics(home / "headlines" / "version_0")["loss"])
    words = [word for word in SMALL if not word.startswith("--data.")]
    main(
        [
            *preset("fit", "sft.yaml", "replay.yaml"),
            *words,
            "--data.main.batch_size=4",
            "--trainer.default_root_dir=replay",
        ]
    )
    assert math.isfinite(metrics(home / "replay" / "version_0")["loss"])


@pytest.mark.parametrize("path", slow_but(EXPERIMENTS, EXPERIMENTS[:1]), ids=lambda path: path.stem)
def test_the_overlay_fits_every_experiment(path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = read_experiment(path, CONFIGS, overlay=OVERLAY)
    assert experiment.output == Path(f"runs/experiment/{path.stem}_qwen3_4b")
    assert experiment.name == f"{path.stem}_qwen3_4b"
    assert not any(report.judge for report in experiment.reports)
    for stage in experiment.stages:
        assert all(file.is_relative_to(PAPER) for file in stage.configs)
        assert "micro" not in json.dumps([dict(stage.overrides)])
        # No rate or length of the embedded world: its rates would ruin a model of this size.
        assert stage.overrides.get("model.optimizer.lr", 0.0) <= 2e-5
        assert stage.verb != "fit" or stage.overrides["trainer.max_steps"] in (-1, 20, 60, 150)
    runs = [run for run in experiment.runs() if run.seed == 1]
    for verb in ("fit", "measure", "best-of"):
        longest = max((run for run in runs if run.stage.verb == verb), key=lambda run: len(run.command), default=None)
        if longest is None:
            continue
        with pytest.raises(SystemExit) as exit_:
            main([*longest.command, "--print_config"])
        assert exit_.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        policy = config["policy"] if verb == "measure" else config["model"]["init_args"]["policy"]
        assert policy["model"] == "Qwen/Qwen3-4B" and policy["dtype"] == "bfloat16"


def test_all_of_the_overlay_fits_some_experiment() -> None:
    unused = (set(read_experiment(path, CONFIGS, overlay=OVERLAY).unused) for path in EXPERIMENTS)
    assert not set.intersection(*unused)


def test_the_paper_s_lengths_and_rates_reach_the_stages() -> None:
    def overrides(experiment: str, stage: str) -> dict[str, object]:
        stages = read_experiment(CONFIGS / "experiment" / f"{experiment}.yaml", CONFIGS, overlay=OVERLAY).stages
        return dict(next(one for one in stages if one.name == stage).overrides)

    for experiment, name, epochs, rate in (
        ("main", "zh_bo_cold_start", 2, 2e-5),
        ("main", "headline_cold_start", 2, 2e-5),
        ("main", "zh_bo_rl", 1, None),  # the preset's own 5e-7
        ("tradeoff", "sft", 2, 2e-5),
        ("tradeoff", "rl_strong_kl", 1, None),
    ):
        found = overrides(experiment, name)
        assert (found["trainer.max_steps"], found["trainer.max_epochs"]) == (-1, epochs)
        assert found.get("model.optimizer.lr") == rate
    assert overrides("tradeoff", "rl_strong_kl")["model.loss.beta"] == 0.1
    assert overrides("few_shot", "from_rl")["data.splits.max_rows"] == 1000
    assert yaml.safe_load((PAPER / "grpo.yaml").read_text())["model"]["init_args"]["optimizer"]["lr"] == 5e-7


def test_the_real_architecture_takes_the_paper_s_adapters() -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(qwen3_4b())
        model.tie_weights()  # which transformers 5.0 leaves undone on a meta device
        assert sum(weight.numel() for weight in model.parameters()) == 4_022_468_096
        adapted = get_peft_model(model, new_config(LoraSettings()))
    assert isinstance(adapted, PeftModel)
    per_layer = 2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert trained == 36 * 64 * per_layer
