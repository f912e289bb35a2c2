"""An encoder is what its folder says, or it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from lsemrl import micro
from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.encoder import frozen_encoder, overlong, reads
from lsemrl.rewards.fit import load_encoder
from lsemrl.rewards.fit_settings import EncoderTraining
from lsemrl.types import UserError


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda name: None if "attention.self" in name else name, "lacks 6 weights of its BertModel (such as encoder."),
        (lambda name: f"student.{name}", "weights of its BertModel"),
    ],
    ids=["some are left out", "all are named otherwise"],
)
def test_weights_that_were_not_stored_are_not_drawn_in_silence(
    spoil: Callable[[str], str | None], reason: str, encoder_path: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(encoder_path, tmp_path / "encoder"))
    weights = folder / "model.safetensors"
    kept: dict[str, Tensor] = {new: one for name, one in load_file(weights).items() if (new := spoil(name))}
    save_file(kept, weights, {"format": "pt"})
    for read in (
        lambda: SemanticSimilarity(encoder=str(folder)),
        lambda: load_encoder(str(folder), EncoderTraining(device="cpu")),
    ):
        with pytest.raises(UserError) as told:
            read()
        assert reason in str(told.value) and str(folder) in str(told.value)


def test_looking_at_the_weights_draws_nothing(encoder_path: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    SemanticSimilarity(encoder=encoder_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_that_claims_more_positions_than_it_has_is_told_at_the_start(
    encoder_path: str, tmp_path: Path
) -> None:
    encoder = SentenceTransformer(encoder_path, device="cpu")
    assert reads(encoder)
    encoder.max_seq_length = 100
    assert not reads(encoder)
    with pytest.raises(UserError, match="has no positions for 100 tokens, set it to 16 or fewer"):
        SemanticSimilarity(encoder=encoder_path, max_tokens=100)


def test_texts_are_overlong_by_all_that_the_encoder_reads(encoder_path: str) -> None:
    """Its prompt, and what its chat template puts before them, are read too."""
    plain = SentenceTransformer(encoder_path, device="cpu")
    prompted = SentenceTransformer(encoder_path, device="cpu", prompts={"own": "cat dog "}, default_prompt_name="own")
    shipped = frozen_encoder(micro.NAME, torch.float32)
    for encoder, token, fits in ((plain, "cat ", 16), (prompted, "cat ", 14), (shipped, "།", 127)):
        assert overlong(encoder, [token, token * fits, token * (fits + 1)]) == [False, False, True]
