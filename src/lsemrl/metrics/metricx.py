"""MetricX-24 (Juraska et al. 2024): an mT5 that tells the error of a translation, given its source and reference."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lsemrl.devices import computing_device
from lsemrl.errors import UserError, reason_of
from lsemrl.languages import Language, is_same
from lsemrl.metrics.corpus import Score
from lsemrl.rewards.cache import hash_of

log = logging.getLogger(__name__)

_ERROR = 250_089
"""The token whose logit is the error, at the first step of the decoder: <extra_id_10> of mT5."""
_BEGIN = 0
_WORST = 25.0
_LONGEST = 1536
"""Tokens of source, output and reference together, as in its training."""
_BATCH = 8
# What mT5 was trained on (Xue et al. 2021, table 6), but for what has no code of its own.
_READ = (
    "af am ar az be bg bn ca ceb co cs cy da de el en eo es et eu fa fi fil fr fy ga gd gl gu ha haw he hi hmn ht hu "
    "hy id ig is it ja jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my ne nl no ny pa pl ps pt ro ru "
    "sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk ur uz vi xh yi yo zh zu"
)


def unread(language: Language) -> str | None:
    """A sentence about a language that the model was never shown."""
    if any(is_same(language.code, code) for code in _READ.split()):
        return None
    return f"metricx says little: mT5, which it stands on, was not trained on {language.name}"


class MetricX:
    """A model of MetricX-24, read and ready.

    Args:
        model: A folder, or a hub id such as google/metricx-24-hybrid-large-v2p6.
        tokenizer: That of an mT5, all of which have the same: the models come without.

    Raises:
        UserError: Either cannot be read, or the model is none of MetricX.
    """

    def __init__(self, model: str, tokenizer: str) -> None:
        from transformers import AutoTokenizer, MT5ForConditionalGeneration  # of seconds, which few ask for

        self._device = computing_device()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            ends = self._tokenizer("a")["input_ids"][-1:] == [self._tokenizer.eos_token_id]
        except Exception as error:  # of whatever a library reads it with
            raise UserError(
                f"metrics.metricx_tokenizer {tokenizer!r} cannot be read ({reason_of(error)}); name the tokenizer of "
                "an mT5, a folder or a hub id (pip install lsemrl[metricx] for what reads it)"
            ) from error
        try:
            with torch.random.fork_rng(devices=[]):
                loaded: Any = MT5ForConditionalGeneration.from_pretrained(
                    model, dtype=torch.float32, output_loading_info=True
                )
        except Exception as error:
            raise UserError(
                f"metrics.metricx {model!r} cannot be read ({reason_of(error)}); name a model of MetricX-24, a folder "
                "or a hub id"
            ) from error
        read, found = loaded
        head = read.lm_head.weight  # which transformers ties to the embeddings where a checkpoint has none
        if found["missing_keys"] or head is read.shared.weight or len(head) <= _ERROR:
            raise UserError(
                f"metrics.metricx {model!r} is no model of MetricX-24, which has a head of its own over the vocabulary "
                "of mT5; name one such as google/metricx-24-hybrid-large-v2p6"
            )
        if not ends or len(self._tokenizer) > len(head):
            raise UserError(
                f"metrics.metricx_tokenizer {tokenizer!r} is none of an mT5, which ends a text by a token of its own "
                f"and has {len(head):,} tokens at most; name one such as google/mt5-large"
            )
        # Files of one name may be of several models.
        self._model = read.eval().requires_grad_(False).to(self._device)
        self._name = self.identity if Path(model).exists() else model

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the weights, wherever they lie."""
        return hash_of(self._model, {})[:12]

    def __call__(self, outputs: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
        """Mean error of outputs with their sources and first references, from 0 (none) to 25.

        Args:
            outputs: N texts.
            sources: What each was translated from.
            references: One or more for each output.
        """
        texts = [
            f"source: {source} candidate: {output} reference: {first}"
            for output, source, (first, *_) in zip(outputs, sources, references, strict=True)
        ]
        ids = [self._tokenizer(text)["input_ids"][:-1] for text in texts]  # without the end, as in its training
        if long := sum(len(row) >= _LONGEST for row in ids):
            log.warning("metricx reads the first %d tokens only of %d of %d rows", _LONGEST, long, len(ids))
        ids = [row[: _LONGEST - 1] for row in ids]
        rows = [0.0] * len(ids)
        by_length = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        for start in range(0, len(ids), _BATCH):
            batch = by_length[start : start + _BATCH]
            for at, error in zip(batch, self._errors([ids[at] for at in batch]), strict=True):
                rows[at] = error
        library = f"transformers-{version('transformers')}"
        signature = f"MetricX|model:{self._name}|nrefs:first|lower is better|version:{library}"
        return Score.mean(tuple(rows), signature)

    @torch.inference_mode()
    def _errors(self, ids: list[list[int]]) -> list[float]:
        width = max(map(len, ids))
        ids_NP = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=self._device)
        mask_NP = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=self._device)
        begin_N1 = torch.full((len(ids), 1), _BEGIN, device=self._device)
        logits_N1V = self._model(input_ids=ids_NP, attention_mask=mask_NP, decoder_input_ids=begin_N1).logits
        errors: list[float] = logits_N1V[:, 0, _ERROR].clamp(0, _WORST).tolist()
        return errors
