"""A real language model and a real sentence encoder, where LSEMRL_SMOLLM2 names a folder that holds both.

`smollm2` is HuggingFaceTB/SmolLM2-135M-Instruct, `minilm` sentence-transformers/all-MiniLM-L6-v2. What tiny random
models cannot show: that templates, ends of turns, sampling, scoring and rewards are those of the libraries on weights
that mean something.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lsemrl.data.chat import turn_end, write_chat
from lsemrl.data.collate import encode
from lsemrl.modules.forward import probe, prove
from lsemrl.modules.packing import Packed
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampler import sample
from lsemrl.modules.sampling import Sampling
from lsemrl.rewards import SemanticSimilarity
from lsemrl.types import Completion, Example, PromptBatch
from tiny import stir

FOLDER = Path(os.environ.get("LSEMRL_SMOLLM2", ""))
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours, and nothing else.",
    "Translate into German: I have read the book, and I liked it very much.",
)

pytestmark = [
    pytest.mark.slow,  # half a minute
    pytest.mark.skipif(
        "LSEMRL_SMOLLM2" not in os.environ, reason="needs LSEMRL_SMOLLM2, a folder that holds smollm2 and minilm"
    ),
]


@pytest.fixture
def policy() -> Policy:
    policy = Policy(PolicySettings(model=str(FOLDER / "smollm2")))
    policy.load()
    return policy


@pytest.fixture
def prompts(policy: Policy) -> PromptBatch:
    texts = [write_chat(policy.tokenizer, None, (), asked, enable_thinking=False) for asked in QUESTIONS]
    return encode(
        policy.tokenizer,
        [
            Example(id=str(at), prompt=text, source=asked, references=("Paris",))
            for at, (text, asked) in enumerate(zip(texts, QUESTIONS, strict=True))
        ],
    )


def test_what_bfloat16_rounds_is_no_other_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused once as a model that sees what comes after, for four first prompts of 25; one that does is still told."""

    mask = Packed.mask

    def causal(packed: Packed, back: int | None = None) -> Tensor:  # siblings see each other
        length = packed.ids_BL.shape[1]
        if not packed.shared:
            return mask(packed, back)
        return torch.ones(len(packed.ids_BL), 1, length, length, dtype=torch.bool).tril()

    policy = Policy(PolicySettings(model=str(FOLDER / "smollm2"), dtype="bfloat16"))
    policy.load()
    policy.eval()
    for said in (
        "A doctor from Kano asked 25 children to sing.",
        "The new minister wants to know when the rain will come.",
    ):
        asked = f"Translate into Pidgin: {said}"
        text = write_chat(policy.tokenizer, None, (), asked, enable_thinking=False)
        prompts = encode(policy.tokenizer, [Example(id="1", prompt=text, source=asked, references=("Paris",))])
        with policy.inference():
            rows = probe(policy.model.config, prompts.prompt_ids_BP, prompts.prompt_mask_BP)
            assert prove(policy.model, rows, "it") == "shared"
            with monkeypatch.context() as patch:
                patch.setattr(Packed, "mask", causal)
                patch.setattr("lsemrl.modules.forward.pieces", lambda *packed: None)  # by which the mask is not asked
                assert prove(policy.model, rows, "it") == "plain"


def test_a_turn_ends_as_a_text_does(policy: Policy) -> None:
    assert turn_end(policy.tokenizer) == policy.tokenizer.eos_token == "<|im_end|>"


def test_the_likeliest_answer_is_what_generate_writes(policy: Policy, prompts: PromptBatch) -> None:
    found = sample(policy, prompts, Sampling(num_generations=1, temperature=0.0, max_new_tokens=24), seed=0)
    with policy.base():
        for at, completion in enumerate(found.completions):
            own_P = prompts.prompt_ids_BP[at][prompts.prompt_mask_BP[at]]
            written_L = policy.model.generate(
                input_ids=own_P[None],
                attention_mask=torch.ones_like(own_P)[None],
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=24,
            )[0, len(own_P) :]
            mask_T = found.sequences.completion_mask_NT[at]
            assert found.sequences.completion_ids_NT[at][mask_T].tolist() == written_L.tolist()
            assert completion.text == policy.tokenizer.decode(written_L, skip_special_tokens=True)
    assert "Paris" in found.completions[0].text


def test_what_is_drawn_is_what_is_scored(policy: Policy, prompts: PromptBatch) -> None:
    stir(policy, 0.01)
    found = sample(policy, prompts, Sampling(num_generations=4, temperature=1.0, top_p=1.0, max_new_tokens=24), seed=1)
    with policy.inference():
        scored_NT, entropy_NT = policy.logprobs(found.sequences)
    assert policy.shares_prompts
    mask_NT = found.sequences.completion_mask_NT
    torch.testing.assert_close(found.logprobs_NT[mask_NT], scored_NT[mask_NT], rtol=0, atol=1e-3)
    assert (found.logprobs_NT - scored_NT)[mask_NT].abs().mean() < 5e-5
    assert 0 < entropy_NT[mask_NT].mean() < 6  # it knows something of the next word


def test_the_reward_is_the_encoders_cosine() -> None:
    said = ["Di pipo dey vex well well.", "The people are very angry.", "She bought two loaves of bread."]
    reference = "People are really angry about it."
    encoder = SentenceTransformer(str(FOLDER / "minilm"))
    vectors = encoder.encode([*said, reference], convert_to_tensor=True)
    expected_N = cosine_similarity(vectors[:-1], vectors[-1:])
    reward = SemanticSimilarity(encoder=str(FOLDER / "minilm"), threshold=0.0, dtype="float32", cache_dir="none")
    example = Example(id="1", prompt="", source="", references=(reference,))
    found_N = reward([Completion(text=text, ended=True, example=example) for text in said])
    torch.testing.assert_close(found_N.cpu(), expected_N.cpu().clamp(min=0), rtol=1e-4, atol=1e-5)
    assert found_N[1] > 0.6 > 0.3 > found_N[2]
