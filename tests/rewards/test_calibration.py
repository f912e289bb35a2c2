from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from torch.nn.functional import normalize

from lsemrl import micro
from lsemrl.micro import corpus, grammar, oracle
from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.calibration import (
    FIGURES,
    ONE_SLOT,
    OUTPUTS,
    PAIRS,
    SWAPPED,
    Calibration,
    Tau,
    anisotropy,
    auc,
    calibrate,
    event_of,
    is_above_chance,
    length_bias,
    probe,
    quantile,
    swap_piece,
)
from lsemrl.rewards.calibration_page import tau_line, write
from lsemrl.rewards.fit import load_encoder
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.rewards.semantic import rescaled
from lsemrl.types import Completion, Example, UserError

SCORES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9)


def example(source: str, *references: str) -> Example:
    return Example(id=source, prompt="", source=source, references=references)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_what_chance_may_give_is_told_by_mann_and_whitney(count: int) -> None:
    """Against every order that so many values of two kinds can have."""
    orders = list(itertools.combinations(range(2 * count), count))
    found = []
    for higher in orders:
        lower = sorted({*range(2 * count)} - {*higher})
        found.append(auc(torch.tensor(higher, dtype=torch.float), torch.tensor(lower, dtype=torch.float)))
    assert sum(is_above_chance(each, count, count) for each in found) / len(found) <= 0.025
    assert is_above_chance(1.0, 4, 4) and is_above_chance(0.7, 60, 60) and not is_above_chance(0.55, 60, 60)


def world(count: int) -> list[Example]:
    return [example(str(row["zh"]), str(row["bo"])) for row in corpus.translation("test", count, seed=0)]


@pytest.mark.parametrize(
    ("higher", "lower", "expected"),
    [([2, 3], [0, 1], 1.0), ([0, 1], [2, 3], 0.0), ([1, 1], [1], 0.5), ([1, 3], [0, 2], 0.75)],
)
def test_auc_by_hand(higher: list[float], lower: list[float], expected: float) -> None:
    assert auc(torch.tensor(higher), torch.tensor(lower)) == expected


@given(SCORES, SCORES)
def test_auc_is_the_share_of_won_comparisons(higher: list[float], lower: list[float]) -> None:
    won = sum((a > b) + (a == b) / 2 for a in higher for b in lower) / (len(higher) * len(lower))
    assert auc(torch.tensor(higher), torch.tensor(lower)) == pytest.approx(won)


def test_anisotropy_is_the_mean_cosine_of_different_rows() -> None:
    torch.manual_seed(0)
    vectors_PH = normalize(torch.randn(7, 5) + 1.0)
    cosines = [float(vectors_PH[a] @ vectors_PH[b]) for a in range(7) for b in range(7) if a != b]
    assert anisotropy(vectors_PH) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert anisotropy(torch.eye(4)) == pytest.approx(0.0)


def test_length_bias_sees_an_encoder_of_lengths() -> None:
    texts = ["x" * length for length in range(1, 30)]
    angles = torch.tensor([math.log(len(text)) / 3 for text in texts])
    by_length = torch.stack([angles.cos(), angles.sin()], dim=1)  # the nearer in length, the nearer
    assert length_bias(by_length, texts) > 0.7
    shuffled = by_length[torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]
    assert abs(length_bias(shuffled, texts)) < 0.3
    assert math.isnan(length_bias(by_length, ["same"] * len(texts)))


def test_quantile() -> None:
    cosines = [at / 100 for at in range(101)]
    assert quantile(cosines, 0.05) == 0.05
    assert quantile([0.2, 0.4], 0.25) == 0.25
    with pytest.raises(UserError, match=r"every output of tau\.policy is empty or broken"):
        quantile([], 0.05)
    with pytest.raises(UserError, match="tau would be 1"):
        quantile([1.0, 1.0, 1.0], 0.5)


def test_paid_is_what_the_reward_pays(encoder_path: str) -> None:
    reward = SemanticSimilarity(encoder=encoder_path, threshold=0.3)
    outputs = ["the cat", "red fish", "the dog saw the bird", "river now"]
    references = [("the cat",), ("big blue house",), ("the cat saw the fish",), ("the dog",)]
    answers = [
        Completion(text=text, ended=True, example=example("", *texts))
        for text, texts in zip(outputs, references, strict=True)
    ]
    paid = [rescaled(cosine, 0.3) for cosine in reward.similarity(outputs, references).tolist()]
    assert paid == pytest.approx(reward(answers).tolist(), abs=1e-6)


def test_events_are_read_back() -> None:
    rng = random.Random(0)
    for _ in range(200):
        event = grammar.draw_event(rng, "train")
        assert event_of(grammar.tibetan(event, rng)) == event
    for text in ("", "老师买了书。", "བོད་སྐད་", grammar.tibetan(event, rng) + grammar.tibetan(event, rng)):
        assert event_of(text) is None


def test_a_probe_of_the_embedded_world() -> None:
    texts = probe([*world(60), *world(60)])
    assert texts.corruption == ONE_SLOT
    assert len(texts.references) == len(set(texts.references)) == len(set(texts.sources)) == 60
    for reference, wrong, right in zip(texts.references, texts.corrupted, texts.paraphrases, strict=True):
        assert oracle.meaning(right, reference).exact
        assert right != reference
        meant, said = oracle.parse(reference).slots, oracle.parse(wrong).slots
        assert {slot for slot, _ in (meant - said) + (said - meant)} != set()
        assert len({slot for slot, _ in (meant - said) + (said - meant)}) == 1


def test_a_probe_of_other_text() -> None:
    rows = [
        example(f"{at}号", f"the cat {at} saw a red house by the river {at}", f"cat {at} saw a house")
        for at in range(10)
    ]
    texts = probe(rows)
    assert texts.corruption == SWAPPED
    assert texts.paraphrases == tuple(f"cat {at} saw a house" for at in range(10))
    assert all(wrong != right for wrong, right in zip(texts.corrupted, texts.references, strict=True))
    assert probe(rows) == texts
    assert probe([example(row.source, row.reference) for row in rows]).paraphrases == ()


def test_too_few_rows_for_a_probe() -> None:
    for rows in ([], [example("a", "b c d e")], [example("a", "b"), example("a", "b")], [example("a", "。")] * 3):
        with pytest.raises(UserError, match="held-out pairs can be measured"):
            probe(rows)


@given(st.integers(0, 10**6))
def test_a_swapped_piece_leaves_the_rest(seed: int) -> None:
    text, donor = "དགེ་རྒན་གྱིས་དེབ་ཉོས་སོང་བས་ཡིན།", "སློབ་མས་ཡི་གེ་གསར་པ་བཀླགས།"
    swapped = swap_piece(text, donor, random.Random(seed))
    assert swapped != text
    start = next(at for at, pair in enumerate(zip(swapped, text, strict=False)) if pair[0] != pair[1])
    end = next(at for at, pair in enumerate(zip(swapped[::-1], text[::-1], strict=False)) if pair[0] != pair[1])
    assert swapped[start : len(swapped) - end].strip("་") in donor
    assert text[start : len(text) - end].count("་") <= 2  # two syllables of eight


def test_nothing_to_swap() -> None:
    rng = random.Random(0)
    assert swap_piece("。", "a b c d", rng) == "。"
    assert swap_piece("a b c d", "", rng) == "a b c d"
    assert swap_piece("a a a a", "a a a a", rng) == "a a a a"


def test_a_good_encoder_and_a_fresh_one() -> None:
    texts = probe(world(80))
    good = calibrate(load_encoder(micro.NAME, EncoderTraining(device="cpu")), texts)
    fresh = calibrate(load_encoder(micro.NAME, EncoderTraining(fresh=True, device="cpu")), texts)
    assert set(good.figures) == set(FIGURES)
    assert set(good.cosines) == {*PAIRS, *OUTPUTS}
    assert all(len(values) == 80 for values in good.cosines.values())
    assert good.figures["auc_shuffled"] > 0.99
    assert good.figures["auc_corrupted"] > 0.9
    assert good.figures["ranked_spoiled"] > 0.9
    assert good.figures["found_target"] > 0.95
    assert fresh.figures["auc_shuffled"] < 0.75
    assert fresh.figures["anisotropy"] > 0.5 > good.figures["anisotropy"]
    assert good.cosines["copy"] == good.cosines["matched"]


def test_an_encoder_that_is_no_number(encoder_path: str) -> None:
    encoder = load_encoder(encoder_path, EncoderTraining(device="cpu"))
    with torch.no_grad():
        next(encoder.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match=r"not finite; lower train\.lr"):
        calibrate(encoder, probe([example("the cat", "the dog saw"), example("red fish", "a big house")]))


def test_long_texts_are_counted(encoder_path: str) -> None:
    encoder = load_encoder(encoder_path, EncoderTraining(device="cpu"))
    rows = [example("the cat", "dog " * 17), example("red fish", "a big house"), example("now", "tree by river")]
    assert calibrate(encoder, probe(rows)).figures["overlong"] == pytest.approx(1 / 6)


def test_an_encoder_without_a_transformer_reads_all_of_any_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(micro.ENCODER / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu").save(str(tmp_path))
    encoder = load_encoder(str(tmp_path), EncoderTraining(device="cpu"))
    assert calibrate(encoder, probe(world(6))).figures["overlong"] == 0


def test_the_plot_has_room_for_what_the_policy_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    kept = Calibration(figures={}, cosines={name: [0.1, 0.9] for name in (*PAIRS, *OUTPUTS)})
    tau = Tau(value=-0.4, quantile=0.05, policy="p", silent=0, cosines=[-0.4, 0.75])
    write(tmp_path, {"as it is": kept}, probe(world(2)), tau, {"summary": "Encoder x."})
    assert all(ax.get_xlim()[0] < -0.4 for ax in drawn[0].axes)


def test_the_report(tmp_path: Path) -> None:
    cosines = {name: [0.1, 0.9] for name in (*PAIRS, *OUTPUTS)}
    before = Calibration(figures={"auc_shuffled": 0.5, "length_bias": math.nan}, cosines=cosines)
    after = Calibration(figures={"auc_shuffled": 0.75, "length_bias": 0.25}, cosines=cosines)
    tau = Tau(value=0.5, quantile=0.05, policy="runs/sft", silent=3, cosines=[0.25, 0.75])
    texts = probe(world(2))
    write(tmp_path, {"before": before, "after": after}, texts, tau, {"summary": "Encoder x.", "seconds": 1.5})
    content = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["tau"]["value"] == 0.5
    assert content["calibrations"]["before"]["figures"] == {"auc_shuffled": 0.5, "length_bias": "nan"}
    assert content["seconds"] == 1.5
    page = (tmp_path / "calibration.md").read_text(encoding="utf-8")
    assert "| AUC, matched against shuffled (1) | 0.500 | 0.750 |" in page
    assert "| not defined | 0.250 |" in page
    line = "tau = 0.5, the 5.0% quantile of the cosines of 2 outputs of policy runs/sft (3 more were empty or broken, "
    assert f"{line}which have none): 80.0% of all 5 earn nothing." in page
    assert "| outputs of policy runs/sft | 0.500 | 0.100 | 80.0% |" in page
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    write(tmp_path, {"as it is": after}, texts, None, {"summary": "Encoder x."})
    assert "No tau was derived (no policy was named" in (tmp_path / "calibration.md").read_text(encoding="utf-8")


def test_what_lies_at_tau_earns_nothing_too() -> None:
    tied = Tau(value=0.3, quantile=0.05, policy="p", silent=0, cosines=[0.3, 0.3, 0.3, 0.9])
    assert tau_line(tied).endswith("of 4 outputs of policy p: 75.0% of all 4 earn nothing")
