"""What an encoder's cosines are worth as a reward, on pairs that it was not trained on.

Two questions are asked. Across the languages, as the encoder is trained: does a sentence find its translation? In the
language of the outputs, as the reward compares: what would a right, a slightly wrong, an unrelated and an untranslated
answer be paid?
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsemrl import scripts
from lsemrl.canonical import canonical
from lsemrl.micro import grammar, oracle
from lsemrl.rewards.base import in_one_form
from lsemrl.rewards.encoder import overlong
from lsemrl.types import Example, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ONE_SLOT = "one slot of the sentence's meaning changed, and said in other words (the embedded world)"
SWAPPED = "a quarter of the text, in one piece, replaced by a piece of another row's"
_SWAPPED_SHARE, _TRIES = 4, 8

PAIRS = {
    "matched": "source and its reference",
    "corrupted": "source and its reference, corrupted",
    "shuffled": "source and the reference of another row",
}
"""Cosines across the languages."""
OUTPUTS = {
    "paraphrase": "another right answer",
    "spoiled": "the reference, corrupted",
    "copy": "the source, untranslated",
    "unrelated": "the reference of another row",
}
"""Cosines with the reference, as the reward takes them of outputs."""
FIGURES = {
    "found_target": "translations found, source to target (1 is best)",
    "found_source": "translations found, target to source (1)",
    "auc_shuffled": "AUC, matched against shuffled (1)",
    "auc_corrupted": "AUC, matched against corrupted (1)",
    "ranked_corrupted": "source nearer to its reference than to its corruption (1)",
    "auc_spoiled": "AUC, paraphrase against corrupted, as outputs (1)",
    "ranked_spoiled": "reference nearer to its paraphrase than to its corruption (1)",
    "copy_over_spoiled": "reference nearer to the untranslated source than to its corruption (0)",
    "anisotropy": "anisotropy: mean cosine of unrelated texts (0)",
    "length_bias": "length bias: correlation of cosine and likeness in length, unrelated texts (0)",
    "overlong": "texts longer than the encoder reads (0)",
}
"""What a calibration says in numbers, each with its best value."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """P held-out rows; no text comes twice among the sources, nor among the references.

    Attributes:
        sources: What is to be translated.
        references: Its translations.
        corrupted: The references, each made wrong.
        paraphrases: Other right translations; empty where they are not known for every row.
        corruption: How they were made wrong.
    """

    sources: tuple[str, ...]
    references: tuple[str, ...]
    corrupted: tuple[str, ...]
    paraphrases: tuple[str, ...]
    corruption: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Of one encoder.

    Attributes:
        figures: By the names of `FIGURES`, those that could be had.
        cosines: P each, by the names of `PAIRS` and `OUTPUTS`.
    """

    figures: dict[str, float]
    cosines: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Tau:
    """The threshold of the similarity reward, and where it comes from.

    Attributes:
        value: tau.
        quantile: Of the cosines.
        policy: Whose outputs they are.
        silent: Outputs that were empty or broken, which earn nothing whatever tau is; they are not in `cosines`.
        cosines: Of the outputs with their references.
    """

    value: float
    quantile: float
    policy: str
    silent: int
    cosines: list[float]


def probe(examples: Sequence[Example]) -> Probe:
    """Choose rows of `examples` without repeated texts, and corrupt their references.

    Raises:
        UserError: Fewer than two rows are left.
    """
    rng = random.Random("calibration/0")
    seen: set[str] = set()
    rows: list[Example] = []
    for example in map(in_one_form, examples):
        if not seen & (texts := {example.source, *example.references}):
            seen |= texts
            rows.append(example)
    references = [row.reference for row in rows]
    events = [event_of(text) for text in references]
    if rows and None not in events:
        corruption = ONE_SLOT
        corrupted = [grammar.tibetan(grammar.corrupt(event, rng), rng) for event in events if event]
        paraphrases = [_other_words(event, text, rng) for event, text in zip(events, references, strict=True) if event]
    else:
        corruption = SWAPPED
        corrupted = [
            swap_piece(text, references[at - 1 - rng.randrange(max(1, len(rows) - 1))], rng)
            for at, text in enumerate(references)
        ]
        paraphrases = [row.references[1] for row in rows if len(row.references) > 1]
    kept = [at for at, text in enumerate(corrupted) if text != references[at]]
    if len(kept) < 2:
        raise UserError(
            f"{len(kept)} of {len(examples)} held-out pairs can be measured; raise splits.validation_fraction and "
            "splits.test_fraction, or give more rows"
        )
    return Probe(
        sources=tuple(rows[at].source for at in kept),
        references=tuple(references[at] for at in kept),
        corrupted=tuple(corrupted[at] for at in kept),
        paraphrases=tuple(paraphrases[at] for at in kept) if len(paraphrases) == len(rows) else (),
        corruption=corruption,
    )


def event_of(text: str) -> grammar.Event | None:
    """What a Tibetan sentence of the embedded world says; None for any other text."""
    parse = oracle.parse(text)
    slots: dict[str, Any] = dict(parse.slots.keys())
    said_once = len(slots) == parse.slots.total()
    return grammar.Event(**slots) if parse.well_formed and said_once and "agent" in slots else None


def _other_words(event: grammar.Event, text: str, rng: random.Random) -> str:
    """`event` said otherwise than `text` says it, as far as a few draws can."""
    draws = (grammar.tibetan(event, rng) for _ in range(_TRIES))
    return next((draw for draw in draws if draw != text), text)


def swap_piece(text: str, donor: str, rng: random.Random) -> str:
    """`text` with a quarter of its units, in one piece, replaced by as many of `donor`.

    A unit is what `scripts.units` gives: a syllable, character or word. The text comes back as it was where either has
    none, or where what was put in was always what had been there.
    """
    unchanged = text
    text, donor = canonical(text), canonical(donor)
    own, other = _spans(text), _spans(donor)
    if not own or not other:
        return unchanged
    count = max(1, round(len(own) / _SWAPPED_SHARE))
    taken = min(count, len(other))
    for _ in range(_TRIES):
        at, since = rng.randrange(len(own) - count + 1), rng.randrange(len(other) - taken + 1)
        piece = donor[other[since][0] : other[since + taken - 1][1]]
        swapped = text[: own[at][0]] + piece + text[own[at + count - 1][1] :]
        if swapped != text:
            return swapped
    return unchanged


def _spans(text: str) -> list[tuple[int, int]]:
    """Where each unit of a canonical text begins and ends; the rule that cuts is one for all languages."""
    spans, end = [], 0
    for unit in scripts.units(text):
        begin = text.index(unit, end)
        end = begin + len(unit)
        spans.append((begin, end))
    return spans


def auc(higher: Tensor, lower: Tensor) -> float:
    """The chance that one of `higher` [N] exceeds one of `lower` [M], a tie being half of it."""
    ordered = lower.sort().values
    below = torch.searchsorted(ordered, higher)
    upto = torch.searchsorted(ordered, higher, right=True)
    return float((below + upto).double().mean()) / 2 / len(lower)


def is_above_chance(figure: float, higher: int, lower: int) -> bool:
    """Whether values that are all alike give such an AUC less than once in 40 times (Mann and Whitney, 1947).

    By the normal distribution, with half a step taken off, so that it holds for few values too.
    """
    above = (figure - 0.5) * higher * lower - 0.5
    return above > 1.96 * math.sqrt(higher * lower * (higher + lower + 1) / 12)


def anisotropy(vectors_PH: Tensor) -> float:
    """Mean cosine of two different rows of unit vectors."""
    count = len(vectors_PH)
    total = vectors_PH.double().sum(dim=0).square().sum()
    return float((total - vectors_PH.double().square().sum()) / (count * (count - 1)))


def length_bias(vectors_PH: Tensor, texts: Sequence[str]) -> float:
    """Correlation of the cosine of two different texts with shorter / longer, in characters; NaN if one is constant."""
    lengths_P = torch.tensor([len(text) for text in texts], dtype=torch.float64)
    rows, columns = torch.triu_indices(len(texts), len(texts), offset=1)
    cosines = (vectors_PH @ vectors_PH.T).double()[rows, columns]
    ratios = torch.minimum(lengths_P[rows], lengths_P[columns]) / torch.maximum(lengths_P[rows], lengths_P[columns])
    if cosines.std() == 0 or ratios.std() == 0:
        return math.nan
    return float(torch.corrcoef(torch.stack([cosines, ratios]))[0, 1])


def quantile(cosines: Sequence[float], share: float) -> float:
    """The cosine below which `share` of them lie, to four digits.

    Raises:
        UserError: There are none, or all of the outputs above it are perfect, so that no threshold is left.
    """
    if not cosines:
        raise UserError("every output of tau.policy is empty or broken; name a policy that has learned to answer")
    value = round(float(torch.quantile(torch.tensor(cosines, dtype=torch.float64), share)), 4)
    if value >= 1:
        raise UserError(f"tau would be 1 at tau.quantile {share}, for those outputs equal their references; lower it")
    return max(value, -1.0)


def calibrate(encoder: SentenceTransformer, texts: Probe) -> Calibration:
    """Measure `encoder`, in float32 where it is.

    Raises:
        UserError: It gives a vector that is not finite.
    """
    from lsemrl.rewards.fit import evaluator

    sources_PH, references_PH, corrupted_PH = (
        _encode(encoder, column) for column in (texts.sources, texts.references, texts.corrupted)
    )

    def cosine(one_PH: Tensor, other_PH: Tensor) -> Tensor:
        return (one_PH * other_PH).sum(dim=1).clamp(-1.0, 1.0)

    cosines = {
        "matched": cosine(sources_PH, references_PH),
        "corrupted": cosine(sources_PH, corrupted_PH),
        "shuffled": cosine(sources_PH, references_PH.roll(1, dims=0)),
        "spoiled": cosine(corrupted_PH, references_PH),
        "copy": cosine(sources_PH, references_PH),
        "unrelated": cosine(references_PH.roll(1, dims=0), references_PH),
    }
    found = evaluator(list(zip(texts.sources, texts.references, strict=True)))(encoder)
    figures = {
        "found_target": found["src2trg_accuracy"],
        "found_source": found["trg2src_accuracy"],
        "auc_shuffled": auc(cosines["matched"], cosines["shuffled"]),
        "auc_corrupted": auc(cosines["matched"], cosines["corrupted"]),
        "ranked_corrupted": _share(cosines["matched"] > cosines["corrupted"]),
        "copy_over_spoiled": _share(cosines["copy"] > cosines["spoiled"]),
        "anisotropy": anisotropy(references_PH),
        "length_bias": length_bias(references_PH, texts.references),
        "overlong": _share(torch.tensor(overlong(encoder, [*texts.sources, *texts.references]))),
    }
    if texts.paraphrases:
        cosines["paraphrase"] = cosine(_encode(encoder, texts.paraphrases), references_PH)
        figures["auc_spoiled"] = auc(cosines["paraphrase"], cosines["spoiled"])
        figures["ranked_spoiled"] = _share(cosines["paraphrase"] > cosines["spoiled"])
    return Calibration(
        figures={name: figures[name] for name in FIGURES if name in figures},
        cosines={name: [round(value, 4) for value in values.tolist()] for name, values in cosines.items()},
    )


def _share(mask_P: Tensor) -> float:
    return float(mask_P.double().mean())


def _encode(encoder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Unit vectors [P, H], float32 on the CPU."""
    vectors: Tensor = encoder.encode(
        list(map(canonical, texts)),
        batch_size=64,
        convert_to_tensor=True,
        normalize_embeddings=True,
        show_progress_bar=False,
    )
    vectors_PH = vectors.to("cpu", torch.float32)
    if not vectors_PH.isfinite().all():
        raise UserError("the encoder gives vectors that are not finite; lower train.lr, or start from another encoder")
    return vectors_PH
