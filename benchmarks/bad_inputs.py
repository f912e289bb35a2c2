"""Inputs that are wrong, and what the command line has to say about each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from bad_adapters import make_adapters
from bad_bases import make_bases
from bad_models import make_models
from sent_files import make_sent

from lsemrl.config_files import CONFIGS


@dataclass(frozen=True)
class Case:
    """A command that cannot work.

    Attributes:
        words: After the program's name; {names} stand for the files of `make_files`.
        says: What the sentence must contain.
    """

    words: tuple[str, ...]
    says: str


_QUICK = (
    "--trainer.accelerator=cpu",
    "--trainer.callbacks=null",
    "--trainer.default_root_dir={runs}",
)
_FEW = (
    "--data.micro={{train: 100, validation: 4, test: 4}}",
    "--data.splits.cold_start_count=50",
    "--trainer.val_check_interval=1",
)
"""Rows of the embedded world, where a case brings none of its own."""


def _fit(*words: str, says: str, config: str = "grpo.yaml") -> Case:
    few = () if any(word.startswith("--data.source.") for word in words) else _FEW
    return Case(("fit", "--config", str(CONFIGS / config), *_QUICK, *few, *words), says)


def _rows(name: str, says: str) -> Case:
    return _fit(f"--data.source.path={{{name}}}", says=says, config="sft.yaml")


def _carried(model: str, *words: str, says: str) -> Case:
    return _fit(f"--model.policy.model={{{model}}}", *words, says=says, config="sft.yaml")


def _judge(*words: str, says: str) -> Case:
    return Case(("judge", "a={one_row}", "b={one_row}", "--endpoint.model=m", *words), says)


CASES = (
    # The command line
    Case(("train",), "there is no verb 'train'"),
    Case(("fit", "--config", "{nowhere}"), "which cannot be read"),
    Case(("fit", "--config", "{empty}"), "which holds no fields"),
    Case(("fit", "--config", "{binary}"), "which is not YAML in UTF-8"),
    Case(("fit", "--config", "{broken_yaml}"), "which is not YAML"),
    Case(("fit", "--config", "{later}"), "config_version in"),
    Case(("fit", "--config", "{list_yaml}"), "which holds no fields"),
    _fit("--model.loss.bta=1", says="bta"),
    _fit("--trainer.max_stps=1", says="max_stps"),
    _fit("--model.loss.beta=much", says="model.loss.beta"),
    # Settings that cannot be
    _fit("--model.loss.beta=-1", says="beta is -1"),
    _fit("--model.loss.epsilon=0", says="epsilon is 0"),
    _fit("--model.loss.loss_type=ppo", says="ppo"),
    _fit("--model.sampling.num_generations=1", says="num_generations is 1"),
    _fit("--model.sampling.temperature=0", says="temperature is 0"),
    _fit("--model.sampling.top_p=0", says="top_p is 0"),
    _fit("--model.sampling.max_new_tokens=0", says="max_new_tokens is 0"),
    _fit("--model.optimizer.lr=0", says="lr is 0"),
    _fit(
        "--model.optimizer.lr=1e10",
        "--model.optimizer.warmup_ratio=0",
        "--trainer.max_steps=6",
        "--data.batch_size=2",
        says="the policy's logits are not finite: its weights have run away",
    ),
    _fit("--model.optimizer.lr=1e300", says="optimizer.lr is 1e+300; it must be above 0 and at most 1e30"),
    _fit("--model.optimizer.lr=1e400", says="model.optimizer.lr is inf"),
    _fit("--model.optimizer.weight_decay=.nan", says="model.optimizer.weight_decay is nan"),
    _fit("--model.optimizer.betas=[0.9, 1.0]", says="optimizer.betas is"),
    _fit("--model.sampling.temperature=.inf", says="model.sampling.temperature is inf"),
    _fit("--model.rewards.language.weight=.nan", says="model.rewards.language.weight is nan"),
    _fit("--model.loss.delta=.inf", says="model.loss.delta is inf"),
    _fit("--trainer.gradient_clip_val=.nan", says="trainer.gradient_clip_val is nan"),
    _fit("--model.combine=normalize_then_sum", "--model.advantages.scale_rewards=none", says="scale_rewards is none"),
    _fit("--model.optimizer.max_skipped_steps=0", says="max_skipped_steps is 0"),
    _fit("--model.optimizer_batch_size=5", says="optimizer_batch_size is 5"),
    _fit("--model.micro_batch_tokens=0", says="micro_batch_tokens is 0"),
    _fit("--trainer.precision=bf16-true", says="trainer.precision is bf16-true"),
    _fit(f"--config={CONFIGS / 'fsdp.yaml'}", "--trainer.devices=3", says="has data_parallel_size 2 and"),
    _fit("--trainer.devices=0", says="trainer: `Trainer(devices='0')` value is not a valid input"),
    _fit("--trainer.strategy=nonsense", says="trainer: You selected an invalid strategy name"),
    _fit("--trainer.accelerator=tpu", says="trainer: "),
    _fit("--trainer.limit_train_batches=2.5", says="trainer: You have passed invalid value 2.5"),
    _fit("--trainer.val_check_interval=100000", says="trainer.val_check_interval is 100000, but an epoch has"),
    _fit("--model.policy.flex_attention=true", "--trainer.accelerator=cpu", says="no backward pass on a CPU"),
    _fit("--model.num_iterations=0", says="num_iterations is 0"),
    _fit("--model.policy.reference=none", says="policy.reference is none"),
    _fit("--model.policy.adapter=null", "--model.policy.lora.rank=0", says="rank is 0"),
    _fit("--model.policy.train=full", says="policy.train is full"),
    _fit(
        "--model.policy.train=full",
        "--model.policy.dtype=bfloat16",
        says="policy.dtype is bfloat16, which rounds small steps away",
        config="sft.yaml",
    ),
    _fit("--model.combine=gate", "--model.gate=nothing", says="gate is 'nothing'"),
    _fit("--model.patience.timeout=0", says="timeout is 0"),
    _fit("--model.patience.retries=-1", says="retries is -1"),
    _fit("--checkpoints.every_n_steps=-1", says="every_n_steps is -1"),
    _fit("--checkpoints.keep=-1", says="keep is -1"),
    _fit("--checkpoints.monitor=reward", says="best-hacked"),
    _fit("--checkpoints.monitor=val/bleurt", says="checkpoints.monitor is 'val/bleurt', which validation does not"),
    _fit("--checkpoints.monitor=val/meaning", says="checkpoints.monitor is 'val/meaning', which validation does not"),
    _fit("--model.metrics.language=xx", says="metrics.language is 'xx'"),
    _fit("--model.metrics.names=[chrf]", "--model.metrics.language=tibetan", says="metrics.language is 'tibetan'"),
    _fit("--model.metrics.names=[comet]", says="comet"),
    _fit("--model.metrics.encoder={nowhere}", says="encoder is"),
    _fit("--trainer.max_epochs=-1", says="the run has no end"),
    # Models, adapters, encoders
    _fit("--model.policy.model={nowhere}", says="policy.model is"),
    _fit("--model.policy.model={folder}", says="policy.model is"),
    _fit("--model.policy.model={mt5}", says="an encoder-decoder (mt5)"),
    _fit("--model.policy.model={picture_model}", says="a vit model, of which transformers knows no causal language"),
    _fit("--model.policy.model={bert}", says="the weights of a BertForMaskedLM, which does not predict the next token"),
    _fit("--model.policy.model={mamba}", says="a mamba model, which keeps no cache of keys and values"),
    _fit("--model.policy.model={gptq}", says="whose weights are quantised (gptq)"),
    _fit("--model.policy.model={four_bits}", says="whose weights are quantised (bitsandbytes)"),
    _fit("--model.policy.model={own_code}", says="set policy.trust_remote_code to true if you trust it"),
    _fit("--model.policy.model={dynamic_positions}", says="30 positions"),
    _fit("--model.policy.model={other_shapes}", says="and needed as"),
    _fit("--model.policy.model={torn_weights}", says="which cannot be read as a causal language model"),
    _fit("--model.policy.model={pickled}", says="as pickle only (pytorch_model.bin), which can run code"),
    _fit("--model.policy.model={lacks_weights}", says="which lacks 3 weights of its Qwen3ForCausalLM"),
    _fit("--model.policy.model={lacks_a_shard}", says="model-00001-of-00002.safetensors"),
    _fit("--model.policy.adapter={nowhere}", says="policy.adapter is"),
    _fit("--model.policy.adapter={torn_adapter}", says="policy.adapter"),
    _fit("--model.policy.adapter={foreign_adapter}", says="policy.adapter"),
    _fit("--model.policy.adapter={pissa}", says="has init_lora_weights 'pissa', which begins by taking a part"),
    _fit("--model.policy.adapter={trained_biases}", says="has bias 'all', which trains the base model's own biases"),
    _fit("--model.policy.adapter={ia3}", says="is of peft_type 'IA3', and only LORA is read"),
    _fit("--model.policy.adapter={classifier}", says="is of task_type 'SEQ_CLS'"),
    _fit("--model.policy.adapter={newer_peft}", says="which this peft does not know (it was written by 9.9)"),
    _fit("--model.policy.adapter={no_such_layer}", says="Target modules {{'query'}} not found"),
    _fit("--model.policy.adapter={other_rank}", says="and its adapter_config.json says 4"),
    _fit("--model.policy.adapter={lacks_magnitudes}", says="tensors that its adapter_config.json says it has"),
    _fit("--model.policy.adapter={no_tensors}", says="tensors that its adapter_config.json says it has"),
    _fit("--model.policy.adapter={one_factor}", says="tensors that its adapter_config.json says it has"),
    _fit("--model.policy.adapter={one_layer}", says="tensors that its adapter_config.json says it has"),
    _fit("--model.policy.adapter={not_finite}", says="holds numbers that are not finite"),
    _fit("--model.policy.adapter={of_the_base}", says="holds 1 tensors that its adapter_config.json has no place for"),
    _fit("--model.policy.adapter={cut_short}", says="adapter_model.safetensors is damaged"),
    _fit("--model.policy.adapter={torn_passport}", says="lsemrl.json, which says what model it is of, is damaged"),
    _fit(
        "--model.policy.lora.target_modules=[q_proj,query]",
        says="target_modules names 'query', which no",
        config="sft.yaml",
    ),
    _fit(
        "--model.policy.lora.modules_to_save=[embed]",
        says="modules_to_save names 'embed', which no module",
        config="sft.yaml",
    ),
    _fit(
        "--model.policy.lora.trainable_token_indices=[99999]",
        says="trainable_token_indices names 99999",
        config="sft.yaml",
    ),
    _fit("--model.rewards.similarity.encoder={nowhere}", says="encoder is"),
    _fit("--model.rewards.similarity.encoder={folder}", says="is no SentenceTransformer folder"),
    _fit("--model.rewards.similarity.threshold=1.0", says="threshold (tau) is 1.0"),
    _fit("--model.rewards.language.language=xx", says="xx"),
    # Checkpoints
    _fit("--checkpoints.resume={nowhere}", says="is no checkpoint"),
    _fit("--checkpoints.resume={torn_checkpoint}", says="is damaged (state.json is not JSON)"),
    _fit("--checkpoints.resume={forged_checkpoint}", says="is damaged (state.json is not as it was written)"),
    _fit("--checkpoints.resume={pickle}", says="is no checkpoint"),
    # What carries the text
    _carried("drops_system", "--data.template.system=译者", says="leaves out template.system ('译者')"),
    _carried("drops_text", says="leaves out the instruction with its text"),
    _carried("broken_template", says="refuses the prompt"),
    _carried("failing_template", says="refuses the prompt"),
    _carried("endless_template", says="has not written a prompt after 10 seconds"),
    _carried("huge_template", says="writes over 1,000,000 characters"),
    _carried("thinks", "--data.template.enable_thinking=true", says="end inside a thought (<think>)"),
    _carried("few_positions", says="has 30 positions"),
    _carried("few_positions", "--model.max_new_tokens=16", "--data.micro.train=1", says="has 30 positions"),
    _carried("no_eos", says="has no EOS token"),
    _carried("more_tokens", says="has 1 tokens (such as '<bo>') beyond"),
    _carried("blind", says="has no token for 100.0% of the letters of references"),
    # Rows
    _fit("--data.source.path={nowhere}.jsonl", says="there is no such file", config="sft.yaml"),
    _rows("empty_rows", "is empty"),
    _rows("binary_rows", "binary.jsonl:1"),
    _rows("no_target", "bo"),
    _rows("not_json", "not_json.jsonl:2"),
    _rows("list_rows", "list.jsonl:1"),
    _rows("blank", "blank.jsonl:1"),
    _rows("number", "number.jsonl:1"),
    _rows("header_only", "header.csv"),
    _rows("unknown_kind", "rows.xyz"),
    _rows("one_row", "batch_size"),
    _rows("pipe", "it is a pipe, not a file"),
    _rows("packed", "packed by gzip"),
    _rows("utf16", "UTF-16"),
    _rows("deep", "deep.jsonl:1: is nested too deep"),
    _rows("twice", "has the field 'zh' twice"),
    _rows("turns", "'messages.user', 'messages.assistant'"),
    _rows("torn_parquet", "cannot be read as Parquet"),
    _fit(
        "--data.source.path={one_row}",
        "--data.source.on_bad_row=skip",
        "--data.source.skipped_path={one_row}",
        says="which is the data itself",
        config="sft.yaml",
    ),
    _fit("--seed_everything=-1", says="seed_everything is -1"),
    _fit("--data.seed=1099511627776", says="data.seed is 1099511627776"),
    _fit("--model.rewards.mine.class_path=nowhere_at_all.Mine", says="there is no module 'nowhere_at_all'"),
    Case(("fit", "--config", "{pipe}"), "it is a pipe, not a file"),
    Case(("fit", "--config", "{laughs}"), "repeats its parts"),
    Case(("fit", "--config", "{endless}"), "nested without end"),
    Case(("fit", "--config", "{field_twice}"), "a second time"),
    _fit("--data.batch_size=0", says="batch_size is 0"),
    _fit("--data.batch_size=100000", says="batch_size is 100000"),
    _fit("--data.micro.train=0", says="micro.train is 0"),
    _fit("--data.source_field=nothing", says="nothing"),
    _fit("--data.splits.part=middle", says="middle"),
    # Where it writes
    _fit("--trainer.default_root_dir={file}/runs", says="cannot be written to"),
    Case(
        ("predict", "--config", str(CONFIGS / "sft.yaml"), *_QUICK, "--trainer.default_root_dir={file}/runs"),
        "cannot be written to",
    ),
    Case(
        ("best-of", "--config", str(CONFIGS / "grpo.yaml"), *_QUICK, "--trainer.default_root_dir={file}/runs"),
        "cannot be written to",
    ),
    Case(("fit-reward", "--config", str(CONFIGS / "reward.yaml"), "--output={file}/reward"), "cannot be written to"),
    Case(("demo", "--output={file}/demo"), "--output is"),
    # Other verbs
    Case(("measure", "--config", str(CONFIGS / "measure" / "translation.yaml"), "--arm", "x"), "output"),
    Case(("tax", "{nowhere}", "--output", "{runs}"), "nowhere"),
    Case(("tax", "{folder}", "--output", "{runs}"), "folder"),
    Case(("judge", "a={nowhere}", "b={nowhere}", "--oracle"), "nowhere"),
    Case(("judge", "a={not_json}", "b={not_json}", "--oracle"), "not_json.jsonl"),
    Case(("generate", "{nowhere}"), "which holds no finished run"),
    Case(("export", "{folder}", "--output", "{runs}"), "which holds no finished run"),
    Case(("experiment", "--config", "{nowhere}"), "nowhere"),
    Case(("experiment", "--config", "{broken_yaml}"), "broken.yaml"),
    Case(("experiment", "--config", "{later}"), "later.yaml"),
    Case(("fit-reward", "--config", "{nowhere}", "--output", "{runs}"), "nowhere"),
    Case(("best-of", "--config", str(CONFIGS / "sft.yaml")), "give lsemrl.modules.grpo.GRPO"),
    Case(("report", "{nowhere}"), "nowhere"),
    # What strangers send
    Case(("generate", "{class_run}"), "data names the class 'evil.Evil'"),
    Case(("export", "{class_run}", "--output", "{runs}"), "data names the class 'evil.Evil'"),
    Case(("generate", "{word_run}"), "data.splits is 'evil.Evil'"),
    Case(("generate", "{policy_run}"), "policy is"),
    Case(("generate", "{linked_run}"), "in which 'chat_template.jinja' leads out of it"),
    Case(("generate", "{recursive_run}"), "whose config.yaml cannot be read"),
    _fit("--model.policy.adapter={pickled_adapter}", says="adapter_model.safetensors"),
    _fit("--model.policy.adapter={megatron_adapter}", says="megatron"),
    _fit("--model.policy.model={kernel_model}", "--model.policy.adapter=null", says="code from a hub"),
    Case(("report", "{kinds_report}"), "created is '5'"),
    Case(("tax", "{kinds_measurement}", "--output", "{runs}"), "measurement.json cannot be read"),
    _judge("--endpoint.base_url=http://host\r\nX-Injected: 1", says="endpoint.base_url is"),
    _judge("--endpoint.base_url=http://host:99999/v1", says="endpoint.base_url is"),
    _judge("--endpoint.base_url=http://user:secret@host/v1", says="holds a user name or a query"),
    Case(("judge", "../a={one_row}", "b={one_row}", "--oracle"), "an arm is given as"),
    Case(("\x1b]0;title\x07",), r"there is no verb '\x1b]0;title\x07'"),
)

_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))


def make_files(folder: Path) -> dict[str, str]:
    """Write the files that `CASES` name into `folder`."""
    row = json.dumps({"id": "1", "zh": "老师买了书。", "bo": "དགེ་རྒན་གྱིས་དེབ་ཉོས།"}, ensure_ascii=False)
    files: dict[str, tuple[str, bytes]] = {
        "empty": ("empty.yaml", b""),
        "binary": ("binary.yaml", b"seed_everything: \xff\xfe\n"),
        "broken_yaml": ("broken.yaml", b"seed_everything: [1\n"),
        "list_yaml": ("list.yaml", b"- one\n- two\n"),
        "later": ("later.yaml", b"config_version: 99\n"),
        "empty_rows": ("empty.jsonl", b""),
        "binary_rows": ("binary.jsonl", b'{"id": "1", "zh": "\xff", "bo": "b"}\n'),
        "no_target": ("no_target.jsonl", b'{"id": "1", "zh": "a"}\n'),
        "not_json": ("not_json.jsonl", (row + "\nnot json\n").encode()),
        "list_rows": ("list.jsonl", b"[1, 2]\n"),
        "blank": ("blank.jsonl", b'{"id": "1", "zh": " ", "bo": "b"}\n'),
        "number": ("number.jsonl", b'{"id": "1", "zh": 5, "bo": "b"}\n'),
        "header_only": ("header.csv", b"id,zh,bo\n"),
        "unknown_kind": ("rows.xyz", b"a\n"),
        "one_row": ("one.jsonl", (row + "\n").encode()),
        "packed": ("packed.jsonl", b"\x1f\x8b\x08\0"),
        "utf16": ("utf16.jsonl", (row + "\n").encode("utf-16")),
        "deep": ("deep.jsonl", b'{"zh": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n"),
        "twice": ("twice.jsonl", b'{"zh": "a", "bo": "b", "zh": "c"}\n'),
        "turns": ("turns.jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}\n'),
        "torn_parquet": ("torn.parquet", b"PAR1" + b"\0" * 20 + b"PAR1"),
        "laughs": ("laughs.yaml", _LAUGHS.encode()),
        "endless": ("endless.yaml", b"a: &a [*a]\n"),
        "field_twice": ("field_twice.yaml", b"seed_everything: 1\nseed_everything: 2\n"),
        "file": ("file", b""),
        "pickle": ("last.ckpt", b"\x80\x04K\x01."),
    }
    paths = {name: folder / path for name, (path, _) in files.items()}
    for name, (_, body) in files.items():
        paths[name].write_bytes(body)
    for name in ("folder", "torn_adapter", "foreign_adapter", "torn_checkpoint", "forged_checkpoint"):
        paths[name] = folder / name
        paths[name].mkdir()
    (paths["torn_adapter"] / "adapter_config.json").write_text("{")
    (paths["foreign_adapter"] / "adapter_config.json").write_text("{}")
    (paths["torn_checkpoint"] / "state.json").write_text('{"format": 1, "rollout_')
    (paths["forged_checkpoint"] / "state.json").write_text('{"format": 1, "files": {}, "checksum": "0"}')
    paths |= make_models(folder) | make_bases(folder / "bases") | make_sent(folder / "sent") | make_adapters(folder)
    paths["pipe"] = folder / "pipe.jsonl"
    os.mkfifo(paths["pipe"])
    paths["nowhere"], paths["runs"] = folder / "nowhere", folder / "runs"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return {name: str(path) for name, path in paths.items()}
