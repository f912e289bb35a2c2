"""Scores a policy's outputs with the metrics a configuration names."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsemrl import languages
from lsemrl.metrics import cmrc, comet, metricx
from lsemrl.metrics import corpus as metrics
from lsemrl.metrics.metricx import MetricX
from lsemrl.metrics.settings import Metric, MetricSettings
from lsemrl.micro import oracle
from lsemrl.rewards.cache import identity
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.rewards.guards import CopyOfSource
from lsemrl.rewards.semantic import SemanticSimilarity
from lsemrl.types import Completion, Example, UserError

_GIVES: dict[Metric, tuple[str, ...]] = {
    "meaning": ("meaning_f1", "meaning_exact"),
    "cmrc": ("em", "f1", "average", "answer_length"),
}
"""Where a metric gives other scores than one of its own name."""
_COPIES = CopyOfSource()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a set of outputs scored, by the names of the scores.

    Attributes:
        corpus: Over all outputs, in [0, 1], higher is better (but answer_length, in characters, ter, copied, and
            metricx, from 0 to 25).
        rows: Output by output, for the scores that have such values; `corpus` holds their mean, but for `POOLED`.
        counts: What each output adds to a score that is made of sums (see `corpus.pooled`).
    """

    corpus: dict[str, float]
    rows: dict[str, tuple[float, ...]]
    counts: dict[str, tuple[tuple[float, ...], ...]]


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
        self._metricx = MetricX(settings.metricx, settings.metricx_tokenizer) if "metricx" in settings.names else None

    @property
    def encoders(self) -> dict[str, EncoderUse]:
        """Sentence encoders, by the field that names each and its value."""
        return {f"metrics.encoder {self.encoder.name!r}": EncoderUse(self.encoder.encoder)} if self.encoder else {}

    def __call__(self, completions: Sequence[Completion]) -> dict[str, float]:
        """Score outputs against their references; the corpus scores of `score`."""
        return self.score(completions).corpus

    @functools.cached_property
    def _encoder_identity(self) -> str:
        """What the encoder is: its weights, which a path or a name on a hub may have others of tomorrow."""
        assert self.encoder is not None
        return identity(self.encoder.encoder) or Path(self.settings.encoder).name

    @property
    def asked(self) -> dict[str, Any]:
        """All that decides a score besides outputs and references; models by what they are."""
        return asdict(self.settings) | {
            "language": [self.language.code, self.language.unit, self.language.rule, self.language.identity],
            "encoder": self.encoder and self._encoder_identity,
            "comet": comet.signature_of(self.settings.comet) if "comet" in self.settings.names else None,
            "metricx": self._metricx and self._metricx.identity,
        }

    def look_at(self, examples: Sequence[Example]) -> list[str]:
        """What is left out of the scores of `examples`, or says little of them, in a sentence each.

        Raises:
            UserError: A metric would be 0 whatever the outputs say, or refuse what they should say.
        """
        if {"bleu", "rouge_l"} & set(self.settings.names) and examples:
            references = [example.references for example in examples]
            metrics.check_units(references, self.language)
        lines = []
        if "language_rate" in self.settings.names and examples:
            share, _, found = languages.passing(self.language, examples)
            if share < languages.MOST:
                raise UserError(
                    f"metrics.language is {self.language.code!r}, by which right answers would not pass "
                    f"({self.language}; {found}); name the language of the references, or leave language_rate out of "
                    "metrics.names"
                )
            lines.append(f"metrics.language: {self.language}; {found}")
        lines += [f"metrics.names: {name} is left out, for {why}" for name, why in self._left_out(examples).items()]
        if "chrf_pp" in self.settings.names and self.language.unit != "word":
            lines.append(
                f"metrics.names: chrf_pp adds words between spaces to chrf, and {self.language.name} is written without"
            )
        for learned, remark in (("comet", comet.unread), ("metricx", metricx.unread)):
            if learned in self.settings.names and (little := remark(self.language)):
                lines.append(f"metrics.names: {little}")
        return lines

    def gives(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The names of the scores that outputs for `examples` get."""
        return ("ended_rate", *(score for name in self._applying(examples) for score in _GIVES.get(name, (name,))))

    def _applying(self, examples: Sequence[Example]) -> list[Metric]:
        left_out = self._left_out(examples)
        return [name for name in self.settings.names if name not in left_out]

    def _left_out(self, examples: Sequence[Example]) -> dict[Metric, str]:
        """Metrics that do not apply, and why."""
        found: dict[Metric, str] = {}
        if "meaning" in self.settings.names and (unread := oracle.foreign([each.reference for each in examples])):
            found["meaning"] = unread
        if "copied" in self.settings.names and not any(example.pair for example in examples):
            found["copied"] = "source and references are in one language here"
        return found

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
        counts: dict[str, tuple[tuple[float, ...], ...]] = {}
        for name in self._applying([completion.example for completion in completions]):
            match name:
                case "chrf":
                    scored = metrics.chrf(outputs, references)
                case "comet":
                    sources = [completion.example.source for completion in completions]
                    scored = comet.comet(outputs, sources, references, self.settings.comet)
                case "metricx":
                    assert self._metricx is not None
                    scored = self._metricx(outputs, [each.example.source for each in completions], references)
                case "chrf_pp":
                    scored = metrics.chrf(outputs, references, words=True)
                case "bleu_13a":
                    scored = metrics.bleu_13a(outputs, references, language)
                case "spbleu":
                    scored = metrics.spbleu(outputs, references)
                case "ter":
                    scored = metrics.ter(outputs, references, language)
                case "bleu":
                    scored = metrics.syllable_bleu(outputs, references, language)
                case "rouge_l":
                    scored = metrics.syllable_rouge_l(outputs, references, language)
                case "language_rate":
                    scored = metrics.language_rate(outputs, language)
                case "copied":
                    copied = tuple((~_COPIES.opens(_COPIES(completions))).float().tolist())
                    by = f"share of outputs of which CopyOfSource is below {_COPIES.opens_from}"
                    scored = metrics.Score.mean(copied, by)
                case "similarity":
                    assert self.encoder is not None
                    cosines = tuple(self.encoder.similarity(outputs, references).tolist())
                    scored = metrics.Score.mean(cosines, f"mean cosine, encoder {self._encoder_identity}")
                case "meaning":
                    meanings = [oracle.meaning(said, meant[0]) for said, meant in zip(outputs, references, strict=True)]
                    rows["meaning_f1"] = tuple(meaning.f1 for meaning in meanings)
                    rows["meaning_exact"] = tuple(float(meaning.exact) for meaning in meanings)
                    self.signatures["meaning"] = "oracle: F1 over filled slots; all slots right and well formed"
                    continue
                case "cmrc":
                    rows |= cmrc.score(outputs, references)
                    self.signatures["cmrc"] = cmrc.SIGNATURE
                    continue
            if scored.rows:
                rows[name] = scored.rows
            if scored.counts:
                counts[name] = scored.counts
            corpus[name] = scored.value
            self.signatures[name] = scored.signature
        return Scores(corpus=metrics.means_of(rows) | corpus, rows=rows, counts=counts)
