from __future__ import annotations

import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.encoder import EncoderDtype, computing_dtype
from lsemrl.types import Completion, Example, UserError

TEXTS = ["the cat saw the dog", "the dog ate the fish now", "big red bird", "small blue house river", "tree"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every call of any encoder, from now on."""
    from sentence_transformers import SentenceTransformer

    calls: list[list[str]] = []
    encode = SentenceTransformer.encode

    def record(self: SentenceTransformer, texts: list[str], **settings: object) -> object:
        calls.append(texts)
        return encode(self, texts, **settings)

    monkeypatch.setattr(SentenceTransformer, "encode", record)
    return calls


def test_similarity_is_the_cosine_of_the_encoder(encoder_path: str) -> None:
    from sentence_transformers import SentenceTransformer

    outputs, references = TEXTS[:4], TEXTS[1:5]
    plain = SentenceTransformer(encoder_path, device="cpu")
    expected = [
        torch.cosine_similarity(*torch.from_numpy(plain.encode([output, reference])), dim=0).item()
        for output, reference in zip(outputs, references, strict=True)
    ]
    reward = SemanticSimilarity(encoder=encoder_path, dtype="float32")
    similarity_N = reward.similarity(outputs, [[text] for text in references])
    assert similarity_N.dtype == torch.float32
    assert similarity_N.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1, "the encoder of this test must tell texts apart"


@pytest.mark.parametrize("threshold", [-1.0, -0.3, 0.0, 0.2, 0.9])
def test_reward_is_the_papers(encoder_path: str, answer: Callable[..., Completion], threshold: float) -> None:
    reward = SemanticSimilarity(encoder=encoder_path, threshold=threshold)
    answers = [answer(text, TEXTS[0]) for text in TEXTS]
    cosines = reward.similarity(TEXTS, [[TEXTS[0]]] * len(TEXTS)).tolist()
    expected = [0.0 if cosine <= threshold else (cosine - threshold) / (1 - threshold) for cosine in cosines]
    rewards_N = reward(answers)
    assert rewards_N.dtype == torch.float32
    assert rewards_N.tolist() == pytest.approx(expected, abs=1e-6)
    assert rewards_N[0] == pytest.approx(1.0, abs=1e-5)


def test_the_nearest_reference_counts(encoder_path: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path)
    apart = [reward.similarity(["tree"], [[text]]).item() for text in TEXTS]
    assert reward.similarity(["tree"], [TEXTS]).item() == max(apart) > min(apart)


@pytest.mark.parametrize("text", ["", "  \n", "the cat\ufffd", "\ufffd"])
def test_empty_and_broken_texts_get_nothing(encoder_path: str, answer: Callable[..., Completion], text: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path, threshold=-1.0)
    assert reward([answer(text, "the cat"), answer("the cat", "the cat")]).tolist() == pytest.approx([0.0, 1.0])
    counted = "broken/outputs" if "\ufffd" in text else "empty/outputs"
    assert {name: count for name, count in reward.counters.items() if count} == {counted: 1.0}


def test_raw_similarity_takes_broken_texts_as_they_stand(encoder_path: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path)
    broken, empty = reward.similarity(["the cat \ufffd", " "], [["the cat"]] * 2).tolist()
    assert broken != 0.0 and empty == 0.0


def test_duplicates_are_encoded_once_and_references_remembered(
    encoder_path: str, answer: Callable[..., Completion], encoded: list[list[str]]
) -> None:
    reward = SemanticSimilarity(encoder=encoder_path, threshold=-1.0)
    encoded.clear()  # of what it reads, it was tried at the start
    answers = [answer(text, "the cat") for text in ("tree", "bird", "tree", "tree")]
    first = reward(answers)
    assert sorted(text for call in encoded for text in call) == ["bird", "the cat", "tree"]
    assert first[0] == first[2] == first[3] != first[1]
    encoded.clear()
    assert torch.equal(reward(answers), first)
    assert [sorted(call) for call in encoded] == [["bird", "tree"]]


def test_the_memory_of_references_is_bounded(encoder_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsemrl.rewards import semantic

    monkeypatch.setattr(semantic, "_CACHE_SIZE", 2)
    reward = SemanticSimilarity(encoder=encoder_path)
    free = SemanticSimilarity(encoder=encoder_path)
    free.similarity(TEXTS, [TEXTS] * len(TEXTS))
    assert torch.equal(reward.similarity(TEXTS, [TEXTS] * len(TEXTS)), free.similarity(TEXTS, [TEXTS] * len(TEXTS)))
    assert reward._reference.cache_info().currsize == 2


def test_a_cold_memory_gives_the_same_bits(encoder_path: str) -> None:
    """A resumed run has seen none of the references: what it gets may not depend on what came before."""
    warm, cold = (SemanticSimilarity(encoder=encoder_path, cache_dir="none") for _ in range(2))
    warm.similarity([TEXTS[1]], [[" ".join(TEXTS[:3])]])
    warm.similarity(TEXTS, [[text] for text in reversed(TEXTS)])
    outputs, references = TEXTS[2:], [TEXTS[:2], [TEXTS[4]], [TEXTS[3], TEXTS[0]]]
    assert torch.equal(warm.similarity(outputs, references), cold.similarity(outputs, references))


@pytest.mark.parametrize("cache_dir", [None, "here"])
def test_references_are_encoded_once_for_all_runs_to_the_same_bits(
    encoder_path: str,
    encoded: list[list[str]],
    cache_dir: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs, references = TEXTS[2:], [TEXTS[:2], [TEXTS[4]], [TEXTS[3], TEXTS[0]]]
    uncached, first, second = (
        SemanticSimilarity(encoder=encoder_path, cache_dir=name) for name in ("none", cache_dir, cache_dir)
    )
    expected = uncached.similarity(outputs, references)
    assert torch.equal(first.similarity(outputs, references), expected)
    encoded.clear()
    assert torch.equal(second.similarity(outputs, references), expected)
    assert encoded == [outputs]
    for text in TEXTS[:2]:
        assert torch.equal(second._reference(text), uncached._reference(text))
    where = tmp_path / "here" if cache_dir else tmp_path / "cache" / "lsemrl" / "embeddings"
    assert sum(path.is_file() for path in where.rglob("*")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [where.relative_to(tmp_path).parts[0]]


def test_none_is_no_folder(encoder_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SemanticSimilarity(encoder=encoder_path, cache_dir="none").similarity(["tree"], [["bird"]])
    assert not list(tmp_path.iterdir())


def test_encoders_and_their_settings_do_not_share_vectors(encoder_path: str) -> None:
    head, tail = " ".join(["cat"] * 4), " ".join(["cat"] * 4 + ["river"] * 4)
    SemanticSimilarity(encoder=encoder_path).similarity([head], [[tail]])
    with pytest.warns(UserWarning, match="reads 4 tokens"):
        assert SemanticSimilarity(encoder=encoder_path, max_tokens=4).similarity([head], [[tail]]).item() > 0.99999


def test_a_damaged_cache_changes_nothing(encoder_path: str, tmp_path: Path) -> None:
    expected = SemanticSimilarity(encoder=encoder_path).similarity(["tree"], [["bird"]])
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(SemanticSimilarity(encoder=encoder_path).similarity(["tree"], [["bird"]]), expected)


def test_an_unwritable_cache_changes_nothing(encoder_path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reward = SemanticSimilarity(encoder=encoder_path, cache_dir=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="in memory only"):
        got = reward.similarity(["tree"], [["bird"]])
    assert torch.equal(got, SemanticSimilarity(encoder=encoder_path, cache_dir="none").similarity(["tree"], [["bird"]]))


def test_long_references_are_warned_of_from_the_cache_too(encoder_path: str) -> None:
    too_long = " ".join(["cat"] * 17)
    for _ in range(2):
        reward = SemanticSimilarity(encoder=encoder_path)
        with pytest.warns(UserWarning, match="reads 16 tokens"):
            reward.similarity(["tree"], [[too_long]])


def test_long_references_are_told_of_all_rows_each_once(encoder_path: str) -> None:
    """A count of each rank's would add up to more than there are."""
    fits, too_long = " ".join(["cat"] * 16), " ".join(["cat"] * 17)
    rows = [
        Example(id="", prompt="", source=source, references=references)
        for source, references in (("a", (fits, too_long)), (too_long, (too_long,)), ("b", (f"{too_long} cat",)))
    ]
    reward = SemanticSimilarity(encoder=encoder_path)
    assert reward.look_at(rows).startswith("2 of 3 different references are longer than the 16 tokens that")
    assert not any("references" in name for name in reward.counters) and not reward.look_at(rows[:0])
    said = SemanticSimilarity(encoder=encoder_path, against="source").look_at(rows)
    assert said.startswith("1 of 3 different sources are longer") and "a copy earns most" in said


def test_long_texts_are_counted_and_warned_of_once(encoder_path: str, answer: Callable[..., Completion]) -> None:
    reward = SemanticSimilarity(encoder=encoder_path)
    fits, too_long = " ".join(["cat"] * 16), " ".join(["cat"] * 17)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward([answer(fits, fits)])
    assert not any(reward.counters.values())
    with pytest.warns(UserWarning, match="reads 16 tokens"):
        reward([answer(too_long, fits), answer(too_long, fits), answer(fits, too_long)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward([answer(too_long, too_long)])
    assert reward.counters["overlong/outputs"] == 3


def test_max_tokens_is_what_the_encoder_reads(encoder_path: str) -> None:
    head, tail = " ".join(["cat"] * 4), " ".join(["cat"] * 4 + ["river"] * 4)
    with pytest.warns(UserWarning, match="reads 4 tokens"):
        assert SemanticSimilarity(encoder=encoder_path, max_tokens=4).similarity([tail], [[head]]).item() > 0.99999
    assert SemanticSimilarity(encoder=encoder_path).similarity([tail], [[head]]).item() < 0.999


def test_max_tokens_may_use_all_positions_and_no_more(encoder_path: str) -> None:
    assert SemanticSimilarity(encoder=encoder_path, max_tokens=24).encoder.max_seq_length == 24
    with pytest.raises(UserError, match=r"max_tokens is 25 .* set it to 16 or fewer"):
        SemanticSimilarity(encoder=encoder_path, max_tokens=25)


def test_the_encoder_is_frozen_in_float32_whatever_it_was_saved_in(encoder_path: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(encoder_path, device="cpu").half().save(str(tmp_path / "half"))
    encoder = SemanticSimilarity(encoder=str(tmp_path / "half"), dtype="float32").encoder
    assert not encoder.training
    assert all(not weight.requires_grad and weight.dtype == torch.float32 for weight in encoder.parameters())


def test_mixed_precision_does_not_reach_the_encoder(encoder_path: str) -> None:
    reward, references = SemanticSimilarity(encoder=encoder_path), [[text] for text in reversed(TEXTS)]
    plain = reward.similarity(TEXTS, references)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = SemanticSimilarity(encoder=encoder_path).similarity(TEXTS, references)
    assert torch.equal(plain, mixed)


def test_vectors_remembered_in_inference_mode_serve_outside(encoder_path: str) -> None:
    reward, references = SemanticSimilarity(encoder=encoder_path), [[text] for text in reversed(TEXTS)]
    with torch.inference_mode():
        inside = reward.similarity(TEXTS, references).clone()
    outside = reward.similarity(TEXTS, references)
    assert torch.equal(inside, outside) and not outside.is_inference()


def test_no_random_number_of_the_run_is_used(encoder_path: str) -> None:
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    SemanticSimilarity(encoder=encoder_path).similarity(TEXTS, [[text] for text in reversed(TEXTS)])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.random.get_state()[1].tolist() == states[2]


@pytest.mark.parametrize(
    ("dtype", "device", "hardware", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_has_it(
    dtype: EncoderDtype, device: str, hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware)
    assert computing_dtype(dtype, torch.device(device)) == expected


def test_only_the_transformer_computes_in_bfloat16(encoder_path: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path, device="cpu", dtype="bfloat16")
    transformer, pooling, dense = reward.encoder
    seen: dict[str, torch.dtype] = {}
    linear = next(module for module in transformer.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda *call: seen.update(within=call[2].dtype))
    pooling.register_forward_pre_hook(lambda *call: seen.update(behind=call[1][0]["token_embeddings"].dtype))
    vectors_UH = reward._encode(TEXTS)
    assert seen == {"within": torch.bfloat16, "behind": torch.float32}
    assert {weight.dtype for weight in dense.parameters()} == {vectors_UH.dtype} == {torch.float32}
    assert vectors_UH.norm(dim=1).tolist() == pytest.approx([1.0] * len(TEXTS), abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("encoder", ["tiny", "micro"])
def test_cosines_in_bfloat16_are_near_those_in_float32(encoder: str, encoder_path: str) -> None:
    texts = TEXTS if encoder == "tiny" else ["དགེ་རྒན་གྱིས་དེབ་ཉོས།", "སློབ་མས་ཡི་གེ་གསར་པ་བཀླགས།", "老师买了书。", "早上好"]
    path = encoder_path if encoder == "tiny" else "micro"
    half, full = (SemanticSimilarity(encoder=path, device="cuda", dtype=dtype) for dtype in ("bfloat16", "float32"))  # type: ignore[arg-type]
    for text in texts:
        cosines = [reward.similarity(texts, [[text]] * len(texts)).tolist() for reward in (half, full)]
        assert cosines[0] == pytest.approx(cosines[1], abs=2e-2)


@pytest.mark.parametrize("threshold", [1.0, 1.5, -1.01, float("nan")])
def test_tau_out_of_range(threshold: float) -> None:
    with pytest.raises(UserError, match=r"threshold \(tau\) is .*: set it in \[-1, 1\)"):
        SemanticSimilarity(threshold=threshold)


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("max_tokens", 0)])
def test_sizes_out_of_range(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{field} is 0"):
        SemanticSimilarity(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "float16", "dtype is 'float16' .*auto, float32, bfloat16"),
        ("device", "gpu", "device of SemanticSimilarity is 'gpu'; choose cpu, cuda"),
    ],
)
def test_what_computes_out_of_range(field: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SemanticSimilarity(**{field: value})  # type: ignore[arg-type]


def test_a_folder_that_is_no_encoder(plain_model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (plain_model_path, tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=r"no SentenceTransformer folder .*modules.json"):
            SemanticSimilarity(encoder=str(path))


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "a/b/c", ""])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=r"no such folder|no SentenceTransformer folder"):
        SemanticSimilarity(encoder=name)


def test_an_encoder_without_its_weights(encoder_path: str, tmp_path: Path) -> None:
    shutil.copytree(encoder_path, tmp_path / "gone")
    for weights in (tmp_path / "gone").rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UserError, match="could not be loaded") as caught:
        SemanticSimilarity(encoder=str(tmp_path / "gone"))
    assert "\n" not in str(caught.value)


def test_a_vector_that_is_not_finite(encoder_path: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path)
    for weight in reward.encoder.parameters():
        weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        reward.similarity(["tree"], [["bird"]])


def test_an_output_without_a_reference(encoder_path: str) -> None:
    with pytest.raises(UserError, match="references is empty for output 1"):
        SemanticSimilarity(encoder=encoder_path).similarity(["a", "b"], [["a"], []])


def test_no_completion_is_no_reward(encoder_path: str) -> None:
    assert SemanticSimilarity(encoder=encoder_path)([]).shape == (0,)


@pytest.mark.slow
def test_importing_rewards_does_not_import_sentence_transformers() -> None:
    script = "import sys, lsemrl.rewards; sys.exit('sentence_transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_against_the_source_no_reference_is_read(encoder_path: str) -> None:
    part = SemanticSimilarity(encoder=encoder_path, against="source")
    compared = SemanticSimilarity(encoder=encoder_path)
    assert not part.reads_references and compared.reads_references
    assert "a copy earns most" in part.look_at([]) and not compared.look_at([])
    example = Example(id="0", prompt="", source="red fish", references=("the cat",))
    texts = ["red fish", "the cat", ""]
    found = part([Completion(text=text, ended=True, example=example) for text in texts])
    bare = replace(example, references=())
    assert torch.equal(found, part([Completion(text=text, ended=True, example=bare) for text in texts]))
    assert found[0] == pytest.approx(1.0) and found[1] < 0.999 and found[2] == 0
    with pytest.raises(UserError, match=r"against is 'both' in SemanticSimilarity: choose one of reference, source"):
        SemanticSimilarity(encoder=encoder_path, against="both")  # type: ignore[arg-type]
