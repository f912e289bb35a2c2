"""The next token's logits, from keys and values that are kept of what was read.

A prompt is read once, and what is kept of it is repeated for its group. From there on there are two ways: keys and
values that grow by a copy with every token, as transformers has it, or ones that have their final size from the
beginning and are written in place by a step that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from lsemrl.modules.forward import blindness, positions
from lsemrl.modules.policy import Policy
from lsemrl.types import UserError


def read_prompts(policy: Policy, ids_BP: Tensor, mask_BP: Tensor, group: int) -> tuple[Tensor, DynamicCache]:
    """Read B prompts, padded on the left, each once.

    Returns:
        The logits [N, V] of the first tokens of their N = B * group completions, and what is kept of the prompts.
    """
    kept = DynamicCache(config=policy.model.config)
    logits_BV = policy(
        input_ids=ids_BP,
        # Where nothing is padding, a model spares itself the mask.
        attention_mask=None if bool(mask_BP.all()) else mask_BP.long(),
        position_ids=positions(mask_BP),
        past_key_values=kept,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    kept.batch_repeat_interleave(group)
    return logits_BV.repeat_interleave(group, dim=0), kept


class Growing:
    """Keys and values that grow by a copy with every token."""

    def __init__(self, policy: Policy, kept: DynamicCache, prompt_mask_NP: Tensor, longest: int) -> None:
        """
        Args:
            policy: Whose next tokens are asked for.
            kept: Of the prompts of N completions.
            prompt_mask_NP: bool, which of their tokens are none of the padding.
            longest: Tokens of the longest completion.
        """
        self._policy, self._kept = policy, kept
        self._padded = not bool(prompt_mask_NP.all())
        # A completion that has ended goes on reading its own words until it is dropped; nobody reads it.
        own_NT = prompt_mask_NP.new_ones(len(prompt_mask_NP), longest)
        self._mask_NL = torch.cat([prompt_mask_NP, own_NT], dim=1).long()
        self._read = prompt_mask_NP.shape[1]
        self._position_N = prompt_mask_NP.sum(dim=1)

    def __call__(self, token_N: Tensor) -> Tensor:
        """Logits [N, V] after one more token of each completion."""
        self._read += 1
        logits_NV: Tensor = self._policy(
            input_ids=token_N[:, None],
            attention_mask=self._mask_NL[:, : self._read] if self._padded else None,
            position_ids=self._position_N[:, None],
            past_key_values=self._kept,
            use_cache=True,
        ).logits[:, -1]
        self._position_N = self._position_N + 1
        return logits_NV

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the completions only."""
        self._kept.batch_select_indices(rows)
        self._mask_NL, self._position_N = self._mask_NL[rows], self._position_N[rows]


class Compiled:
    """Keys and values at their final size, written in place by a compiled step.

    One compilation serves all batches: numbers of completions and of tokens are left open in it.
    """

    def __init__(self, policy: Policy, kept: DynamicCache, prompt_mask_NP: Tensor, longest: int) -> None:
        """As `Growing`, but that `kept` is empty afterwards.

        Raises:
            UserError: The model does not look where a mask of ours tells it to, or its weights are spread over ranks.
        """
        reason = "its weights are spread over ranks" if policy.sharded else blindness(policy.model)
        if reason:
            raise UserError(f"sampling.compile is true, but {reason}; set it to false")
        self._model = policy.model.get_base_model() if policy.adapted else policy.model
        self._at = torch.tensor([prompt_mask_NP.shape[1]], device=prompt_mask_NP.device)
        layers: list[Any] = kept.layers
        self._slots: list[_Slots] = []
        while layers:  # taken out one by one, so that what was read of the prompts is not there twice
            layer = layers.pop(0)
            self._slots.append(_Slots(layer.keys, layer.values, longest, self._at))
        dtype = self._slots[0].keys.dtype
        self._mask_N11L = torch.full(
            (len(prompt_mask_NP), 1, 1, prompt_mask_NP.shape[1] + longest),
            torch.finfo(dtype).min,
            dtype=dtype,
            device=prompt_mask_NP.device,
        )
        self._mask_N11L[:, 0, 0, : prompt_mask_NP.shape[1]].masked_fill_(prompt_mask_NP, 0)
        self._position_N = prompt_mask_NP.sum(dim=1)

    def __call__(self, token_N: Tensor) -> Tensor:
        """Logits [N, V] after one more token of each completion."""
        self._mask_N11L.index_fill_(3, self._at, 0)
        logits_NV = _compiled_step()(
            self._model, token_N[:, None], self._mask_N11L, self._position_N[:, None], Cache(layers=[*self._slots])
        )
        self._at += 1
        self._position_N = self._position_N + 1
        return logits_NV

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the completions only."""
        for slots in self._slots:
            slots.keys, slots.values = slots.keys[rows], slots.values[rows]
        self._mask_N11L, self._position_N = self._mask_N11L[rows], self._position_N[rows]


class _Slots(CacheLayerMixin):
    """Keys and values of one layer, with room for the completions."""

    is_compileable = True
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, longest: int, at: Tensor) -> None:
        super().__init__()
        self.keys, self.values = pad(keys, (0, 0, 0, longest)), pad(values, (0, 0, 0, longest))
        self.at = at
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        """Write where the token stands, and give everything."""
        self.keys.index_copy_(2, self.at, key_states.to(self.keys.dtype))  # mixed precision may have two
        self.values.index_copy_(2, self.at, value_states.to(self.values.dtype))
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing left to do."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All of it is seen, as far as the mask lets it be."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Unknown to the host, and asked for by nobody who was given positions."""
        return self.keys.shape[2]

    def get_max_length(self) -> int:
        """Prompt and completion."""
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length  # its name before transformers 5.2


def _step(model: Any, ids: Tensor, mask: Tensor, position_ids: Tensor, kept: Cache) -> Tensor:
    logits: Tensor = model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids, past_key_values=kept, use_cache=True
    ).logits
    return logits[:, -1]


@cache
def _compiled_step() -> Callable[..., Tensor]:
    return torch.compile(_step, dynamic=True)
