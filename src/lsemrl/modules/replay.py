"""A decoding step's launches, recorded once and replayed (CUDA graphs).

A GPU is done with the next token of a small model before Python has asked it for all that a token takes. What was
recorded reads and writes the places it saw, so that nothing the step uses may move; it is recorded anew for every
batch, which costs two steps, and serves whatever weights there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


class Replay:
    """Runs a step once as it stands, which also makes libraries ready, records the second, and replays it.

    To be called without gradients, and with a step that never waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: A CUDA device.
        """
        self._device = device
        self._ran = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self, step: Callable[[], Tensor]) -> Tensor:
        """What it gives, which the next call may overwrite."""
        if not self._ran:
            self._ran = True
            with _aside(self._device):
                return step()
        if self._graph is None:
            graph, kept = torch.cuda.CUDAGraph(), _pool(self._device)
            with _aside(self._device):
                graph.capture_begin(pool=kept.pool(), capture_error_mode="thread_local")
                try:
                    self._result = step()
                finally:
                    graph.capture_end()
            self._graph = graph
        self._graph.replay()
        assert self._result is not None
        return self._result

    def renew(self) -> None:
        """Forget what was recorded, since the step computes other shapes, or elsewhere; its memory serves the next."""
        self._ran, self._graph, self._result = False, None, None


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Inside, work goes to a stream that can be recorded, between what was asked for before and after."""
    stream, own = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(own)
    kind = device.type
    # Weights as mixed precision has cast them would be kept where the next recording works.
    uncached = torch.autocast(
        kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
    )
    with torch.cuda.stream(stream), uncached:
        yield
    own.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@cache
def _pool(device: torch.device) -> torch.cuda.CUDAGraph:
    """A graph that does nothing but hold on to the memory in which all others work, one after the other."""
    graph = torch.cuda.CUDAGraph()
    with _aside(device):
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        graph.capture_end()
    return graph
