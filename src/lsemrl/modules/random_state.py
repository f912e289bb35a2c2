"""The random numbers of a process: taken down as JSON can hold them, and put back."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """What torch draws from on the CPU (dropout) and on `device`, and what rewards of the user's own may draw from."""
    numbers: Any = numpy.random.get_state(legacy=True)
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state(device)) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": [numbers[0], numbers[1].tolist(), *numbers[2:]],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `random_state` was called."""
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(_bytes(state["cuda"]), device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy.random.set_state(tuple(state["numpy"]))


def seed_of(state: dict[str, Any]) -> int:
    """The seed that the numbers of torch began with."""
    generator = torch.Generator()
    generator.set_state(_bytes(state["torch"]))
    return generator.initial_seed()


def rollout_seed(step: int, rank: int) -> int:
    """A seed of its own for every rank and rollout step, so that a resumed run draws what it would have drawn."""
    return (torch.initial_seed() * 1_000_003 + step * 1009 + rank) % 2**63


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
