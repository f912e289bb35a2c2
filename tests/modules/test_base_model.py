"""What is no whole causal language model is refused with the true reason, most before weights are read."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from lsemrl import micro
from lsemrl.errors import UserError
from lsemrl.modules.base_model import read_config
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.rewards.encoder import frozen_encoder
from lsemrl.rewards.fit import load_encoder
from lsemrl.rewards.fit_settings import EncoderTraining

OWN_CODE = {
    "configuration_my.py": (
        "from transformers import LlamaConfig\nclass MyConfig(LlamaConfig):\n    model_type = 'my'\n"
    ),
    "modeling_my.py": (
        "from transformers import LlamaForCausalLM\nfrom .configuration_my import MyConfig\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    ),
}


@pytest.fixture
def model(tiny_model: str, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, *, reading: bool = False, **settings: Any) -> str:
    """The sentence, before weights are read unless `reading`."""
    with pytest.raises(UserError, match=r"^policy\.model is ") as found:
        policy = Policy(PolicySettings(model=str(folder), **settings))
        if reading:
            policy.load()
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mt5", "an encoder-decoder (mt5)"),
        ("t5", "an encoder-decoder (t5)"),
        ("m2m_100", "an encoder-decoder (m2m_100)"),
        ("bart", "an encoder-decoder (bart)"),
        ("vit", "a vit model, of which transformers knows no causal language model"),
        ("clip", "a clip model, of which"),
        ("rwkv", "a rwkv model, which keeps no cache of keys and values"),
        ("openai-gpt", "keeps no cache of keys and values"),
    ],
)
def test_other_kinds_of_models_are_refused(kind: str, reason: str, model: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(model)
    assert reason in refused(model)


def test_a_model_with_an_adapter_in_its_folder_is_refused(model: Path) -> None:
    """Which would be the base, or be taken for it."""
    shutil.copytree(micro.COLD_START, model, dirs_exist_ok=True)
    assert "holds an adapter beside the model (adapter_config.json)" in refused(model)


@pytest.mark.parametrize("stored", ["BertForMaskedLM", "BertModel", "BertForSequenceClassification"])
def test_weights_of_another_head_are_refused(stored: str, model: Path) -> None:
    AutoConfig.for_model("bert", architectures=[stored]).save_pretrained(model)
    assert f"the weights of a {stored}, which does not predict the next token" in refused(model)


@pytest.mark.parametrize(
    "quantised",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors"},
    ],
    ids=str,
)
def test_quantised_weights_are_refused(quantised: dict[str, Any], model: Path) -> None:
    change(model, quantization_config=quantised)
    assert f"quantised ({quantised['quant_method']})" in refused(model)


def test_a_missing_and_a_torn_configuration_are_told(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert "cannot be read" in refused(model)
    (model / "config.json").unlink()
    assert "it has no config.json" in refused(model)
    (model / "config.json").write_text('{"model_type": "nothing"}')
    assert "nothing" in refused(model)


def test_a_model_with_its_own_code_is_never_asked_about(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in OWN_CODE.items():
        (model / name).write_text(code)
    auto = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyModel"}
    fields = {"vocab_size": 1485, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    made = AutoConfig.for_model("llama", **fields, num_attention_heads=2, eos_token_id=1, bos_token_id=None)
    weights = LlamaForCausalLM(made)
    for file in model.glob("*.safetensors"):
        file.unlink()
    weights.save_pretrained(model)
    change(model, model_type="my", auto_map=auto, architectures=["MyModel"])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    assert "set policy.trust_remote_code to true if you trust it" in refused(model)
    assert "y/N" not in capsys.readouterr().out
    policy = Policy(PolicySettings(model=str(model), trust_remote_code=True))
    policy.load()
    assert type(policy.model.get_base_model()).__name__ == "MyModel"
    ids = policy.tokenizer("早上好", return_tensors="pt")["input_ids"]
    with policy.inference():
        torch.testing.assert_close(policy.model(input_ids=ids).logits, weights.eval()(input_ids=ids).logits)


def test_an_encoder_with_its_own_code_is_never_asked_about(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in OWN_CODE.items():
        (encoder / name).write_text(code)
    change(encoder, model_type="my", auto_map={"AutoConfig": "configuration_my.MyConfig"})
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="could not be loaded"):
        frozen_encoder(str(encoder), torch.float32)
    with pytest.raises(UserError, match="could not be loaded"):
        load_encoder(str(encoder), EncoderTraining(device="cpu"))
    assert "y/N" not in capsys.readouterr().out


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro.ENCODER, tmp_path / "encoder"))


def test_weights_that_are_not_there_are_named(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if "layers.1.mlp" in name]:
        del weights[name]
    save_file(weights, path, {"format": "pt"})
    said = refused(model, reading=True)
    assert "lacks 3 weights of its Qwen3ForCausalLM: model.layers.1.mlp.down_proj.weight" in said


def test_tied_weights_are_there(model: Path) -> None:
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    Policy(PolicySettings(model=str(model))).load()
    change(model, tie_word_embeddings=False)
    assert "lacks 1 weights of its Qwen3ForCausalLM: lm_head.weight" in refused(model, reading=True)


def test_weights_without_a_place_are_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(model, num_hidden_layers=1, layer_types=["full_attention"])
    with caplog.at_level(logging.WARNING, logger="lsemrl"):
        Policy(PolicySettings(model=str(model))).load()
    assert "no place for" in caplog.text and "model.layers.1." in caplog.text


def test_weights_of_other_shapes_are_told(model: Path) -> None:
    change(model, intermediate_size=8)
    said = refused(model, reading=True)
    assert "model.layers.0.mlp.down_proj.weight is stored as [32, 64] and needed as [32, 8] by its config.json" in said


def test_torn_and_missing_files_of_weights_are_told(model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(model, reading=True)
    path.unlink()
    assert "holds no *.safetensors" in refused(model, reading=True)
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in refused(model, reading=True)


def test_a_pickle_is_not_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "as pickle only (pytorch_model.bin), which can run code" in refused(model, reading=True)


def test_a_tokenizer_that_cannot_be_read_is_told(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_text("{")
    assert "cannot be read" in refused(model)
    assert AutoTokenizer.from_pretrained(micro.POLICY)  # which is whole


def test_a_folder_that_is_not_there_may_be_where_the_run_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such folder here: if a run names it, run this"):
        read_config("tiny", trust=False)
    for path in ("./tiny", str(tmp_path / "tiny"), "my/models/tiny"):
        with pytest.raises(UserError, match=r"OSError: there is no such folder, and no hub id is written so\); name a"):
            read_config(path, trust=False)
    Path("tiny").mkdir()
    with pytest.raises(UserError, match=r"it has no config\.json\); name a folder or hub id that holds both, whole$"):
        read_config("tiny", trust=False)
