"""The next token's logits, from keys and values that are kept of what was read.

A prompt is read once, and what is kept of it, keys and values or the states of linear attention, is repeated for its
group. What all prompts begin with, as with examples before each, is read once for all of them. From there on there are
two ways: what is kept grows with every token, in whatever layers the model has, or keys and values have their final
size from the beginning and all of it is seen, by a step that is compiled, or recorded and replayed (see `replay`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from lsemrl.modules.families import cache_name, native_positions, unshared, window
from lsemrl.modules.forward import check_length, positions
from lsemrl.modules.packing import LESS, shared_prefix
from lsemrl.modules.policy import Policy
from lsemrl.modules.replay import Replay

Step = Callable[[Any, Tensor, Tensor, Tensor, dict[str, Cache]], Tensor]
"""From a model, a token of each of N rows, a mask, positions and what is kept, by its name: logits [N, V]."""
Decode = Callable[[Policy, Cache, Tensor, int], "Growing | Fixed"]
"""From a policy, what it keeps of N prompts, their mask [N, P] and the longest completion: what goes on from there."""

_ALIGNED = 16
"""Tokens in multiples of which attention on a GPU reads a mask as it lies."""


def read_prompts(
    policy: Policy, ids_BP: Tensor, mask_BP: Tensor, group: int, longest: int, decode: Decode
) -> tuple[Tensor, Growing | Fixed]:
    """Read B prompts, padded on the left, each once.

    Args:
        policy: Whose next tokens are asked for.
        ids_BP: int64.
        mask_BP: bool.
        group: Completions of each prompt.
        longest: Tokens of the longest completion.
        decode: How they are read.

    Returns:
        The logits [N, V] of the first tokens of their N = B * group completions, and what goes on from there.

    Raises:
        UserError: A row may become longer than the model can tell from its companions.
    """
    native = native_positions(policy.model.config)
    if native is not None:
        check_length(int(mask_BP.sum(dim=1).max()) + longest - 1, native)
    place_BP, before = positions(mask_BP), {}
    if prefix := _prefix(policy, ids_BP, mask_BP):
        begin_1P = ids_BP[:1, mask_BP[0]][:, :prefix]
        kept = _read(policy, begin_1P, None, positions(torch.ones_like(begin_1P)), {})[1]
        kept.reorder_cache(torch.zeros(len(ids_BP), dtype=torch.long, device=ids_BP.device))
        # Of shorter prompts some of the prefix stands in the columns that are left, too.
        rest_BP = mask_BP & (place_BP >= prefix)
        rest_BP[:, :prefix] = True
        mask_BP, before = rest_BP, {_cache_name(policy): kept}
    logits_BV, kept = _read(policy, ids_BP[:, prefix:], mask_BP, place_BP[:, prefix:], before)
    if group > 1:
        kept.reorder_cache(torch.arange(len(ids_BP), device=ids_BP.device).repeat_interleave(group))
    go_on = decode(policy, kept, mask_BP.repeat_interleave(group, dim=0), longest)
    return logits_BV.repeat_interleave(group, dim=0), go_on


def _read(
    policy: Policy, ids_BP: Tensor, mask_BL: Tensor | None, place_BP: Tensor, before: dict[str, Cache]
) -> tuple[Tensor, Cache]:
    """Logits [B, V] behind what is read, and what is kept of it and of what was read before."""
    output = policy(
        input_ids=ids_BP,
        # Where nothing is padding, a model spares itself the mask.
        attention_mask=None if mask_BL is None or bool(mask_BL.all()) else mask_BL.long(),
        position_ids=place_BP,
        use_cache=True,
        # By its place and not by its number, which cuts: a CPU would copy the head for every row of a cut in bfloat16.
        logits_to_keep=torch.tensor([ids_BP.shape[1] - 1], device=ids_BP.device),
        **before,
    )
    return output.logits[:, -1], getattr(output, _cache_name(policy))


def _prefix(policy: Policy, ids_BP: Tensor, mask_BP: Tensor) -> int:
    """How many tokens are read once for all prompts; 0 where that saves little, or cannot be."""
    count, length = ids_BP.shape
    # A window counts columns, padding between prefix and rest among them; ranks go through sharded weights together.
    if count == 1 or policy.sharded or unshared(policy.model) or window(policy.model) is not None:
        return 0
    prefix = min(shared_prefix(ids_BP, mask_BP), int(mask_BP.sum(dim=1).min()) - 1)
    return prefix if prefix + count * (length - prefix) <= LESS * count * length else 0


def _plain(policy: Policy) -> Any:
    """The model itself, whatever adapters it has."""
    return policy.model.get_base_model() if policy.adapted else policy.model


def _cache_name(policy: Policy) -> str:
    return cache_name(_plain(policy)) or "past_key_values"  # code of a model's own may take it unnamed


class Growing:
    """What is kept grows with every token: plain keys and values in place, other layers as transformers has it."""

    def __init__(self, policy: Policy, kept: Cache, prompt_mask_NP: Tensor, longest: int) -> None:
        """
        Args:
            policy: Whose next tokens are asked for.
            kept: Of the prompts of N completions.
            prompt_mask_NP: bool, which of their tokens are none of the padding.
            longest: Tokens of the longest completion.
        """
        # Copying all that was read with every token takes a tenth of a CPU's time.
        kept.layers = [_Room(layer, longest) if type(layer) is DynamicLayer else layer for layer in kept.layers]
        self._policy, self._kept, self._name = policy, kept, _cache_name(policy)
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
            use_cache=True,
            **{self._name: self._kept},
        ).logits[:, -1]
        self._position_N = self._position_N + 1
        return logits_NV

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the completions only."""
        self._kept.reorder_cache(rows)  # which all kinds of layers have, to pick and to repeat
        self._mask_NL, self._position_N = self._mask_NL[rows], self._position_N[rows]


class _Room(DynamicLayer):
    """Keys and values of one layer that grow in place; room is made by halves of what there is, where it is needed."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer, longest: int) -> None:
        """
        Args:
            layer: What was read of the prompts.
            longest: Tokens to come.
        """
        super().__init__()
        assert layer.keys is not None and layer.values is not None  # a prompt was read
        self.keys, self.values = self._keys, self._values = layer.keys, layer.values
        self.is_initialized = True
        self._end = self.get_seq_length() + longest

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        """Write behind what was read, and give everything that is read now."""
        before = self.get_seq_length()
        if before == self._keys.shape[2]:
            more = min(before // 2 + _ALIGNED, self._end - before)
            self._keys, self._values = (pad(each, (0, 0, 0, more)) for each in (self.keys, self.values))
        read = before + key_states.shape[2]
        self.keys, self.values = self._keys[:, :, :read], self._values[:, :, :read]
        self.keys[:, :, before:], self.values[:, :, before:] = key_states, value_states
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows."""
        if len(beam_idx) == len(self.keys):  # as with every token of a beam search, which keeps the room
            self.keys[:], self.values[:] = self.keys[beam_idx], self.values[beam_idx]
            return
        super().reorder_cache(beam_idx)
        self._keys, self._values = self.keys, self.values


class Fixed:
    """Keys and values at their final size, written in place, all of which is seen.

    Nothing that a step reads or writes changes its place while the number of rows stays, and that number only halves:
    rows that are no longer wanted are computed along until half of them are.
    """

    def __init__(
        self, policy: Policy, kept: Cache, prompt_mask_NP: Tensor, longest: int, *, step: Step, replay: Replay | None
    ) -> None:
        """As `Growing`, but that `kept` is empty afterwards.

        Args:
            step: Computes the logits.
            replay: Records what computes them and moves on by a token; None runs it as it stands.
        """
        self._model, self._name = _plain(policy), _cache_name(policy)
        self._compute, self._replay = step, replay
        rows, prompt = prompt_mask_NP.shape
        # Attention copies a mask whose rows are not aligned.
        length = -(-(prompt + longest) // _ALIGNED) * _ALIGNED
        self._at = torch.tensor([prompt], device=prompt_mask_NP.device)
        layers: list[Any] = kept.layers
        self._slots: list[_Slots] = []
        while layers:  # taken out one by one, so that what was read of the prompts is not there twice
            layer = layers.pop(0)
            keys, values = (pad(each, (0, 0, 0, length - prompt)) for each in (layer.keys, layer.values))
            self._slots.append(_Slots(keys, values, self._at))
        dtype = self._slots[0].keys.dtype
        self._mask_N11L = prompt_mask_NP.new_full((rows, 1, 1, length), torch.finfo(dtype).min, dtype=dtype)
        self._mask_N11L[:, 0, 0, :prompt].masked_fill_(prompt_mask_NP, 0)
        self._position_N1 = prompt_mask_NP.sum(dim=1, keepdim=True)
        self._token_N1 = torch.zeros_like(self._position_N1)

    def __call__(self, token_N: Tensor) -> Tensor:
        """Logits [N, V] after one more token of each completion; the next call may overwrite them."""
        self._token_N1[: len(token_N), 0] = token_N
        logits_NV = self._replay(self._step) if self._replay else self._step()
        return logits_NV[: len(token_N)]

    def keep(self, rows: Tensor) -> None:
        """Go on with these of the completions only."""
        held, count = len(self._token_N1), len(rows)
        while held // 2 >= count:
            held //= 2
        states = [each for slots in self._slots for each in (slots.keys, slots.values)]
        for state in (*states, self._mask_N11L, self._position_N1):
            state[:count] = state[rows]
        if held == len(self._token_N1):
            return
        for slots in self._slots:
            slots.keys, slots.values = slots.keys[:held], slots.values[:held]
        self._mask_N11L, self._position_N1 = self._mask_N11L[:held], self._position_N1[:held]
        self._token_N1 = self._token_N1[:held]
        if self._replay:
            self._replay.renew()

    def _step(self) -> Tensor:
        self._mask_N11L.index_fill_(3, self._at, 0)
        kept = {self._name: Cache(layers=[*self._slots])}
        logits_NV = self._compute(self._model, self._token_N1, self._mask_N11L, self._position_N1, kept)
        self._at += 1
        self._position_N1 += 1
        return logits_NV


class _Slots(CacheLayerMixin):
    """Keys and values of one layer, with room for the completions."""

    is_compileable = True
    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
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


def plain_step(model: Any, ids: Tensor, mask: Tensor, position_ids: Tensor, kept: dict[str, Cache]) -> Tensor:
    """Logits [N, V] behind one more token of N rows."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=True, **kept).logits
    return logits[:, -1]


@cache
def compiled_step() -> Step:
    """The same compiled; one compilation serves all batches, whatever their rows and tokens."""
    return torch.compile(plain_step, dynamic=True)
