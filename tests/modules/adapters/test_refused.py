"""What is not known to be read as peft reads it is refused with the true reason, before it changes a number."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lsemrl.errors import UserError
from lsemrl.modules.adapters.config import read_config
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import LoraSettings
from modules.adapters.kinds import EVERY, edit, read, save_adapter
from tiny import make_policy, save_tiny_model


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "copied"))


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_2", "olora"])
def test_what_takes_a_part_out_of_the_base_is_refused_as_peft_writes_it(
    begun: str, tiny_model: str, tmp_path: Path
) -> None:
    save_adapter(tiny_model, tmp_path, init_lora_weights=begun)
    with pytest.raises(
        UserError, match=f"has init_lora_weights '{begun}', which begins by taking a part out of the base"
    ):
        read(tiny_model, tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_what_trains_the_bases_biases_is_refused_as_peft_writes_it(bias: str, tiny_model: str, tmp_path: Path) -> None:
    save_adapter(tiny_model, tmp_path, bias=bias)
    with pytest.raises(UserError, match=f"has bias '{bias}', which trains the base model's own biases"):
        read(tiny_model, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.VeraConfig(target_modules=["q_proj"], r=4),
        peft.LoHaConfig(target_modules=["q_proj"], r=4),
        peft.LoKrConfig(target_modules=["q_proj"], r=4),
        peft.OFTConfig(target_modules=["q_proj"], oft_block_size=8),
        peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9),
        peft.PromptTuningConfig(num_virtual_tokens=3),
        peft.TrainableTokensConfig(token_indices=[3, 4]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_kinds_are_refused_by_their_names(config: Any, tiny_model: str, tmp_path: Path) -> None:
    config.task_type = "CAUSAL_LM"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"is of peft_type '{config.peft_type.value}', and only LORA is read"):
        read(tiny_model, tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"init_lora_weights": "corda"}, "has init_lora_weights 'corda', which begins by taking a part"),
        ({"init_lora_weights": "loftq"}, "has init_lora_weights 'loftq', which begins by taking a part"),
        ({"init_lora_weights": "lora_ga"}, "has init_lora_weights 'lora_ga', which begins by taking"),
        ({"init_lora_weights": "mica"}, "has init_lora_weights 'mica', of which it is not proven"),
        ({"init_lora_weights": ["pissa"]}, "has init_lora_weights"),
        ({"alora_invocation_tokens": [1, 2]}, "has alora_invocation_tokens [1, 2], which works only behind the tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication [[0, 2], [1, 2]], which stacks the base"),
        ({"revision": "v1"}, "is of revision 'v1' of its base, and a base is read from its main branch; put that"),
        ({"megatron_config": {"a": 1}}, "has megatron_config {'a': 1}, which is for the layers of Megatron"),
        ({"use_qalora": True}, "has use_qalora True, which is for quantised models"),
        ({"arrow_config": {"top_k": 2}}, "has arrow_config {'top_k': 2}, which is not known to be read as"),
        ({"use_newest_trick": True, "peft_version": "9.9"}, "has use_newest_trick True, which this peft does not"),
        ({"task_type": "SEQ_CLS"}, "is of task_type 'SEQ_CLS', not of a causal language model"),
        ({"peft_type": None}, "is of peft_type None, and only LORA is read"),
        ({"peft_type": "NEWEST"}, "is of peft_type 'NEWEST', and only LORA is read"),
        ({"target_modules": ["query"]}, "does not fit policy.model: Target modules {'query'} not found"),
        ({"target_modules": "("}, "does not fit policy.model"),
        ({"r": 0}, "does not fit policy.model: `r` should be a positive integer"),
        ({"r": "four"}, "does not fit policy.model"),
        ({"r": 8}, "of rank 4, and its adapter_config.json says 8"),
        ({"rank_pattern": {"v_proj": 2}}, "of rank 4, and its adapter_config.json says 2"),
        ({"target_modules": ["q_proj"]}, "tensors that its adapter_config.json has no place for"),
        ({"layers_to_transform": [0]}, "tensors that its adapter_config.json has no place for"),
        ({"target_modules": [*EVERY, "lm_head"]}, "lacks 2 of the 30 tensors that its adapter_config.json says it has"),
        ({"use_dora": True}, "lacks 14 of the 42 tensors"),
        ({"lora_bias": True}, "lacks 14 of the 42 tensors"),
        ({"modules_to_save": ["embed_tokens"]}, "lacks 1 of the 29 tensors"),
        ({"modules_to_save": ["mlp"]}, "lacks 6 of the 22 tensors"),
        ({"trainable_token_indices": [3, 4]}, "lacks 1 of the 29 tensors"),
        ({"trainable_token_indices": [3, 10**6]}, "those of the new tokens were not saved"),
        ({"trainable_token_indices": [-1]}, "has trainable_token_indices with -1, which is no list of tokens"),
        ({"trainable_token_indices": {"embed_tokens": ["a"]}}, "has trainable_token_indices with 'a'"),
        ({"trainable_token_indices": 3}, "has trainable_token_indices with 3"),
        ({"layers_pattern": "layers"}, "is refused by peft (When `layers_pattern` is specified"),
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_is_refused_by_the_field(
    fields: dict[str, Any], reason: str, copied: Path, tiny_model: str
) -> None:
    with pytest.raises(UserError, match=re.escape(reason)) as told:
        read(tiny_model, edit(copied, **fields))
    assert "\n" not in str(told.value) and "; " in str(told.value)


def test_factors_of_embeddings_that_are_kept_tied_are_refused(tiny_model: str, tmp_path: Path) -> None:
    save_adapter(tiny_model, tmp_path, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(UserError, match="ties factors of embeddings to those of the head"):
        read(tiny_model, tmp_path)


def test_an_adapter_that_takes_no_copy_of_itself_is_refused_as_its_own_reference(
    tiny_model: str, tmp_path: Path
) -> None:
    save_adapter(tiny_model, tmp_path, target_modules=["q_proj", "lm_head"], trainable_token_indices=[3, 5])
    with pytest.raises(UserError, match=r"policy\.reference is initial, and peft puts no copy of this adapter"):
        read(tiny_model, tmp_path)
    assert read(tiny_model, tmp_path, reference="base").adapted


UP = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


def drop(keep: Callable[[str], bool]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if keep(key)}


def with_value(value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[min(tensors)][0, 0] = value
        return tensors

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tensors: {}, "lacks 28 of the 28 tensors"),
        (drop(lambda key: "lora_A" in key), "lacks 14 of the 28 tensors"),
        (drop(lambda key: "layers.0" in key), "lacks 14 of the 28 tensors"),
        (drop(lambda key: "layers.1.mlp.up_proj.lora_B" not in key), "lacks 1 of the 28 tensors .* such as .*up_proj"),
        (lambda tensors: tensors | {UP.replace("0", "7"): torch.ones(4, 32)},
         "holds 1 tensors that its adapter_config.json has no place for in policy.model, such as .*layers.7"),
        (lambda tensors: tensors | {"base_model.model.model.norm.weight": torch.ones(32)},
         "holds 1 tensors .* such as base_model.model.model.norm.weight"),
        (lambda tensors: tensors | {UP.replace("lora_A", "base_layer"): torch.ones(64, 32)},
         "holds 1 tensors .* such as .*up_proj.base_layer.weight"),
        (with_value(float("nan")), "holds numbers that are not finite, in .* and 0 other tensors"),
        (with_value(float("inf")), "holds numbers that are not finite"),
        (lambda tensors: {key: value.int() for key, value in tensors.items()}, "holds numbers that are not finite"),
        (lambda tensors: {key: value[:2] for key, value in tensors.items()}, "of rank 2, and its adapter_config"),
        (lambda tensors: {key: value.T.contiguous() for key, value in tensors.items()}, "another base model"),
        (lambda tensors: {key: value[0] for key, value in tensors.items()}, "belongs to another base model"),
    ],
)  # fmt: skip
def test_tensors_are_exactly_those_that_the_configuration_implies(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str, copied: Path, tiny_model: str
) -> None:
    path = copied / "adapter_model.safetensors"
    save_file(spoil(load_file(path)), path)
    with pytest.raises(UserError, match=reason):
        read(tiny_model, copied)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", b'{"peft_type": "LO', "adapter_config.json is damaged"),
        ("adapter_config.json", b"[]", "adapter_config.json is damaged (it is no JSON object)"),
        ("adapter_config.json", b"\xff\xfe{}", "adapter_config.json is damaged"),
        ("adapter_config.json", b"[" * 100_000, "adapter_config.json is damaged"),
        ("adapter_config.json", b"", "adapter_config.json is damaged"),
        ("adapter_model.safetensors", b"", "adapter_model.safetensors is damaged"),
        ("adapter_model.safetensors", b"\xff" * 100, "adapter_model.safetensors is damaged"),
        ("lsemrl.json", b'{"base": "mi', "lsemrl.json, which says what model it is of, is damaged"),
        ("lsemrl.json", b"{}", "lsemrl.json, which says what model it is of, is damaged"),
        ("lsemrl.json", b"[]", "lsemrl.json, which says what model it is of, is damaged"),
        ("lsemrl.json", b"\xff", "lsemrl.json, which says what model it is of, is damaged"),
        ("tokenizer_config.json", b"{", "cannot be read"),
    ],
)
def test_a_torn_file_is_named(name: str, content: bytes, reason: str, copied: Path, tiny_model: str) -> None:
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(reason)):
        read(tiny_model, copied)


def test_a_cut_file_is_named(copied: Path, tiny_model: str) -> None:
    os.truncate(copied / "adapter_model.safetensors", 3000)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        read(tiny_model, copied)
    (copied / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        read(tiny_model, copied)


def test_a_wider_base_is_named_as_such(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"belongs to another base model: .* needs \[4, 128\]; set policy\.model"):
        read(str(save_tiny_model(tmp_path, hidden=64)), adapter)


def test_what_only_says_how_it_was_drawn_is_no_reason(copied: Path, tiny_model: str) -> None:
    for begun in (True, False, "gaussian", "orthogonal", "eva"):
        assert read_config(edit(copied, init_lora_weights=begun)).r == 4
    assert read_config(edit(copied, init_lora_weights=True, use_newest_trick=None, merge_weights=False)).r == 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"target_modules": ["q_proj", "query"]}, "target_modules names 'query', which no module of policy.model is"),
        ({"modules_to_save": ["embed"]}, "modules_to_save names 'embed', which no module of policy.model is called"),
        ({"trainable_token_indices": [10**6]}, "trainable_token_indices names 1000000, and policy.model has"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices holds a negative number"),
    ],
)
def test_a_new_adapter_says_what_it_does_not_find(settings: dict[str, Any], reason: str, tiny_model: str) -> None:
    with pytest.raises(UserError, match=rf"^policy\.lora\.{re.escape(reason)}"):
        make_policy(tiny_model, lora=LoraSettings(rank=2, **settings))


def test_its_passport_is_read(tiny_model: str, copied: Path) -> None:
    passport = {"format": 2, "base": "another/model", "base_fingerprint": "0" * 16}
    (copied / "lsemrl.json").write_text(json.dumps(passport))
    with pytest.raises(UserError, match=r"was trained on another base model \(another/model\)"):
        read(tiny_model, copied)


def test_a_passport_of_an_earlier_lsemrl_is_not_taken_for_that_of_another_model(tiny_model: str, copied: Path) -> None:
    earlier = {"base": tiny_model, "base_fingerprint": "0" * 16}
    (copied / "lsemrl.json").write_text(json.dumps(earlier))
    with pytest.raises(UserError, match=r"of format 1, and this lsemrl .* which it was trained on, delete that file"):
        read(tiny_model, copied)
    (copied / "lsemrl.json").unlink()
    read(tiny_model, copied)


@pytest.mark.parametrize(
    ("field", "then", "now"),
    [
        ("alpha", 8.0, 80.0),
        ("trainable_token_indices", [3, 5], [5, 3]),  # whose rows lie in their order
        ("target_modules", ["q_proj"], ["k_proj"]),
    ],
)
def test_what_was_written_of_another_adapter_is_not_read_into_this_one(
    field: str, then: Any, now: Any, tiny_model: str, tmp_path: Path
) -> None:
    def made(value: Any) -> Policy:
        return make_policy(tiny_model, lora=LoraSettings(**{"rank": 4, "alpha": 8.0, "dropout": 0.1, field: value}))

    made(then).save(tmp_path)
    with pytest.raises(UserError) as told:
        made(now).read(tmp_path)
    other_names = field == "target_modules"
    assert ("does not hold this policy's trained weights" in str(told.value)) == other_names
    assert (f"policy.lora.{field}, or that of policy.adapter, is {now}, and " in str(told.value)) != other_names
    same = make_policy(tiny_model, lora=LoraSettings(**{"rank": 4, "alpha": 8.0, "dropout": 0.3, field: then}))
    assert same.read(tmp_path).keys() == same.trained().keys()
