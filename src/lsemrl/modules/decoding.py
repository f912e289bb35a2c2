"""The next token's logits, from keys and values that are kept of what was read.

A prompt is read once, and what is kept of it, keys and values or the states of linear attention, is repeated for its
group. From there on there are two ways: what is kept grows by a copy with every token, as transformers has it, or keys
and values have their final size from the beginning and are written in place by a step that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from lsemrl.errors import reason_of
from lsemrl.modules.families import native_positions, unshared, window
from lsemrl.modules.forward import OTHERWISE, TOLERANCE, check_length, looking_back, positions, probe
from lsemrl.modules.policy import Policy
from lsemrl.types import PromptBatch, Sequences, UserError


def read_prompts(policy: Policy, ids_BP: Tensor, mask_BP: Tensor, group: int, longest: int) -> tuple[Tensor, Cache]:
    """Read B prompts, padded on the left, each once.

    Args:
        policy: Whose next tokens are asked for.
        ids_BP: int64.
        mask_BP: bool.
        group: Completions of each prompt.
        longest: Tokens of the longest completion.

    Returns:
        The logits [N, V] of the first tokens of their N = B * group completions, and what is kept of the prompts.

    Raises:
        UserError: A row may become longer than the model can tell from its companions.
    """
    native = native_positions(policy.model.config)
    if native is not None:
        check_length(int(mask_BP.sum(dim=1).max()) + longest - 1, native)
    output = policy(
        input_ids=ids_BP,
        # Where nothing is padding, a model spares itself the mask.
        attention_mask=None if bool(mask_BP.all()) else mask_BP.long(),
        position_ids=positions(mask_BP),
        use_cache=True,
        logits_to_keep=1,
    )
    logits_BV, kept = output.logits[:, -1], output.past_key_values
    if group > 1:
        kept.reorder_cache(torch.arange(len(ids_BP), device=ids_BP.device).repeat_interleave(group))
    return logits_BV.repeat_interleave(group, dim=0), kept


def prove_decoding(policy: Policy, prompts: PromptBatch) -> None:
    """Compare what is read token by token with what is scored, on the first of `prompts`.

    Raises:
        UserError: They differ: completions would be drawn from another model than the one that learns from them.
    """
    rows = probe(prompts.prompt_ids_BP, prompts.prompt_mask_BP)
    with torch.autocast(rows.completion_ids_NT.device.type, enabled=False):
        scored_NT, _ = policy.logprobs(rows)
        try:
            with looking_back(policy.model):
                read_NT = _read(policy, rows)
            off = (read_NT - scored_NT)[rows.completion_mask_NT].abs().mean().item()
            reason = f"log-probs were off by {off:.2g} nats"
            wrong = not off <= TOLERANCE[next(policy.model.parameters()).dtype]
        except OTHERWISE as error:
            reason, wrong = f"{type(error).__name__}: {reason_of(error, 150)}", True
    if wrong:
        raise UserError(
            f"policy.model is {policy.settings.model!r}, whose cache of what it has read cannot be sampled from "
            f"({reason}); name a model of another family"
        )


def _read(policy: Policy, rows: Sequences) -> Tensor:
    """Log-probs [N, T] of completions, two behind each prompt, as if they were just drawn, of ever fewer rows."""
    ids_NT, mask_NT = rows.completion_ids_NT, rows.completion_mask_NT
    longest, alive = ids_NT.shape[1], torch.arange(len(ids_NT), device=ids_NT.device)
    logits_NV, kept = read_prompts(policy, rows.prompt_ids_BP, rows.prompt_mask_BP, 2, longest)
    go_on = Growing(policy, kept, rows.prompt_mask_BP.repeat_interleave(2, dim=0), longest)
    found_NT = torch.zeros(ids_NT.shape, device=ids_NT.device)
    for step in range(longest):
        if step:
            going = mask_NT[alive, step].nonzero().squeeze(1)
            go_on.keep(going)
            alive = alive[going]
            logits_NV = go_on(ids_NT[alive, step - 1])
        found_NT[alive, step] = logits_NV.float().log_softmax(-1).gather(1, ids_NT[alive, step, None])[:, 0]
    return found_NT


class Growing:
    """Keys and values that grow by a copy with every token."""

    def __init__(self, policy: Policy, kept: Cache, prompt_mask_NP: Tensor, longest: int) -> None:
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
        self._kept.reorder_cache(rows)  # type: ignore[arg-type]  # which all kinds of layers have, to pick and to repeat
        self._mask_NL, self._position_N = self._mask_NL[rows], self._position_N[rows]


class Compiled:
    """Keys and values at their final size, written in place by a compiled step.

    One compilation serves all batches: numbers of completions and of tokens are left open in it.
    """

    def __init__(self, policy: Policy, kept: Cache, prompt_mask_NP: Tensor, longest: int) -> None:
        """As `Growing`, but that `kept` is empty afterwards.

        Raises:
            UserError: The model does not look where a mask of ours tells it to, or its weights are spread over ranks.
        """
        reason = "its weights are spread over ranks" if policy.sharded else unshared(policy.model)
        if reason is None and (back := window(policy.model)) is not None:
            reason = f"the model attends in a sliding window of {back}"
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
