"""Whether a completion means what its reference means, by the cosine of a frozen sentence encoder."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lsemrl import micro
from lsemrl.canonical import canonical
from lsemrl.devices import computing_device
from lsemrl.rewards.base import Against, Reward
from lsemrl.rewards.cache import VectorCache, fingerprint, user_cache_folder
from lsemrl.rewards.encoder import (
    EncoderDtype,
    computing_dtype,
    frozen_encoder,
    length_limit,
    overlong,
    reads,
    set_length_limit,
)
from lsemrl.types import Completion, Example, UserError

_CACHE_SIZE = 16_384
_AT_ONCE = 512
_NO_CACHE = "none"
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class SemanticSimilarity(Reward):
    """R_sim of the paper (arXiv 2605.14366): 0 if s <= tau, else (s - tau) / (1 - tau), for s the cosine.

    It is the cosine with the nearest of the example's references, or with its source. An empty text, and one with
    U+FFFD (bytes that are no character), gets 0 whatever tau is. A completion cut at the length limit is scored by what
    is there.

    Args:
        weight: 1.5 in the paper.
        encoder: A SentenceTransformer folder, a hub id, or "micro" for the embedded one.
        threshold: tau, in [-1, 1). The paper takes the minimal adequacy seen in the cold start and names no number.
        against: The references; or the source, which needs none, and an encoder of both languages. Nothing is likelier
            to mean the source than a copy of it, so that a gate by language has to keep copies from earning.
        batch_size: How many outputs are encoded at once.
        max_tokens: What the encoder reads of a text, in tokens; its own limit if None. What is longer is cut, counted
            and warned of once.
        device: Where to encode; a GPU if there is one, if None.
        dtype: What the encoder's transformer computes in; auto is bfloat16 on a GPU that has it and float32 elsewhere.
            Pooling, normalisation and cosines are float32 always. In bfloat16 the cosines of the embedded encoder lie
            within 0.005 of float32's and move by up to 0.0005 with the batch that a text is encoded in, and deeper
            encoders round more often: take float32 for metrics, and where 0.001 (`advantages.resolution`) matters.
        cache_dir: Folder where vectors of references are kept for later runs, each encoder's apart; null is
            lsemrl/embeddings in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), "none" keeps them in memory
            only. It may be shared by processes, and deleted at any time.

    Attributes:
        encoder: The SentenceTransformer, frozen.
        name: The encoder, as it was named.

    Raises:
        UserError: A field is out of range, or the encoder is none or cannot be loaded.
    """

    def __init__(
        self,
        weight: float = 1.5,
        encoder: str = micro.NAME,
        threshold: float = 0.0,
        against: Against = "reference",
        batch_size: int = 64,
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: EncoderDtype = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(weight)
        if not -1 <= threshold < 1:
            raise UserError(f"threshold (tau) is {threshold} in SemanticSimilarity: set it in [-1, 1)")
        if against not in get_args(Against):
            raise UserError(
                f"against is {against!r} in SemanticSimilarity: choose one of {', '.join(get_args(Against))}"
            )
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size} in SemanticSimilarity: set it to 1 or more")
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens} in SemanticSimilarity: set it to 1 or more, or to null")
        self.device = computing_device(device, "device of SemanticSimilarity")
        self.threshold, self.against = threshold, against
        self.reads_references = against == "reference"
        self.batch_size = batch_size
        # Loaded now and not at the first use: a bad encoder should stop a run before its policy is loaded.
        self.encoder = frozen_encoder(encoder, computing_dtype(dtype, self.device))
        own = length_limit(self.encoder)
        if max_tokens is not None and not set_length_limit(self.encoder, max_tokens):
            raise UserError(
                f"max_tokens is {max_tokens} in SemanticSimilarity, but encoder {encoder!r} reads all of any text; set "
                "it to null"
            )
        if not reads(self.encoder):
            fewer = f"{own} or fewer" if max_tokens is not None else f"fewer than {own}"
            raise UserError(
                f"max_tokens is {max_tokens} in SemanticSimilarity: encoder {encoder!r} has no positions for "
                f"{self.encoder.max_seq_length} tokens, set it to {fewer}"
            )
        self.name = encoder
        self._counts = Counter({"overlong/outputs": 0, "empty/outputs": 0, "broken/outputs": 0})
        self._warned = False
        self._reference = functools.lru_cache(_CACHE_SIZE)(self._embed_reference)
        self._cache_dir = cache_dir

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]."""
        texts = [completion.text for completion in completions]
        similarity_N = self.cosines(completions)
        # Counted last, for a part that fails is asked again.
        self._counts["broken/outputs"] += sum(_BROKEN in text for text in texts)
        self._counts["empty/outputs"] += sum(not text.strip() for text in texts)
        paid = [
            paid_for(text, cosine, self.threshold) for text, cosine in zip(texts, similarity_N.tolist(), strict=True)
        ]
        return torch.tensor(paid, dtype=torch.float32)

    def cosines(self, completions: Sequence[Completion]) -> Tensor:
        """Of each completion what tau is of: the cosine with what it is held against, 0 where it says nothing."""
        # No time is spent on encoding what earns nothing.
        return self.similarity(
            [completion.text if says_something(completion.text) else "" for completion in completions],
            [self._wholes(completion.example) for completion in completions],
        )

    def look_at(self, examples: Sequence[Example]) -> str:
        """How many texts to hold outputs against it reads in part only, and what earns most against the source."""
        # Once of all rows: what each rank comes across adds up to no number of theirs.
        texts = list(dict.fromkeys(canonical(text) for example in examples for text in self._wholes(example)))
        parts = (overlong(self.encoder, texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE))
        longer = sum(map(sum, parts))
        found = []
        if longer:
            found.append(
                f"{longer:,} of {len(texts):,} different {self.against}s are longer than the "
                f"{self.encoder.max_seq_length:,} tokens that the encoder reads, so that outputs are held against "
                "their beginnings; max_tokens raises that where the encoder allows it"
            )
        if not self.reads_references:
            found.append(
                "outputs are held against their source, of which a copy earns most: a gate by language keeps it from "
                "that"
            )
        return "; ".join(found)

    def similarity(self, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """The cosine of each output with the nearest of its references, for metrics: no threshold, no rescaling.

        Args:
            outputs: N texts; an empty one has cosine 0, any other is taken as it stands.
            references: One or more for each output.

        Returns:
            float32 [N] in [-1, 1].

        Raises:
            UserError: An output has no reference, or the encoder gives no finite vector.
        """
        assert len(outputs) == len(references), "every output has its references"
        for row, texts in enumerate(references):
            if not texts:
                raise UserError(f"references is empty for output {row}: SemanticSimilarity needs at least one")
        # Before anything is cut, encoded or looked up: a cached vector is one text's, however it is spelt.
        outputs, references = list(map(canonical, outputs)), [list(map(canonical, texts)) for texts in references]
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for text in outputs if text.strip()))}
        similarity_N = torch.zeros(len(outputs))
        if not rows:
            return similarity_N
        outputs_UH, overlong_U = self._encode(list(rows)), overlong(self.encoder, list(rows))
        for at, (output, texts) in enumerate(zip(outputs, references, strict=True)):
            if output in rows:
                references_RH = torch.stack([self._reference(text) for text in texts])
                # Not a matrix product, which autocast would take to bfloat16.
                similarity_N[at] = (references_RH * outputs_UH[rows[output]]).sum(dim=1).max()
                self._counts["overlong/outputs"] += overlong_U[rows[output]]
        if any(overlong_U):
            self._warn()
        return similarity_N.clamp(-1.0, 1.0)

    @property
    def counters(self) -> dict[str, float]:
        """Outputs that were longer than the encoder reads, empty or broken."""
        return {name: float(count) for name, count in self._counts.items()}

    def state(self) -> dict[str, Any]:
        """The counters."""
        return {"counts": dict(self._counts)}

    def resume(self, state: dict[str, Any]) -> None:
        """Count on."""
        self._counts = Counter({name: state["counts"].get(name, 0) for name in self._counts})

    def _wholes(self, example: Example) -> Sequence[str]:
        return example.references if self.reads_references else (example.source,)

    def _embed_reference(self, text: str) -> Tensor:
        if overlong(self.encoder, [text])[0]:
            self._warn()
        vector_H = self._cache.get(text) if self._cache else None
        if vector_H is None:
            # By itself, never in a batch: a vector then depends on its text alone and not on what it was padded with,
            # so that a resumed run, whose memory is cold, gets the same bits.
            vector_H = self._encode([text])[0]
            if self._cache:
                self._cache.put(text, vector_H)
        return vector_H

    @functools.cached_property
    def _cache(self) -> VectorCache | None:
        # Made at the first use, when threads and matmul precision are those of the run.
        if self._cache_dir == _NO_CACHE:
            return None
        root = Path(self._cache_dir).expanduser() if self._cache_dir else user_cache_folder()
        name = fingerprint(self.encoder, self.device) if root else None
        return VectorCache(root / name) if root and name else None

    def _encode(self, texts: list[str]) -> Tensor:
        """Unit vectors [U, H], float32 on the CPU."""
        # The policy's mixed precision must not reach the encoder, which has a dtype of its own.
        with torch.autocast(self.device.type, enabled=False):
            vectors_UH = self.encoder.encode(
                texts,
                batch_size=self.batch_size,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
                device=str(self.device),
            )
        vectors_UH = vectors_UH.to("cpu", torch.float32)
        if not vectors_UH.isfinite().all():
            raise UserError(f"encoder {self.name!r} gave a vector that is not finite: use another one")
        return vectors_UH

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the encoder reads {self.encoder.max_seq_length} tokens and some texts are longer: similarity is that "
                "of their beginnings; the counter overlong/outputs says of how many outputs, and max_tokens raises the "
                "limit where the encoder allows it",
                stacklevel=3,
            )


def says_something(text: str) -> bool:
    """Whether the reward looks at an output at all: it is neither empty nor broken (U+FFFD)."""
    return bool(text.strip()) and _BROKEN not in text


def rescaled(cosine: float, threshold: float) -> float:
    """The reward of a cosine, in [0, 1]; `threshold` is tau, in [-1, 1)."""
    return max(0.0, cosine - threshold) / (1 - threshold)


def paid_for(text: str, cosine: float, threshold: float) -> float:
    """What an output with this cosine earns, in [0, 1]: nothing, whatever tau is, where it says nothing."""
    return rescaled(cosine, threshold) if says_something(text) else 0.0
