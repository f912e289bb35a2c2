"""An identifier of character n-grams and words: a linear model over hashed counts, as a folder of two files."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl.errors import UserError
from lsemrl.files import write_bytes, write_text
from lsemrl.identification.base import Identifier
from lsemrl.identification.windows import Told
from lsemrl.reading import Unreadable, read_bytes, read_json

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

ABOUT, WEIGHTS = "identifier.json", "weights.safetensors"
NOISE = "noise"
"""The label of what is no language: letters out of order."""
DECIDED = 0.7
"""How likely a window must be in the language, or not in it, to count. Ours."""
_VERSION = 1
_BUCKETS = 2**17
_KINDS: tuple[dict[str, Any], ...] = (
    {"analyzer": "char_wb", "ngram_range": (1, 4)},
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"\S+"},
)
_PROBE = "lorem ipsum dolor sit amet"
"""What a fitted model says of it is kept, so that a library that counts otherwise is noticed."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What an identifier is, beside its weights.

    Attributes:
        language: The code of what it tells.
        languages: The labels, that of `language` first, `NOISE` last.
        threshold: As in `Identifier`.
        temperature: What log-odds are divided by.
        settings: How it was fitted.
        figures: What was measured on held-out texts.
        versions: Of the libraries that fitted it.
    """

    language: str
    languages: tuple[str, ...]
    threshold: float
    temperature: float
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class NgramIdentifier(Identifier):
    """A fitted model.

    Args:
        about: What it is.
        weights_KD: float32, of each label over the hashed n-grams.
        bias_K: float32.
        unproven: Where it is from, and what it said of the probe when it was written; looked at when it is first asked,
            for what counts n-grams takes seconds to load.
    """

    def __init__(
        self, about: About, weights_KD: np.ndarray, bias_K: np.ndarray, unproven: tuple[Path, list[float]] | None = None
    ) -> None:
        digest = hashlib.sha256(weights_KD.tobytes() + bias_K.tobytes()).hexdigest()
        super().__init__(about.language, about.threshold, f"ngrams-{digest[:8]}")
        self.about, self._weights_KD, self._bias_K, self._digest = about, weights_KD, bias_K, digest
        self._unproven = unproven

    @property
    def identity(self) -> str:
        """See `Identifier`."""
        facts = [self._digest, self.about.threshold, self.about.temperature]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Of each label, float64 [N, K]; texts are words in lower case between spaces.

        Raises:
            UserError: This version of scikit-learn counts otherwise than the one that fitted it.
        """
        if not texts:
            return self._bias_K[None, :][:0].astype("float64")
        if self._unproven is not None:
            folder, probe = self._unproven
            if not abs(self._likely([_PROBE])[0] - probe).max() <= 1e-4:
                reason = "this version of scikit-learn counts its n-grams otherwise than the one that fitted it"
                raise UserError(_refusal(folder, reason))
            self._unproven = None
        return self._likely(texts)

    def _likely(self, texts: Sequence[str]) -> np.ndarray:
        from scipy.special import softmax

        logits_NK = features(texts) @ self._weights_KD.T + self._bias_K
        likely_NK: np.ndarray = softmax(logits_NK.astype("float64") / self.about.temperature, axis=1)
        return likely_NK

    def told(self, texts: Sequence[str]) -> list[Told]:
        """See `Identifier`."""
        return [
            Told(share=each, decided=max(each, 1 - each) >= DECIDED)
            for each in self.probabilities(texts)[:, 0].tolist()
        ]

    def save(self, folder: Path) -> None:
        """Write it into a folder that is there.

        Raises:
            UserError: It cannot be written.
        """
        from safetensors.numpy import save

        probe = self.probabilities([_PROBE])[0].tolist()
        said = {"version": _VERSION, **asdict(self.about), "sha256": self._digest, "probe": probe}
        write_bytes(folder / WEIGHTS, save({"weights": self._weights_KD, "bias": self._bias_K}))
        write_text(folder / ABOUT, json.dumps(said, ensure_ascii=False, indent=1) + "\n")


def load(folder: Path) -> NgramIdentifier:
    """Read what `save` wrote; nothing in it is run.

    Raises:
        UserError: It is not there, damaged, or of another version. Whether n-grams are counted as they were is looked
            at when it is first asked.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load as tensors_of

    try:
        said = read_json(folder / ABOUT)
        if said["version"] != _VERSION:
            raise Unreadable(f"it is of version {said['version']}, and this lsemrl reads {_VERSION}")
        tensors = tensors_of(read_bytes(folder / WEIGHTS))
        about = About(
            language=str(said["language"]),
            languages=tuple(map(str, said["languages"])),
            threshold=float(said["threshold"]),
            temperature=float(said["temperature"]),
            **{name: dict(said[name]) for name in ("settings", "figures", "versions")},
        )
        weights_KD, bias_K = tensors["weights"], tensors["bias"]
        count = len(about.languages)
        sound = weights_KD.shape == (count, len(_KINDS) * _BUCKETS) and bias_K.shape == (count,)
        sound = sound and about.languages[0] == about.language and weights_KD.dtype == bias_K.dtype == np.float32
        probe = [float(share) for share in said["probe"]]
        sound = sound and len(probe) == count
        if not (sound and 0 < about.threshold <= 1 and 0 < about.temperature < math.inf):
            raise Unreadable("its parts do not fit together")
        found = NgramIdentifier(about, weights_KD, bias_K, (folder, probe))
        if found._digest != said["sha256"]:
            raise Unreadable(f"{WEIGHTS} is damaged, or of another identifier")
    except Unreadable as reason:
        raise UserError(_refusal(folder, str(reason))) from reason
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise UserError(_refusal(folder, f"{ABOUT} or {WEIGHTS} is damaged")) from error
    return found


def _refusal(folder: Path, reason: str) -> str:
    return f"language.identifier is {str(folder)!r}, which cannot be read ({reason}); write it again by fit-language"


def features(texts: Sequence[str]) -> csr_matrix:
    """Counts of n-grams and of words, hashed, each kind of length 1: float32 [N, D]."""
    from scipy.sparse import hstack

    return hstack([counter.transform(texts) for counter in _counters()]).tocsr()


@functools.cache
def _counters() -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    same: dict[str, Any] = {"n_features": _BUCKETS, "alternate_sign": False, "lowercase": False, "dtype": "float32"}
    return [HashingVectorizer(**kind, **same) for kind in _KINDS]
