"""People with a new script add tokens: adapters trained with more rows of embeddings than the published model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsemrl.data.collate import encode
from lsemrl.errors import UserError
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.tax import gold_nll
from lsemrl.modules.adapters.merging import merge_for_good
from lsemrl.modules.policy import Policy
from lsemrl.types import Example, Sequences
from matrix import slow_but
from modules.adapters.kinds import EVERY, logprobs, plain_peft, read, save_model
from tiny import stir

ADDED = ["ཀྵ", "<|bo|>", "ཧཱུཾ"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("published")
    return {kind: str(save_model(root / kind, kind)) for kind in ("tied", "untied")}


def train_elsewhere(model: str, folder: Path, *, rows: int = 0, tokenizer: bool = True, **fields: Any) -> Path:
    """What a user's own script does with peft: add tokens, resize, train, save."""
    torch.manual_seed(4)
    words = AutoTokenizer.from_pretrained(model)
    words.add_tokens(ADDED)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    base.resize_token_embeddings(rows or len(words))
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=EVERY, task_type="CAUSAL_LM", **fields))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    return folder


def asked(policy: Policy) -> Sequences:
    examples = [
        Example(id="0", prompt="翻译：ཀྵ。", source="", references=(f"དེབ{ADDED[0]}{ADDED[2]}",)),
        Example(id="1", prompt="早上好<|bo|>", source="", references=("ཞོགས་པ",)),
    ]
    return encode(policy.tokenizer, examples).sequences


def scored(policy: Policy, whole: Sequences) -> Tensor:
    with policy.inference():
        return policy.logprobs(whole)[0]


@pytest.mark.parametrize("more", slow_but([0, 60], [60]), ids=["as many rows as tokens", "padded rows"])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("tied", {}),  # the rows that resizing drew are saved along
        pytest.param("untied", {}, marks=pytest.mark.slow),
        ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        pytest.param("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}, marks=pytest.mark.slow),
        pytest.param("untied", {"modules_to_save": ["embed_tokens"]}, marks=pytest.mark.slow),
        ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("tied", {"trainable_token_indices": "new"}),
        ("untied", {"trainable_token_indices": {"embed_tokens": "new", "lm_head": "new"}}),
    ],
    ids=str,
)
def test_an_adapter_brings_its_tokens(
    kind: str, fields: dict[str, Any], more: int, models: dict[str, str], tmp_path: Path
) -> None:
    size = len(AutoTokenizer.from_pretrained(models[kind]))
    new = list(range(size, size + len(ADDED)))
    chosen = fields.get("trainable_token_indices")
    if chosen:
        fields = fields | {"trainable_token_indices": new if chosen == "new" else dict.fromkeys(chosen, new)}
    adapter = train_elsewhere(models[kind], tmp_path / "adapter", rows=size + len(ADDED) + more, **fields)
    policy = read(models[kind], adapter)
    whole = asked(policy)
    assert len(policy.tokenizer) == size + len(ADDED)
    assert set(new) & set(whole.completion_ids_NT.flatten().tolist())
    truth = logprobs(plain_peft(models[kind], adapter, rows=size + len(ADDED) + more), whole)
    torch.testing.assert_close(scored(policy, whole), truth, rtol=0, atol=1e-4)
    with policy.merged():
        torch.testing.assert_close(logprobs(policy.model, whole), truth, rtol=0, atol=1e-4)
    published = AutoModelForCausalLM.from_pretrained(models[kind], dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with policy.base():
        torch.testing.assert_close(policy.model(ids).logits[..., :size], published(ids).logits)
    stir(policy, scale=0.1)
    with policy.reference():
        torch.testing.assert_close(policy.logprobs(whole)[0], truth, rtol=0, atol=1e-4)
    now = scored(policy, whole)
    policy.save(tmp_path / "again")
    again = plain_peft(models[kind], tmp_path / "again", rows=size + len(ADDED) + more)
    torch.testing.assert_close(logprobs(again, whole), now, rtol=0, atol=1e-4)
    torch.testing.assert_close(scored(read(models[kind], tmp_path / "again"), whole), now, rtol=0, atol=1e-4)
    assert policy.read(tmp_path / "again").keys() == policy.trained().keys()
    merge_for_good(policy.model).save_pretrained(tmp_path / "merged")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    torch.testing.assert_close(logprobs(stored, whole), now, rtol=0, atol=1e-4)


def test_gold_answers_count_the_tokens_that_the_base_has_for_them(models: dict[str, str], tmp_path: Path) -> None:
    """Where a new token stands for what the base spells in three, the same nats would look like a drift of thrice."""
    policy = read(models["tied"], train_elsewhere(models["tied"], tmp_path / "adapter"))
    row = Example(id="0", prompt="翻译：", source="", references=(ADDED[0],))
    ids = torch.tensor(policy.tokenizer("翻译：")["input_ids"] + policy.tokenizer(ADDED[0])["input_ids"])
    whole = torch.tensor([*ids, policy.tokenizer.eos_token_id])
    with policy.inference():
        logprobs_LV = policy.model(whole[None]).logits[0].log_softmax(dim=-1)
    nats = -sum(float(logprobs_LV[at - 1, whole[at]]) for at in (-2, -1))  # the new token and EOS
    spelt = len(AutoTokenizer.from_pretrained(models["tied"])(ADDED[0])["input_ids"])
    assert spelt > 1
    assert gold_nll(policy, [row], Batches()) == (pytest.approx(nats / (spelt + 1), rel=1e-5),)


def test_fewer_rows_than_the_base_are_taken_as_they_are(models: dict[str, str], tmp_path: Path) -> None:
    """As a base has whose rows are padded to a round number, and a script that resized it to its tokenizer."""
    padded = AutoModelForCausalLM.from_pretrained(models["untied"])
    padded.resize_token_embeddings(2048)
    padded.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(models["untied"]).save_pretrained(tmp_path / "padded")
    model = str(tmp_path / "padded")
    adapter = train_elsewhere(model, tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    policy = read(model, adapter)
    rows = len(policy.tokenizer)
    assert policy.model.get_input_embeddings().weight.shape[0] == rows
    whole = asked(policy)
    truth = logprobs(plain_peft(model, adapter, rows=rows), whole)
    torch.testing.assert_close(scored(policy, whole), truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", ["embed_tokens", "lm_head"])
def test_rows_of_a_tied_base_are_read_from_either_of_their_names(
    kept: str, models: dict[str, str], tmp_path: Path
) -> None:
    adapter = train_elsewhere(models["tied"], tmp_path)
    path, other = adapter / "adapter_model.safetensors", {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}[kept]
    save_file({key: value for key, value in load_file(path).items() if other not in key}, path)
    policy = read(models["tied"], adapter)
    whole = asked(policy)
    truth = logprobs(plain_peft(models["tied"], adapter, rows=len(policy.tokenizer)), whole)
    torch.testing.assert_close(scored(policy, whole), truth, rtol=0, atol=1e-4)


def test_rows_of_which_nothing_is_known_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    adapter = train_elsewhere(models["tied"], tmp_path / "unsaved")
    path = adapter / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "embed" not in key and "head" not in key}, path)
    with pytest.raises(UserError, match="those of the new tokens were not saved; save the adapter with save_embedding"):
        read(models["tied"], adapter)


def test_rows_that_the_tokenizer_does_not_reach_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    fields = {"modules_to_save": ["embed_tokens"], "rows": 900}
    adapter = train_elsewhere(models["untied"], tmp_path / "alone", tokenizer=False, **fields)
    with pytest.raises(
        UserError, match=r"was trained with 900 rows of embeddings.*put the tokenizer it was trained with"
    ):
        read(models["untied"], adapter)


def test_embeddings_that_were_trained_in_the_base_itself_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    adapter = train_elsewhere(models["tied"], tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    tensors[key][3] += 0.1
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=r"holds model\.embed_tokens\.weight whole, with other values than policy\.model's"
    ):
        read(models["tied"], adapter)


def test_an_adapter_brings_its_end_of_texts_and_its_template(models: dict[str, str], tmp_path: Path) -> None:
    """As a chat adapter does on a base that ends texts otherwise."""
    own = AutoTokenizer.from_pretrained(models["tied"])
    alike = read(models["tied"], train_elsewhere(models["tied"], tmp_path / "plain", tokenizer=False)).tokenizer
    own.eos_token, own.chat_template = "<|user|>", "{{ messages[0].content }}"
    assert own.eos_token != alike.eos_token and own.get_vocab() == alike.get_vocab()
    for template, expected in ((own.chat_template, own.chat_template), (None, alike.chat_template)):
        own.chat_template = template
        (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
        own.save_pretrained(tmp_path / "plain")
        found = read(models["tied"], tmp_path / "plain").tokenizer
        assert (found.eos_token, found.chat_template, found.padding_side) == ("<|user|>", expected, "left")
