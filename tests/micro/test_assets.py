"""The shipped models can do what their reports say, and the tokenizer loses nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lsemrl import micro
from lsemrl.evaluation.batches import Batches
from lsemrl.evaluation.tax import answer
from lsemrl.metrics import corpus as metrics
from lsemrl.micro import build, build_encoder, oracle
from lsemrl.micro.corpus import translation
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import greedy
from lsemrl.types import Example

TOKENIZER = AutoTokenizer.from_pretrained(micro.POLICY)


def test_they_stay_small_and_hold_no_pickles() -> None:
    files = [path for path in micro.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}


@pytest.mark.slow
def test_the_base_answers_questions_with_distractors() -> None:
    model = AutoModelForCausalLM.from_pretrained(micro.POLICY, dtype=torch.float32).eval()
    report = json.loads((micro.POLICY / "report.json").read_text())
    accuracy = build.answer_accuracy(model, TOKENIZER, count=200)
    assert accuracy >= 0.80
    assert accuracy == pytest.approx(report["comprehension_exact_match"], abs=0.06)


def test_the_encoder_tells_one_wrong_slot() -> None:
    encoder = SentenceTransformer(str(micro.ENCODER), device="cpu", model_kwargs={"dtype": torch.float32})
    report = build_encoder.encoder_report(encoder, count=200, seed=1)
    assert report["ranked_paraphrase"] >= 0.95
    assert report["ranked_translation"] >= 0.95
    assert report["cosine_unrelated"] < report["cosine_one_slot_wrong"] < report["cosine_same"]
    shipped = json.loads((micro.ENCODER / "report.json").read_text())
    assert shipped["ranked_paraphrase"] >= 0.95


def test_the_cold_start_is_competent() -> None:
    policy = Policy(PolicySettings(adapter=micro.NAME))
    policy.load()
    examples = [
        Example(
            id=str(row["id"]),
            prompt=f"<|user|>翻译成藏文：{row['zh']}<|assistant|>",
            source=str(row["zh"]),
            references=(str(row["bo"]),),
        )
        for row in translation("test", 100, seed=0)
    ]
    outputs = answer(policy, examples, greedy(32), Batches(50))
    f1 = [oracle.meaning(output.text, output.example.reference).f1 for output in outputs]
    assert sum(f1) / len(f1) >= 0.5
    assert metrics.language_rate([output.text for output in outputs], "bo").value >= 0.98


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, split_special_tokens=True)["input_ids"]) == text


def test_no_token_crosses_a_tibetan_syllable() -> None:
    for row in translation("test", 50, seed=0):
        for token in TOKENIZER(row["bo"])["input_ids"]:
            assert "་" not in TOKENIZER.decode([token]).rstrip("་")


@pytest.mark.slow
def test_they_are_rebuilt_from_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "answer_accuracy", lambda *_, **__: 0.0)  # of what is built, it is only logged
    tokenizer = build.build_tokenizer()
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    one, again = (build.build_policy(tokenizer, steps=2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    encoders = [build_encoder.build_encoder(tokenizer, steps=2, seed=3).state_dict() for _ in range(2)]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])
