"""Scores a policy's outputs with the metrics a configuration names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lsemrl import languages, micro
from lsemrl.languages import Language
from lsemrl.metrics import cmrc
from lsemrl.metrics import corpus as metrics
from lsemrl.micro import oracle
from lsemrl.rewards.cache import identity
from lsemrl.rewards.semantic import SemanticSimilarity
from lsemrl.types import Completion, Example, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Metric = Literal["chrf", "bleu", "rouge_l", "language_rate", "similarity", "meaning", "cmrc"]


_GIVES: dict[Metric, tuple[str, ...]] = {
    "meaning": ("meaning_f1", "meaning_exact"),
    "cmrc": ("em", "f1", "average", "answer_length"),
}
"""Where a metric gives other scores than one of its own name."""


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """What evaluation measures. The reward's own similarity is shown, but nothing should be selected by it."""

    names: tuple[Metric, ...] = ("chrf", "bleu", "rouge_l", "language_rate")
    """Any of chrf, bleu, rouge_l, language_rate, similarity, meaning (the oracle of the embedded world), cmrc."""
    language: str | Language = "bo"
    """The language of the outputs: a code of `lsemrl.languages`, or a profile."""
    encoder: str = micro.NAME
    """The encoder of `similarity`: a SentenceTransformer folder, a hub id, or "micro"."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in get_args(Metric)]
        if unknown:
            raise UserError(f"metrics.names has {unknown[0]!r}; choose among {', '.join(get_args(Metric))}")
        try:
            languages.language(self.language)
        except UserError as error:
            raise UserError(f"metrics.{error}") from None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a set of outputs scored, by the names of the scores.

    Attributes:
        corpus: Over all outputs, in [0, 1], higher is better (but answer_length, in characters).
        rows: Output by output, for the scores that have such values; `corpus` holds their mean, but for chrF.
    """

    corpus: dict[str, float]
    rows: dict[str, tuple[float, ...]]


class Scorer:
    """Scores outputs by the metrics of its settings.

    Attributes:
        language: Of the outputs.
        signatures: How each score that was given is defined, by name.
    """

    def __init__(self, settings: MetricSettings) -> None:
        self.settings = settings
        self.language = languages.language(settings.language)
        self.signatures: dict[str, str] = {}
        self.encoder = (
            SemanticSimilarity(encoder=settings.encoder, dtype="float32") if "similarity" in settings.names else None
        )

    @property
    def encoders(self) -> dict[str, SentenceTransformer]:
        """What reads references, by the field that names it and its value."""
        return {f"metrics.encoder {self.encoder.name!r}": self.encoder.encoder} if self.encoder else {}

    def __call__(self, completions: Sequence[Completion]) -> dict[str, float]:
        """Score outputs against their references; the corpus scores of `score`."""
        return self.score(completions).corpus

    @functools.cached_property
    def _encoder(self) -> str:
        """What the encoder is: its weights, which a path or a name on a hub may have others of tomorrow."""
        assert self.encoder is not None
        return identity(self.encoder.encoder) or Path(self.settings.encoder).name

    def look_at(self, examples: Sequence[Example]) -> list[str]:
        """What is left out of the scores of `examples`, in a sentence each.

        Raises:
            UserError: A metric would be 0 whatever the outputs say.
        """
        if {"bleu", "rouge_l"} & set(self.settings.names) and examples:
            references = [example.references for example in examples]
            metrics.check_units(references, self.language)
        if "meaning" in self.settings.names and (unread := oracle.foreign([each.reference for each in examples])):
            return [f"metrics.names: meaning is left out, for {unread}"]
        return []

    def gives(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The names of the scores that outputs for `examples` get."""
        return ("ended_rate", *(score for name in self._applying(examples) for score in _GIVES.get(name, (name,))))

    def _applying(self, examples: Sequence[Example]) -> list[Metric]:
        foreign = "meaning" in self.settings.names and oracle.foreign([each.reference for each in examples])
        return [name for name in self.settings.names if name != "meaning" or not foreign]

    def score(self, completions: Sequence[Completion]) -> Scores:
        """Score outputs against their references.

        Raises:
            UserError: There is nothing to score.
        """
        if not completions:
            raise UserError("there is nothing to evaluate: the data have no rows for this stage")
        outputs = [completion.text for completion in completions]
        references = [list(completion.example.references) for completion in completions]
        language = self.language
        rows = {"ended_rate": tuple(float(completion.ended) for completion in completions)}
        corpus: dict[str, float] = {}
        for name in self._applying([completion.example for completion in completions]):
            match name:
                case "chrf":
                    scored = metrics.chrf(outputs, references)
                case "bleu":
                    scored = metrics.syllable_bleu(outputs, references, language)
                case "rouge_l":
                    scored = metrics.syllable_rouge_l(outputs, references, language)
                case "language_rate":
                    scored = metrics.language_rate(outputs, language)
                case "similarity":
                    assert self.encoder is not None
                    rows[name] = tuple(self.encoder.similarity(outputs, references).tolist())
                    self.signatures[name] = f"mean cosine, encoder {self._encoder}"
                    continue
                case "meaning":
                    meanings = [oracle.meaning(said, meant[0]) for said, meant in zip(outputs, references, strict=True)]
                    rows["meaning_f1"] = tuple(meaning.f1 for meaning in meanings)
                    rows["meaning_exact"] = tuple(float(meaning.exact) for meaning in meanings)
                    self.signatures["meaning"] = "oracle: F1 over filled slots; all slots right and well formed"
                    continue
                case "cmrc":
                    answers = cmrc.score(outputs, references)
                    rows |= answers.rows
                    corpus["average"] = answers.average
                    self.signatures["cmrc"] = cmrc.SIGNATURE
                    continue
            if scored.rows:
                rows[name] = scored.rows
            corpus[name] = scored.value
            self.signatures[name] = scored.signature
        return Scores(corpus={name: sum(values) / len(values) for name, values in rows.items()} | corpus, rows=rows)
