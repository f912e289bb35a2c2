"""Fits an identifier on texts of a language and of those that it could be taken for, and measures it on others."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from lsemrl.errors import UserError
from lsemrl.identification.ngrams import NOISE, About, NgramIdentifier, features
from lsemrl.identification.windows import LETTERS, words_of
from lsemrl.scripts import scripts_of, unit_of

FEWEST = 100
_CROPS = (10, 25, 25, 25, LETTERS)
"""Letters of what is cut out of each text to learn from beside it: two words, five, twelve."""
_SURE = 0.95
_HIGHEST = 0.5
"""No threshold is set above: what is mostly of the language passes."""
LENGTHS = ((1, 4), (5, 9), (10, 19), (20, None))
"""Words in texts that are counted together, or what the language is cut into instead."""


@dataclass(frozen=True, kw_only=True)
class IdentifierFit:
    """How an identifier is fitted."""

    false_alarm: float = 0.01
    """Share of held-out texts of the language that may be refused, in (0, 0.5]. A text passes where half of it is of
    the language, or less where that would refuse more, as long as no larger share of any other passes."""
    held_out: float = 0.2
    """Share of the texts, in (0, 0.5], that is measured on and not learned from."""
    max_texts: int = 20_000
    """Use so many texts of each language, at most, taken evenly from all of the file."""
    inverse_penalty: float = 5.0
    """C of scikit-learn's logistic regression: lower for few texts, which are else learned by heart."""
    seed: int = 0
    """Of what is held out and cut."""

    def __post_init__(self) -> None:
        for name in ("false_alarm", "held_out"):
            if not 0 < getattr(self, name) <= 0.5:
                raise UserError(f"fit.{name} is {getattr(self, name)}; give a share above 0 and at most 0.5")
        if self.max_texts < FEWEST:
            raise UserError(f"fit.max_texts is {self.max_texts}; give {FEWEST} or more")
        if not 0 < self.inverse_penalty < float("inf"):
            raise UserError(f"fit.inverse_penalty is {self.inverse_penalty}; give a number above 0")


class Text(NamedTuple):
    """A text to learn from.

    Attributes:
        key: What it has in common with its translations, such as its file and line: they are held out together.
        text: What it says.
    """

    key: str
    text: str


def fit(language: str, texts: Mapping[str, Sequence[Text]], settings: IdentifierFit) -> NgramIdentifier:
    """Fit and measure.

    Args:
        language: The code of what is to be told; among `texts`.
        texts: By language. Those with the same words in two languages are left out of both.
        settings: How.

    Raises:
        UserError: There are no two languages, too few texts of one, or one is called as noise is.
    """
    from sklearn.linear_model import LogisticRegression

    names = [language, *(name for name in texts if name != language)]
    words = _distinct({name: texts[name] for name in names}, settings)
    learned, held_out = _split(words, settings)
    rng = random.Random(settings.seed)
    labelled = [
        (" ".join(piece), at) for at, name in enumerate(names) for each in learned[name] for piece in _pieces(each, rng)
    ]
    # Twice as many as of one text, so that what is no language is not rarer than what is.
    broken = [_shuffled(rng.choice(learned[name]), rng) for name in names for _ in range(len(learned[name]) // 2)]
    labelled += [(" ".join(piece), len(names)) for piece in broken]
    model = LogisticRegression(C=settings.inverse_penalty, max_iter=300, tol=1e-3, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged to the last digit
        counts_ND = features([text for text, _ in labelled])
        seen = np.flatnonzero(counts_ND.getnnz(axis=0))  # what no text has keeps the weight 0
        model.fit(counts_ND[:, seen], [at for _, at in labelled])
    weights_KD = np.zeros((len(names) + 1, counts_ND.shape[1]), dtype=np.float32)
    weights_KD[:, seen] = model.coef_
    bias_K = model.intercept_.astype(np.float32)

    about = About(
        language=language,
        languages=(*names, NOISE),
        threshold=_HIGHEST,
        temperature=1.0,
        settings=asdict(settings),
        versions={name: version(name) for name in ("scikit-learn", "numpy")},
    )
    pieces = {name: [" ".join(_crop(each, 25, rng)) for each in held_out[name]] for name in names}
    raw = NgramIdentifier(about, weights_KD, bias_K)
    about = replace(about, temperature=_temperature(raw, pieces))
    calibrated = NgramIdentifier(about, weights_KD, bias_K)
    own, *others = (
        [each for each in calibrated.shares([" ".join(words) for words in held_out[name]]) if each is not None]
        for name in names
    )
    threshold, bound = _threshold(own, others, settings.false_alarm)
    about = replace(about, threshold=threshold)
    final = NgramIdentifier(about, weights_KD, bias_K)
    figures = {
        "learned": {name: len(learned[name]) for name in names},
        "held_out": {name: len(held_out[name]) for name in names},
        "false_alarm_at_most": bound,
        "calibration_error": {"before": _error(raw, pieces), "after": _error(final, pieces)},
        "confusions": _confusions(final, held_out),
        "rows": _rows(final, held_out, rng),
    }
    return NgramIdentifier(replace(about, figures=figures), weights_KD, bias_K)


def _distinct(texts: Mapping[str, Sequence[Text]], settings: IdentifierFit) -> dict[str, list[tuple[str, list[str]]]]:
    """Key and words of the texts that are of one language only, each once, and at most as many as asked.

    Raises:
        UserError: There are no two languages, or too few texts of one.
    """
    if NOISE in texts:
        raise UserError(f"texts has {NOISE!r}, which is what letters out of order are called; name it otherwise")
    if len(texts) < 2:
        raise UserError("texts has no other language; name at least one that it could be taken for, such as the source")
    found = {
        name: {" ".join(words): (each.key, words) for each in rows if (words := words_of(each.text))}
        for name, rows in texts.items()
    }
    left = {
        name: [
            entry
            for said, entry in rows.items()
            if not any(said in others for other, others in found.items() if other != name)
        ]
        for name, rows in found.items()
    }
    for name, rows in left.items():
        if len(rows) < FEWEST:
            raise UserError(
                f"texts.{name} has {len(rows)} different texts with letters that no other language has too; give "
                f"{FEWEST} or more, a sentence each"
            )
    seed = settings.seed
    return {
        name: sorted(rows, key=lambda entry: (_hash(f"taken {seed} {entry[0]}"), entry))[: settings.max_texts]
        for name, rows in left.items()
    }


def _split(
    words: Mapping[str, Sequence[tuple[str, list[str]]]], settings: IdentifierFit
) -> tuple[dict[str, list[list[str]]], dict[str, list[list[str]]]]:
    """What is learned from and what is held out, by language; texts of one key on one side."""
    sides: tuple[dict[str, list[list[str]]], dict[str, list[list[str]]]] = ({}, {})
    for name, rows in words.items():
        for at in (0, 1):
            sides[at][name] = []
        for key, said in rows:
            held_out = _hash(f"held out {settings.seed} {key}") < settings.held_out
            sides[held_out][name].append(said)
        if not sides[0][name] or not sides[1][name]:
            raise UserError(f"texts.{name} are all of one row, so that none can be held out; give them as rows")
    return sides


def _hash(text: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _pieces(words: list[str], rng: random.Random) -> Iterator[list[str]]:
    """A text and parts of it, for what is to be told is often short."""
    yield words
    total = sum(map(len, words))
    for letters in _CROPS:
        if total > letters:
            yield _crop(words, letters, rng)


def _crop(words: list[str], letters: int, rng: random.Random) -> list[str]:
    """Consecutive words with about so many letters."""
    count = max(1, round(letters * len(words) / sum(map(len, words))))
    first = rng.randrange(max(len(words) - count, 0) + 1)
    return words[first : first + count]


def _shuffled(words: list[str], rng: random.Random) -> list[str]:
    """Part of a text with the letters of each word out of order."""
    part = _crop(words, rng.choice(_CROPS), rng)
    return ["".join(rng.sample(word, len(word))) for word in part]


def _temperature(raw: NgramIdentifier, pieces: Mapping[str, Sequence[str]]) -> float:
    """What makes held-out pieces likeliest (Guo et al., arXiv 1706.04599)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    texts = [text for each in pieces.values() for text in each]
    truth = np.repeat(np.arange(len(pieces)), [len(each) for each in pieces.values()])
    logs_NK = np.log(np.clip(raw.probabilities(texts), 1e-12, None))

    def surprise(logarithm: float) -> float:
        return float(-log_softmax(logs_NK / np.exp(logarithm), axis=1)[np.arange(len(truth)), truth].mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(-2.0, 2.0), method="bounded").x))


def _threshold(shares: Sequence[float], others: Sequence[Sequence[float]], false_alarm: float) -> tuple[float, float]:
    """Half of a text, or lower where that refuses too many of the language's own, as long as few of others pass.

    Args:
        shares: Of the language's held-out texts, as far as they can be told.
        others: Of those of each other language, likewise.
        false_alarm: Of each language so large a share at most.

    Returns:
        The threshold, and the share of all texts that it refuses at most with a certainty of 95% (Clopper and Pearson).
    """
    from scipy.stats import beta

    ordered, count = sorted(shares), len(shares)
    if not count:
        return _HIGHEST, 1.0
    # A few texts of others among the language's own would else open the gate to all of them; and language by language,
    # for many texts of a far one would make room for those of a near one.
    highest = max((sorted(each, reverse=True)[int(false_alarm * len(each))] for each in others if each), default=0.0)
    threshold = min(_HIGHEST, max(ordered[int(false_alarm * count)], float(np.nextafter(highest, 1.0)), 1e-6))
    refused = sum(share < threshold for share in ordered)
    return threshold, float(beta.ppf(_SURE, refused + 1, count - refused))


def _error(identifier: NgramIdentifier, pieces: Mapping[str, Sequence[str]]) -> float:
    """Expected calibration error of the language's probability, in ten bins."""
    texts = [text for each in pieces.values() for text in each]
    truth = np.repeat([name == identifier.language for name in pieces], [len(each) for each in pieces.values()])
    likely = identifier.probabilities(texts)[:, 0]
    bins = np.minimum((likely * 10).astype(int), 9)
    gaps = [abs(likely[bins == at].mean() - truth[bins == at].mean()) * (bins == at).mean() for at in set(bins)]
    return float(sum(gaps))


def _confusions(identifier: NgramIdentifier, held_out: Mapping[str, Sequence[list[str]]]) -> dict[str, dict[str, int]]:
    """Of the texts of each language, how many are likeliest which."""
    labels = identifier.about.languages
    found = {}
    for name, rows in held_out.items():
        best = identifier.probabilities([" ".join(each) for each in rows]).argmax(axis=1)
        found[name] = {label: int((best == at).sum()) for at, label in enumerate(labels)}
    return found


def _rows(
    identifier: NgramIdentifier, held_out: Mapping[str, Sequence[list[str]]], rng: random.Random
) -> list[dict[str, Any]]:
    """How held-out texts fare by their length, and pieces of five words."""
    own = (word for said in held_out[identifier.language] for word in said)
    cut, rows = f"{unit_of(next(iter(scripts_of(*own)), ''))}s", []
    for least, most in LENGTHS:
        label = f"{least} to {most} {cut}" if most else f"{least} {cut} and more"
        chosen = {
            name: [" ".join(each) for each in texts if least <= len(each) and (most is None or len(each) <= most)]
            for name, texts in held_out.items()
        }
        rows.append({"length": label, **measure(identifier, chosen)})
    five = {name: [" ".join(_five(each, rng)) for each in texts if len(each) >= 5] for name, texts in held_out.items()}
    return [*rows, {"length": f"5 {cut} out of any", **measure(identifier, five)}]


def _five(words: list[str], rng: random.Random) -> list[str]:
    first = rng.randrange(len(words) - 4)
    return words[first : first + 5]


def measure(identifier: NgramIdentifier, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How texts fare.

    Args:
        identifier: What judges.
        texts: By language, among them the identifier's.

    Returns:
        texts; accuracy, told of the language or not by what is likelier; decided, the share that can be told, and
        accuracy_decided, of those; refused, of the language's texts the share that does not reach the threshold;
        undecided, of them; passed, of that other language of which most do the share that does reach it. None where
        there is nothing to count.
    """
    shares = {name: identifier.shares(said) for name, said in texts.items()}
    own = shares.pop(identifier.language, [])
    passed = [
        _mean([each is not None and each >= identifier.threshold for each in of_another])
        for of_another in shares.values()
    ]
    right: list[tuple[bool, bool]] = []
    for name, said in texts.items():
        told = identifier.told([" ".join(words_of(text)) for text in said])
        right += [((each.share >= 0.5) == (name == identifier.language), each.decided) for each in told]
    decided = [correct for correct, sure in right if sure]
    return {
        "texts": len(right),
        "accuracy": _mean([correct for correct, _ in right]),
        "decided": _mean([sure for _, sure in right]),
        "accuracy_decided": _mean(decided),
        "refused": _mean([each is not None and each < identifier.threshold for each in own]),
        "undecided": _mean([each is None for each in own]),
        "passed": max((each for each in passed if each is not None), default=None),
    }


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
