"""What is scored, as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lsemrl import languages, micro
from lsemrl.errors import UserError
from lsemrl.languages import Language
from lsemrl.metrics import comet
from lsemrl.metrics import corpus as metrics

Metric = Literal[
    "chrf", "chrf_pp", "bleu", "bleu_13a", "spbleu", "ter", "rouge_l", "language_rate", "copied", "similarity",
    "meaning", "cmrc", "comet", "metricx",
]  # fmt: skip
LESS = ("ter", "metricx", "copied")
"""Those of which less is better."""


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """What evaluation measures. The reward's own similarity is shown, but nothing should be selected by it."""

    names: tuple[Metric, ...] = ("chrf", "bleu", "rouge_l", "language_rate")
    """Any of chrf, chrf_pp (chrF++), bleu (over units of the language), bleu_13a (sacreBLEU's own, as papers
    report it) and ter (lower is better), both of languages with spaces between words, spbleu (over pieces of
    FLORES-200's SentencePiece), rouge_l, language_rate, copied (the share of outputs that are mostly copies of the
    source), similarity, meaning (the oracle of the embedded world), cmrc, comet (by the program comet-score), metricx
    (lower is better)."""
    language: str | Language = "bo"
    """The language of the outputs: a code of `lsemrl.languages`, or a profile."""
    encoder: str = micro.NAME
    """The encoder of `similarity`: a SentenceTransformer folder, a hub id, or "micro"."""
    comet: str = "Unbabel/wmt22-comet-da"
    """The model of `comet`: a name that comet-score can fetch, or a .ckpt file."""
    metricx: str = "google/metricx-24-hybrid-large-v2p6"
    """The model of `metricx`: a folder or hub id of MetricX-24."""
    metricx_tokenizer: str = "google/mt5-large"
    """Its tokenizer, that of any mT5: the models come without one."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in get_args(Metric)]
        if unknown:
            raise UserError(f"metrics.names has {unknown[0]!r}; choose among {', '.join(get_args(Metric))}")
        try:
            languages.language(self.language)
        except UserError as error:
            raise UserError(f"metrics.{error}") from None
        for name in ("ter", "bleu_13a"):
            if name in self.names:
                metrics.check_words(languages.language(self.language), name)
        if "spbleu" in self.names:
            metrics.check_pieces()
        if "comet" in self.names:
            comet.check_program()
