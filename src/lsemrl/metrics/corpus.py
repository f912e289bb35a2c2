"""Corpus scores of outputs against references, each with the signature that says how it was computed.

What goes wrong on scripts without spaces is refused here: sacreBLEU's 13a, zh and none tokenizers see one word in a
Tibetan sentence and give 0, and so does ROUGE as it comes. Texts are cut into the units of `lsemrl.scripts` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsemrl import languages
from lsemrl.canonical import canonical
from lsemrl.errors import UserError
from lsemrl.languages import UNDECIDED, Language
from lsemrl.scripts import scripts_of, splits, unit_of, units

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

POOLED = ("chrf", "chrf_pp", "ter")
"""Scores whose corpus value is not the mean of those of outputs, which are their own scores: of sentences."""
_PIECES = "flores200"
_EMPTY = "outputs is empty: a score needs at least one"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number and how it came about.

    Attributes:
        value: In [0, 1], higher is better; of TER 0 is best, and there is no end.
        signature: Metric, tokenizer, number of references and version, in the manner of sacreBLEU.
        rows: What each output scored by itself; `value` is their mean but for chrF and TER, which pool what they count
            over the corpus. Empty for BLEU, which says little of a single sentence.
        counts: What each output adds to a score that is made of sums (see `pooled`), such as matches and lengths; empty
            where `value` is the mean of `rows`.
    """

    value: float
    signature: str
    rows: tuple[float, ...]
    counts: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def mean(cls, rows: tuple[float, ...], signature: str) -> Score:
        """That of what outputs score by themselves."""
        return cls(value=sum(rows) / len(rows), signature=signature, rows=rows)


def means_of(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each score, and that of exact match and F1, by which CMRC ranks."""
    means = {name: sum(values) / len(values) for name, values in rows.items()}
    return means | ({"average": (means["em"] + means["f1"]) / 2} if "em" in means else {})


def chrf(outputs: Sequence[str], references: Sequence[Sequence[str]], *, words: bool = False) -> Score:
    """Corpus chrF2 of sacreBLEU: F2 over character 1- to 6-grams, spaces left out.

    Args:
        outputs: N texts.
        references: One or more for each output.
        words: Count words and pairs of words too, which are told by spaces: chrF2++.

    Raises:
        UserError: There are no outputs, or an output has no reference.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _by_output(CHRF(word_order=2 if words else 0), "chrF2++" if words else "chrF2", outputs, references)


def ter(outputs: Sequence[str], references: Sequence[Sequence[str]], language: str | Language) -> Score:
    """Corpus translation edit rate of sacreBLEU: edits for each word of the references, 0 being best.

    Args:
        outputs: N texts.
        references: One or more for each output.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: There are no outputs, an output has no reference, or the language has no spaces between words.
    """
    from sacrebleu.metrics.ter import TER

    check_words(languages.language(language), "ter")
    return _by_output(TER(), "TER", outputs, references)


def bleu_13a(outputs: Sequence[str], references: Sequence[Sequence[str]], language: str | Language) -> Score:
    """Corpus BLEU-4 of sacreBLEU as it comes, over words and punctuation, which is what most papers report.

    Args:
        outputs: N texts.
        references: One or more for each output.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: As `ter`.
    """
    from sacrebleu.metrics.bleu import BLEU

    check_words(languages.language(language), "bleu_13a")
    return _sacrebleu(BLEU(), "BLEU", *_comparable(outputs, references))


def spbleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Corpus BLEU-4 of sacreBLEU over the pieces of the SentencePiece model of FLORES-200, whatever the script.

    Args:
        outputs: N texts.
        references: One or more for each output.

    Raises:
        UserError: As `chrf`; or the model is not at hand.
    """
    from sacrebleu.metrics.bleu import BLEU

    check_pieces()
    return _sacrebleu(BLEU(tokenize=_PIECES, force=True), "spBLEU", *_comparable(outputs, references))


def syllable_bleu(outputs: Sequence[str], references: Sequence[Sequence[str]], language: str | Language) -> Score:
    """Corpus BLEU-4 of sacreBLEU over the units of the language: Tibetan syllables, Chinese characters, else words.

    Args:
        outputs: N texts.
        references: One or more for each output.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: There are no outputs, an output has no reference, the language is unknown, or most long references
            cannot be cut into units.
    """
    from sacrebleu.metrics.bleu import BLEU

    profile = languages.language(language)
    outputs, references = _comparable(outputs, references)
    check_units(references, profile)
    # force: the units have no punctuation left, and sacreBLEU need not warn of tokenized full stops.
    scored = _sacrebleu(
        BLEU(tokenize="none", force=True),
        "BLEU",
        [" ".join(units(text)) for text in outputs],
        # By the length of an emoji no output would be too short.
        [[own for text in texts if (own := " ".join(units(text)))] or [""] for texts in references],
    )
    return replace(scored, signature=scored.signature.replace("tok:none", _tokenizer(profile, references)))


def syllable_rouge_l(outputs: Sequence[str], references: Sequence[Sequence[str]], language: str | Language) -> Score:
    """Mean ROUGE-L F1 of torchmetrics over the units of the language, against the best of the references.

    Args:
        outputs: N texts.
        references: One or more for each output.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: As `syllable_bleu`.
    """
    import torchmetrics
    from torchmetrics.functional.text.rouge import rouge_score

    profile = languages.language(language)
    outputs, references = _comparable(outputs, references)
    check_units(references, profile)
    rows = tuple(
        # Its own normalizer deletes everything but a-z and 0-9.
        float(
            rouge_score(
                [output], [list(texts)], accumulate="best", rouge_keys="rougeL", normalizer=str, tokenizer=units
            )["rougeL_fmeasure"]
        )
        for output, texts in zip(outputs, references, strict=True)
    )
    counts = {len(texts) for texts in references}
    nrefs = counts.pop() if len(counts) == 1 else "var"
    version = f"torchmetrics-{torchmetrics.__version__}"
    how = f"nrefs:{nrefs}|case:mixed|best|f1|{_tokenizer(profile, references)}"
    return Score.mean(rows, f"rougeL|{how}|version:{version}")


def pooled(name: str, counts_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores of R corpora, in [0, 1] but for TER, from the sums of what their outputs count.

    Args:
        name: One of the scores that have `Score.counts`, such as bleu.
        counts_RK: K sums for each corpus.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    others = {"chrf": CHRF(), "chrf_pp": CHRF(word_order=2), "ter": TER()}
    metric: Metric = others.get(name, BLEU())  # how BLEU cuts texts is in the counts
    return np.array([metric._aggregate_and_compute([list(sums_K)]).score / 100 for sums_K in counts_RK])


def language_rate(outputs: Sequence[str], language: str | Language) -> Score:
    """The share of outputs that pass for the language, by script and by its identifier where it has one.

    An output without a letter does not pass; one of which the identifier cannot tell counts half.

    Args:
        outputs: N texts.
        language: A code of `lsemrl.languages`, or a profile.

    Raises:
        UserError: There are no outputs, or the language is unknown.
    """
    profile = languages.language(language)
    if not outputs:
        raise UserError(_EMPTY)
    rows = tuple(
        UNDECIDED if verdict == UNDECIDED else float(verdict > UNDECIDED) for verdict in profile.verdicts(outputs)
    )
    return Score.mean(rows, f"language_rate|lang:{profile.code}|{profile.rule}")


def _tokenizer(profile: Language, references: Sequence[Sequence[str]] = ()) -> str:
    """What cuts texts, by the language, or by the script of references that are not in its own."""
    script = next(iter(scripts_of(*chain.from_iterable(references))), profile.scripts[0])
    if script in profile.scripts:
        return f"tok:lsemrl-{profile.code}-{profile.unit}"
    return f"tok:lsemrl-{script}-{unit_of(script)}"


def _sacrebleu(metric: Metric, name: str, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    # sacreBLEU wants the first references of all outputs, then the second ones; None where an output has fewer.
    streams = [list(stream) for stream in zip_longest(*references)]
    # Its `corpus_score` is these two, and keeps the counts for itself.
    counts = metric._extract_corpus_statistics(list(outputs), streams)
    value = metric._aggregate_and_compute(counts).score / 100
    kept = tuple(tuple(float(count) for count in row) for row in counts)
    return Score(value=value, signature=f"{name}|{metric.get_signature()}", rows=(), counts=kept)


def _by_output(metric: Metric, name: str, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Of the corpus, and of each output by itself."""
    score = _sacrebleu(metric, name, *_comparable(outputs, references))
    rows = tuple(metric._aggregate_and_compute([list(row)]).score / 100 for row in score.counts)
    return replace(score, rows=rows)


def check_words(profile: Language, metric: str) -> None:
    """Refuse a language in which spaces do not tell words.

    Raises:
        UserError: `metric` would take a sentence for a word.
    """
    if profile.unit != "word":
        raise UserError(
            f"metrics.names has {metric!r}, which counts words between spaces, and {profile.name} is written without; "
            "leave it out, or use chrf"
        )


def check_pieces() -> None:
    """Refuse to score by pieces where what cuts them is not at hand: sacreBLEU would fetch it without asking.

    Raises:
        UserError: What to install, or which file to put where.
    """
    from sacrebleu.tokenizers import tokenizer_spm as spm

    url = spm.SPM_MODELS[_PIECES]["url"]
    model = Path(spm.SACREBLEU_DIR) / "models" / Path(url).name  # type: ignore[attr-defined]
    if not model.is_file():
        raise UserError(
            f"metrics.names has 'spbleu', whose SentencePiece model is not at {str(model)!r}; save {url} there, or "
            "leave it out"
        )
    if find_spec("sentencepiece") is None:
        raise UserError("metrics.names has 'spbleu', which needs sentencepiece; pip install lsemrl[spbleu]")


def _comparable(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Both in one form, if they can be scored."""
    if not outputs:
        raise UserError(_EMPTY)
    if len(outputs) != len(references):
        raise UserError(f"references has {len(references)} rows for {len(outputs)} outputs: give one row for each")
    for row, texts in enumerate(references):
        if not texts:
            raise UserError(f"references is empty for output {row}: give at least one")
    return list(map(canonical, outputs)), [list(map(canonical, texts)) for texts in references]


def check_units(references: Sequence[Sequence[str]], profile: Language) -> None:
    """Refuse a writing that the splitter leaves whole; a stray long word or URL is let pass.

    Raises:
        UserError: BLEU and ROUGE-L would be 0 whatever the outputs say.
    """
    texts = [text for row in references for text in row]
    whole = [text for text in texts if not splits(text)]
    if 2 * len(whole) > len(texts):
        raise UserError(
            f"language is {profile.code!r}, whose {_tokenizer(profile)} leaves references such as {whole[0][:20]!r}... "
            f"in {len(units(whole[0]))} pieces, so that the score would be 0 whatever the outputs say: use chrf"
        )
