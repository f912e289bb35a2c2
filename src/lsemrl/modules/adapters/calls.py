"""Whether a model calls the layers that it has adapters on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from lsemrl.types import UserError


@contextmanager
def none_read_past(model: Any) -> Iterator[None]:
    """Inside, rows go through `model`, which must call every layer with an adapter whose weight it takes.

    A scan that multiplies by the weight itself reads past the adapter: it would learn nothing, and yet be part of the
    sums with which completions are drawn.

    Raises:
        UserError: A weight was taken from a layer that was not called.
    """
    layers: dict[Any, str] = {each: name for name, each in model.named_modules() if isinstance(each, LoraLayer)}
    called, taken = set[Any](), set[Any]()
    hooks = [layer.register_forward_pre_hook(lambda layer, args: called.add(layer)) for layer in layers]
    tuner: Any = BaseTunerLayer
    plain = tuner.weight

    def weight(layer: Any) -> Any:
        taken.add(layer)
        return plain.fget(layer)

    tuner.weight = property(weight)
    try:
        yield
    finally:
        tuner.weight = plain
        for hook in hooks:
            hook.remove()
    if past := [name for layer, name in layers.items() if layer in taken - called]:
        end = past[0].rpartition(".")[2]
        raise UserError(
            f"the adapter is on {len(past)} layers that policy.model never calls, but whose weights it multiplies by "
            f"(such as {past[0]}), so that it would learn nothing there; leave {end} out of policy.lora.target_modules"
        )
