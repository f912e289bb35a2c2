"""How an encoder is adapted: settings, which are read before what trains it is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lsemrl.devices import computing_device
from lsemrl.rewards.encoder import EncoderDtype
from lsemrl.types import UserError


@dataclass(frozen=True, kw_only=True)
class EncoderTraining:
    """How the encoder is trained. The paper gives the loss and `max_tokens`; the other values are our choice."""

    epochs: float = 1.0
    """How often every pair is seen; 0 trains nothing: the report is then of the encoder as it is."""
    batch_size: int = 64
    """Pairs in a batch, each told apart from all the others: more make a sharper encoder and need more memory."""
    lr: float = 2.0e-5
    """Highest learning rate of AdamW; it falls linearly to 0."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    scale: float = 20.0
    """The loss multiplies cosines by this: the inverse of its temperature."""
    max_tokens: int = 128
    """What the encoder reads of a text, in its own tokens (the paper: 128); fewer where it has no positions for so
    many."""
    fresh: bool = False
    """Draw the weights anew before training, keeping architecture and tokenizer."""
    dtype: EncoderDtype = "auto"
    """What training computes in; auto is bfloat16 on a GPU that has it and float32 elsewhere. Weights stay float32."""
    device: str | None = None
    """cpu or cuda; null takes a GPU if there is one. One device is used."""
    seed: int = 1
    """Orders the pairs, and draws dropout and fresh weights."""

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("epochs", 0 <= self.epochs < math.inf, "0 or more"),
            ("batch_size", self.batch_size >= 2, "2 or more, for a pair is told apart from the others"),
            ("lr", 0 < self.lr < math.inf, "above 0"),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("scale", 0 < self.scale < math.inf, "above 0"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("device", self.device in (None, "cpu", "cuda"), "cpu, cuda or null"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not ok:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be {rule}")
        if self.device is not None:
            computing_device(self.device, "train.device")
