"""What callbacks of `trainer.callbacks` remember, as a checkpoint holds it: JSON, tensors written as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_TENSOR = "tensor"


def states_of(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """By its key, the state of each that has one; of which nothing can be held, it is told once, and left out."""
    states = {}
    for each in callbacks:
        try:
            if type(each).on_save_checkpoint is not Callback.on_save_checkpoint:
                raise TypeError("it is written into Lightning's own checkpoints")
            if state := each.state_dict():
                states[each.state_key] = _held(state)
        except TypeError as reason:
            rank_zero_warn(
                f"trainer.callbacks: what {type(each).__name__} remembers is in no checkpoint ({reason}), so that a "
                "run which is interrupted goes on with it from its beginning"
            )
    return states


def restore_states(callbacks: Iterable[Callback], states: Mapping[str, Any]) -> None:
    """Hand back what `states_of` took."""
    for each in callbacks:
        if each.state_key in states:
            each.load_state_dict(_given(states[each.state_key]))


def _held(value: Any) -> Any:
    """As JSON gives it back.

    Raises:
        TypeError: It cannot.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            kind = str(value.dtype).removeprefix("torch.")
            return {_TENSOR: value.flatten().tolist(), "dtype": kind, "shape": list(value.shape)}
        case list():
            return [_held(each) for each in value]
        case dict() if all(isinstance(name, str) and name != _TENSOR for name in value):
            return {name: _held(each) for name, each in value.items()}
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def _given(value: Any) -> Any:
    match value:
        case {"tensor": numbers, "dtype": kind, "shape": shape}:
            return torch.tensor(numbers, dtype=getattr(torch, kind)).reshape(shape)
        case list():
            return [_given(each) for each in value]
        case dict():
            return {name: _given(each) for name, each in value.items()}
    return value
