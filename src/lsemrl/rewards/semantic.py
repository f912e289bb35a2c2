"""Whether a completion means what its reference means, by the cosine of a frozen sentence encoder."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsemrl import micro
from lsemrl.rewards.base import Reward
from lsemrl.types import Completion, UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_CACHE_SIZE = 16_384
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


class SemanticSimilarity(Reward):
    """R_sim of the paper (arXiv 2605.14366): 0 if s <= tau, else (s - tau) / (1 - tau), for s the cosine.

    It is the cosine with the nearest of the example's references. An empty text, and one with U+FFFD (bytes that are
    no character), gets 0 whatever tau is. A completion cut at the length limit is scored by what is there.

    Args:
        weight: 1.5 in the paper.
        encoder: A SentenceTransformer folder, a hub id, or "micro" for the embedded one.
        threshold: tau, in [-1, 1). The paper takes the minimal adequacy seen in the cold start and names no number.
        batch_size: How many outputs are encoded at once.
        max_tokens: What the encoder reads of a text, in tokens; its own limit if None. What is longer is cut, counted
            and warned of once.
        device: Where to encode; a GPU if there is one, if None.

    Attributes:
        encoder: The SentenceTransformer, frozen, float32.

    Raises:
        UserError: A field is out of range, or the encoder is none or cannot be loaded.
    """

    def __init__(
        self,
        weight: float = 1.5,
        encoder: str = micro.NAME,
        threshold: float = 0.0,
        batch_size: int = 64,
        max_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(weight)
        if not -1 <= threshold < 1:
            raise UserError(f"threshold (tau) is {threshold} in SemanticSimilarity: set it in [-1, 1)")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size} in SemanticSimilarity: set it to 1 or more")
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens} in SemanticSimilarity: set it to 1 or more, or to null")
        self.threshold = threshold
        self.batch_size = batch_size
        self.device = device
        # Loaded now and not at the first use: a bad encoder should stop a run before its policy is loaded.
        self.encoder = _load(encoder)
        if max_tokens is not None:
            self._limit(encoder, max_tokens)
        self._name = encoder
        self._counts = Counter(
            {"overlong/outputs": 0, "overlong/references": 0, "empty/outputs": 0, "broken/outputs": 0}
        )
        self._warned = False
        self._reference = functools.lru_cache(_CACHE_SIZE)(self._encode_reference)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1]."""
        broken_N = torch.tensor([_BROKEN in completion.text for completion in completions], dtype=torch.bool)
        empty_N = torch.tensor([not completion.text.strip() for completion in completions], dtype=torch.bool)
        self._counts["broken/outputs"] += int(broken_N.sum())
        self._counts["empty/outputs"] += int(empty_N.sum())
        # A broken text is dropped here so that no time is spent on encoding it.
        similarity_N = self.similarity(
            ["" if _BROKEN in completion.text else completion.text for completion in completions],
            [completion.example.references for completion in completions],
        )
        scaled_N = (similarity_N - self.threshold).clamp(min=0) / (1 - self.threshold)
        return scaled_N.masked_fill(broken_N | empty_N, 0.0)

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
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for text in outputs if text.strip()))}
        similarity_N = torch.zeros(len(outputs))
        if not rows:
            return similarity_N
        outputs_UH, overlong_U = self._encode(list(rows))
        for at, (output, texts) in enumerate(zip(outputs, references, strict=True)):
            if output in rows:
                references_RH = torch.stack([self._reference(text) for text in texts])
                # Not a matrix product, which autocast would take to bfloat16.
                similarity_N[at] = (references_RH * outputs_UH[rows[output]]).sum(dim=1).max()
                self._counts["overlong/outputs"] += overlong_U[rows[output]]
        self._warn()
        return similarity_N.clamp(-1.0, 1.0)

    @property
    def counters(self) -> dict[str, float]:
        """Outputs and (distinct) references longer than the encoder reads, outputs that were empty or broken."""
        return {name: float(count) for name, count in self._counts.items()}

    def _encode_reference(self, text: str) -> Tensor:
        # By itself, never in a batch: a vector then depends on its text alone and not on what it was padded with, so
        # that a resumed run, whose cache is cold, gets the same bits.
        vector_1H, (overlong,) = self._encode([text])
        self._counts["overlong/references"] += overlong
        return vector_1H[0]

    def _encode(self, texts: list[str]) -> tuple[Tensor, list[bool]]:
        """Unit vectors [U, H], float32 on the CPU, and which texts are longer than the encoder reads."""
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # Mixed-precision training must not reach the encoder: bfloat16 resolves a cosine to a hundredth only.
        with torch.autocast(device.type, enabled=False):
            vectors_UH = self.encoder.encode(
                texts,
                batch_size=self.batch_size,
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
                device=str(device),
            )
        vectors_UH = vectors_UH.to("cpu", torch.float32)
        if not vectors_UH.isfinite().all():
            raise UserError(f"encoder {self._name!r} gave a vector that is not finite: use another one")
        return vectors_UH, self._overlong(texts)

    def _overlong(self, texts: list[str]) -> list[bool]:
        from transformers import PreTrainedTokenizerBase

        tokenizer, limit = self.encoder.tokenizer, self.encoder.max_seq_length
        if limit is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return [False] * len(texts)
        ids = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(row) > limit for row in ids]

    def _warn(self) -> None:
        if not self._warned and self._counts["overlong/outputs"] + self._counts["overlong/references"]:
            self._warned = True
            warnings.warn(
                f"the encoder reads {self.encoder.max_seq_length} tokens and some texts are longer: similarity is that "
                "of their beginnings; the counters overlong/outputs and overlong/references say how many, and "
                "max_tokens raises the limit where the encoder allows it",
                stacklevel=3,
            )

    def _limit(self, name: str, max_tokens: int) -> None:
        """Set what the encoder reads, trying it out where it is more than the encoder was saved with."""
        own = self.encoder.max_seq_length
        self.encoder.max_seq_length = max_tokens
        if max_tokens > (math.inf if own is None else own):
            try:
                self.encoder.encode(" ".join(["a"] * max_tokens), show_progress_bar=False)
            except (IndexError, RuntimeError) as error:
                raise UserError(
                    f"max_tokens is {max_tokens} in SemanticSimilarity: encoder {name!r} has no positions for so many, "
                    f"set it to {own} or less"
                ) from error


def _load(name: str) -> SentenceTransformer:
    """The encoder in eval mode, frozen, float32, on the CPU; the global random state is left as it was."""
    path = micro.ENCODER if name == micro.NAME else Path(name)
    if path.exists() and not (path / "modules.json").is_file():
        raise UserError(
            f"encoder is {name!r}, which is no SentenceTransformer folder (it has no modules.json): name a folder "
            "written by SentenceTransformer.save, or a hub id"
        )
    if not path.exists() and (name == micro.NAME or not _HUB_ID.fullmatch(name)):
        raise UserError(
            f"encoder is {name!r}, and there is no such folder: name a SentenceTransformer folder or a hub id"
        )
    from sentence_transformers import SentenceTransformer

    # Building a model draws its weights before they are overwritten, and the run's random numbers are not ours to use.
    with torch.random.fork_rng(devices=[]):
        try:
            encoder = SentenceTransformer(
                str(path) if path.exists() else name,
                device="cpu",
                local_files_only=path.exists(),
                model_kwargs={"dtype": torch.float32},
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"encoder {name!r} could not be loaded ({type(error).__name__}: {reason}): name a SentenceTransformer "
                "folder or a hub id"
            ) from error
    return encoder.float().eval().requires_grad_(False)
