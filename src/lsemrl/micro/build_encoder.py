"""Rebuilds the embedded reward encoder: a bilingual SentenceTransformer of half a million parameters.

It is trained as the paper trains its own (MultipleNegativesRankingLoss, Chinese as anchor), with one addition: every
row brings its own one-slot corruption as a hard negative, because in a world this small the other rows of a batch are
all too easily told apart.
"""

from __future__ import annotations

import json
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lsemrl.files import replace_folder, write_text
from lsemrl.micro import grammar, oracle

log = logging.getLogger(__name__)

MAX_TOKENS = 128
_BATCH = 96
_STEPS = 1200


def build_encoder(tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> SentenceTransformer:
    """Train the encoder for `steps` batches of 96 triplets."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=MAX_TOKENS)
    encoder = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size, "mean")], device="cpu")
    loss = MultipleNegativesRankingLoss(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    rng, begun = random.Random(f"encoder/{seed}"), time.monotonic()
    encoder.train()
    for step in range(steps):
        columns = zip(*(_triplet(rng) for _ in range(_BATCH)), strict=True)
        features = [dict(encoder.preprocess(list(column))) for column in columns]
        value = loss(features, torch.zeros(_BATCH))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("encoder step %d/%d: loss %.3f, %.0f s", step, steps, value.item(), time.monotonic() - begun)
    return encoder.eval()


def _triplet(rng: random.Random) -> tuple[str, str, str]:
    """An anchor (Chinese or Tibetan), a Tibetan sentence of the same meaning, and one with a slot wrong."""
    event = grammar.draw_event(rng, "pretrain")
    if headline := rng.random() < 0.25:
        event = event.core()
    wrong = grammar.corrupt(event, rng)
    say = grammar.chinese if rng.random() < 0.6 else grammar.tibetan
    return (
        say(event, rng, headline=headline),
        grammar.tibetan(event, rng, headline=headline),
        grammar.tibetan(wrong, rng, headline=headline),
    )


def encoder_report(encoder: SentenceTransformer, *, count: int = 1000, seed: int = 0) -> dict[str, float]:
    """What the encoder can tell on held-out events.

    Returns:
        ranked_paraphrase and ranked_translation: how often a Tibetan sentence of the same meaning is nearer to a
        Tibetan or Chinese anchor than a one-slot corruption is; mean cosines of equal, corrupted and unrelated
        sentences; correlation of cosine with the oracle's F1 over corruptions of one to six slots.
    """
    rng = random.Random(f"encoder-report/{seed}")
    events = [grammar.draw_event(rng, "test") for _ in range(count)]
    spoiled = []
    for event in events:
        other = event
        for _ in range(rng.randint(1, 6)):
            other = grammar.corrupt(other, rng)
        spoiled.append(other)
    texts = {
        "tibetan": [grammar.tibetan(event, rng) for event in events],
        "chinese": [grammar.chinese(event, rng) for event in events],
        "same": [grammar.tibetan(event, rng) for event in events],
        "wrong": [grammar.tibetan(grammar.corrupt(event, rng), rng) for event in events],
        "spoiled": [grammar.tibetan(event, rng) for event in spoiled],
    }
    vectors = {
        name: encoder.encode(column, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
        for name, column in texts.items()
    }

    def cosine(one: str, other: str) -> torch.Tensor:
        return (vectors[one] * vectors[other]).sum(dim=1)

    f1 = [oracle.meaning(said, meant).f1 for said, meant in zip(texts["spoiled"], texts["tibetan"], strict=True)]
    return {
        "ranked_paraphrase": (cosine("tibetan", "same") > cosine("tibetan", "wrong")).float().mean().item(),
        "ranked_translation": (cosine("chinese", "same") > cosine("chinese", "wrong")).float().mean().item(),
        "cosine_same": cosine("tibetan", "same").mean().item(),
        "cosine_one_slot_wrong": cosine("tibetan", "wrong").mean().item(),
        "cosine_unrelated": (vectors["tibetan"] * vectors["same"].roll(1, dims=0)).sum(dim=1).mean().item(),
        "correlation_with_oracle_f1": statistics.correlation(cosine("tibetan", "spoiled").tolist(), f1),
    }


def build(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> None:
    """Write the encoder and the report of what it can tell to `folder`."""
    encoder = build_encoder(tokenizer, steps=_STEPS, seed=seed)

    def fill(part: Path) -> None:
        encoder.half().save(str(part), create_model_card=False)
        encoder.float()
        report = {"seed": seed, "steps": _STEPS, "held_out_events": 1000, **encoder_report(encoder)}
        log.info("encoder: %s", report)
        write_text(part / "report.json", json.dumps(report, indent=2) + "\n")

    replace_folder(folder, fill)
