"""How much of what should be said is said, token by token, by the states that a sentence encoder gives to them.

The mean over a sentence hides a word that is missing; here each token looks for its own counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lsemrl import micro
from lsemrl.canonical import canonical
from lsemrl.devices import computing_device
from lsemrl.rewards.base import Against, Reward
from lsemrl.rewards.encoder import EncoderDtype, computing_dtype, frozen_encoder, reads
from lsemrl.types import Completion, Example, UserError

Side = Literal["recall", "precision"]

_ALIKE = 0.999
_ROWS = 200
"""Whose references are held against one another to see what unrelated texts share."""


class Coverage(Reward):
    """The share of a reference that an output says, or of the output that the reference says, in [0, 1].

    Every token of the encoder is found again as far as the cosine with the nearest token of the other text says, in the
    encoder's last layer; recall is the mean over the reference's tokens, precision over the output's (greedy matching
    as BERTScore's, arXiv 1904.09675). Of several references the one that gives most counts. `floor` is taken for 0: the
    score is (c - floor) / (1 - floor).

    Where the cosine of whole sentences may prefer silence to a wrong word, recall gives the same for both, or less for
    silence. Two parts, one of either side, log both. 0 for an output without a token; NaN where the other text has
    none. What is longer than the encoder reads is cut.

    Args:
        weight: What it counts in the mix.
        encoder: A SentenceTransformer folder, a hub id, or "micro" for the embedded one.
        side: recall, of what should be said; precision, of what is said.
        against: The references, or the source where that is in another language, which an encoder of both languages
            can align. The latter is NaN where source and reference are in one language.
        floor: What counts as nothing, in [0, 1); null takes what another row's reference gets, over the rows of the
            run, 0 without a run.
        batch_size: How many texts are encoded at once.
        device: Where to encode; a GPU if there is one, if None.
        dtype: As in `SemanticSimilarity`.
        opens_from: As a gate it is open from here on.

    Attributes:
        encoder: The SentenceTransformer, frozen.
        name: The encoder, as it was named.

    Raises:
        UserError: A field is out of range, or the encoder is none, cannot be loaded, or has no states of tokens.
    """

    def __init__(
        self,
        weight: float = 1.0,
        encoder: str = micro.NAME,
        side: Side = "recall",
        against: Against = "reference",
        floor: float | None = None,
        batch_size: int = 64,
        device: str | None = None,
        dtype: EncoderDtype = "auto",
        opens_from: float = 0.7,
    ) -> None:
        from transformers import PreTrainedTokenizerBase

        super().__init__(weight, opens_from)
        for field, value, choices in (("side", side, get_args(Side)), ("against", against, get_args(Against))):
            if value not in choices:
                raise UserError(f"{field} is {value!r} in Coverage: choose one of {', '.join(choices)}")
        if floor is not None and not 0 <= floor < 1:
            raise UserError(f"floor is {floor} in Coverage: set it in [0, 1), or to null")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size} in Coverage: set it to 1 or more")
        self.device = computing_device(device, "device of Coverage")
        self.encoder = frozen_encoder(encoder, computing_dtype(dtype, self.device))
        if not isinstance(self.encoder.tokenizer, PreTrainedTokenizerBase) or not reads(self.encoder):
            raise UserError(
                f"encoder is {encoder!r} in Coverage, which has no states of tokens; name one that is a transformer"
            )
        self.name, self.side, self.against, self.floor, self.batch_size = encoder, side, against, floor, batch_size
        self.reads_references = against == "reference"

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """float32 [N] in [0, 1], or NaN."""
        wholes = [self._wholes(completion.example) for completion in completions]
        floor = self.floor or 0.0
        found_N = torch.tensor(self.found([each.text for each in completions], wholes), dtype=torch.float32)
        return ((found_N - floor) / (1 - floor)).clamp(0.0, 1.0)

    def look_at(self, examples: Sequence[Example]) -> str:
        """What counts as nothing, or that the part does not apply.

        Raises:
            UserError: To the encoder all tokens are alike; or there is no reference to measure the floor by.
        """
        rows = [example for example in examples if self._wholes(example)]
        if not rows:
            why = "no row has one" if self.against == "reference" else "sources and references are in one language here"
            return f"Coverage of the {self.against} is left out: {why}"
        if self.floor is None:
            rows = list({canonical(each.reference).strip(): each for each in rows if each.references}.values())
            if not rows:
                if not self.decides:
                    return "Coverage: no row has a reference, so that its floor is not known and taken for 0"
                raise UserError(
                    "floor is null in Coverage, and no row has a reference to measure it by; give what counts as "
                    "nothing, such as floor: 0.4 (with pairs to train on lsemrl fit says what it is)"
                )
            rows = rows[:: max(len(rows) // _ROWS, 1)][:_ROWS]
            # Another row's reference may be the same by chance; the next one is as good as any.
            others = [*rows[1:], *rows[:1]]
            found = self.found([each.reference for each in others], [self._wholes(each) for each in rows])
            known = [each for each in found if not math.isnan(each) and len(rows) > 1]
            self.floor = max(0.0, sum(known) / len(known)) if known else 0.0
            if self.floor > _ALIKE:
                raise UserError(f"encoder is {self.name!r} in Coverage, to which all tokens are alike; name another")
            return f"Coverage: what another row's reference gets by {self.name}, {self.floor:.2f}, counts as nothing"
        return ""

    def found(self, outputs: Sequence[str], wholes: Sequence[Sequence[str]]) -> list[float]:
        """The mean cosine of the tokens of one side with the nearest of the other, by the best of each output's wholes.

        Args:
            outputs: N texts.
            wholes: What each of them should say, in one or more wordings.

        Returns:
            N numbers in [-1, 1]: 0 for an output without a token, NaN where no whole has one.
        """
        texts = dict.fromkeys(canonical(text).strip() for text in (*outputs, *(one for each in wholes for one in each)))
        states_TH = dict(zip(texts, self._states(list(texts)), strict=True))
        found = []
        for output, said in zip(outputs, wholes, strict=True):
            own_TH = states_TH[canonical(output).strip()]
            others = [other_TH for text in said if len(other_TH := states_TH[canonical(text).strip()])]
            if len(own_TH):
                over = 0 if self.side == "recall" else 1
                scores = [float((own_TH @ other_TH.T).amax(dim=over).mean()) for other_TH in others]
            else:
                scores = [0.0 for _ in others]
            found.append(max(scores, default=math.nan))
        return found

    def _wholes(self, example: Example) -> tuple[str, ...]:
        if self.against == "reference":
            return example.references
        return (example.source,) if example.pair else ()

    def _states(self, texts: list[str]) -> list[Tensor]:
        """The states of the tokens of each text but special ones, as unit vectors: float32 [T, H] on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            read: Any = self.encoder.encode(  # a dictionary for each text
                texts,
                prompt="",
                output_value=None,
                batch_size=self.batch_size,
                show_progress_bar=False,
                device=str(self.device),
            )
        special = torch.tensor(self.encoder.tokenizer.all_special_ids)
        states = []
        for each in read:
            ids_T, mask_T = each["input_ids"].cpu(), each["attention_mask"].cpu().bool()
            states_TH = each["token_embeddings"].to("cpu", torch.float32)
            states.append(normalize(states_TH[mask_T & ~torch.isin(ids_T, special)], dim=1))
        return states
