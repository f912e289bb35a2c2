"""Completions and measurements that were never made, of a plausible size and shape, for tests of what they tell."""

from __future__ import annotations

import random

import numpy as np

from lsemrl.evaluation.measurement import Divergence, Measured, Output, Rows
from lsemrl.micro import grammar
from lsemrl.types import Completion, Example

# arm -> label, meaning F1, exact match, NLL, KL on the new task
ARMS = {
    "base": ("Base", 0.0, 0.90, 0.13, 0.0),
    "cold_start": ("Cold start", 0.55, 0.78, 0.39, 1.8),
    "rl": ("RL", 0.68, 0.75, 0.42, 2.1),
    "sft": ("Strong SFT", 0.88, 0.10, 4.9, 2.6),
    "sft_replay": ("SFT + replay", 0.85, 0.86, 0.21, 2.2),
}


def make_measured(arm: str, seed: int = 1, *, rows: int = 120, **changes: object) -> Measured:
    """One arm of one seed; rows are as hard for every arm, seeds as lucky for every metric."""
    label, f1, em, nll, kl = ARMS[arm]
    hard, own = np.random.default_rng(0), np.random.default_rng([seed, *arm.encode()])
    difficulty, questions = hard.normal(size=rows), hard.normal(size=rows)
    luck = 0.0 if arm == "base" else own.normal(0, 0.012)
    meaning = np.clip(f1 + luck + (f1 > 0) * (0.15 * difficulty + own.normal(0, 0.1, rows)), 0, 1)
    cosine = np.clip(0.45 + 0.5 * meaning + own.normal(0, 0.04, rows), -1, 1)
    right = (questions < np.quantile(questions, min(1, max(0, em + luck)))).astype(float)
    gold = np.clip(nll + luck + 0.3 * nll * own.normal(size=rows) + 0.02 * questions, 0.001, None)
    trained = float(arm != "base")

    def divergence(size: float) -> Divergence:
        there = np.clip(size * (1 + 0.2 * own.normal(size=rows)), 0, None)
        back = 1.3 * there
        return Divergence(
            to_base=float(there.mean()), from_base=float(back.mean()),
            to_base_rows=tuple(there.tolist()), from_base_rows=tuple(back.tolist()),
        )  # fmt: skip

    target = {
        "ended_rate": np.ones(rows), "chrf": 0.1 + 0.7 * meaning, "rouge_l": 0.9 * meaning, "meaning_f1": meaning,
        "meaning_exact": (meaning > 0.95).astype(float), "language_rate": np.full(rows, trained), "similarity": cosine,
        "similarity_reward": np.clip((cosine - 0.2) / 0.8, 0, None),
    }  # fmt: skip
    general = {"em": right, "f1": np.clip(right + 0.05, 0, 1), "answer_length": 2 + 8 * (1 - right), "nll": gold}
    corpus = {name: float(values.mean()) for name, values in target.items()}
    corpus |= {"chrf": corpus["chrf"] + 0.01, "bleu": 0.6 * corpus["meaning_f1"] ** 2}
    scores = {name: float(values.mean()) for name, values in general.items()}
    said = tuple(make_output(at, f1) for at in range(min(rows, 10)))
    fields: dict[str, object] = {
        "lsemrl": "0.1.0", "created": "2026-11-23T06:10:00+00:00", "arm": arm, "label": label,
        "trained_by": f"Made up: {label}.", "seed": seed, "task": "zh-bo",
        "policy": {"model": "micro", "train": "lora", "adapter": None if arm == "base" else f"runs/{arm}/{seed}"},
        "base": "micro", "base_fingerprint": "0123456789abcdef",
        "data": {part: Rows(count=rows, sha256=f"{part:0<64}") for part in ("target", "general", "text")},
        "adapter_fingerprint": "" if arm == "base" else f"{arm}-{seed}",
        "conditions": {"max_new_tokens": 32, "dtype": "float32"},
        "signatures": {"chrf": "chrF2|made up", "similarity_reward": "tau 0.2"},
        "machine": {"cores": 2}, "versions": {"torch": "2.13.0"}, "seconds": 20.0,
        "target": corpus,
        "general": {**scores, "average": (scores["em"] + scores["f1"]) / 2},
        "target_rows": {name: tuple(values.tolist()) for name, values in target.items()},
        "general_rows": {name: tuple(values.tolist()) for name, values in general.items()},
        "divergence": {
            name: divergence(share * kl)
            for name, share in (("target", 1.0), ("general", 0.5), ("text", 0.8), ("own", 1.1))
        },
        "weight_change": 0.02 * trained * (1 + kl), "outputs": said, "answers": said,
    }  # fmt: skip
    return Measured(**fields | changes)  # type: ignore[arg-type]


def make_output(at: int, quality: float) -> Output:
    rng = random.Random(at)
    event = grammar.draw_event(rng, "test")
    source, reference = grammar.chinese(event, rng), grammar.tibetan(event, rng)
    said = grammar.tibetan(event if rng.random() < quality else grammar.corrupt(event, rng), rng)
    return Output(id=f"test-{at}", source=source, references=(reference,), output=said if quality else source)


def completions(*said: tuple[str, str, str], pair: bool = True) -> list[Completion]:
    """Of a source, its reference and what is said."""
    return [
        Completion(
            text=text,
            ended=True,
            example=Example(id=source, prompt=source, source=source, references=(reference,), pair=pair),
        )
        for source, reference, text in said
    ]
