"""Whole tensors out of shards and back, where what is not sharded passes through; and what the traffic costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_gather_into_tensor, reduce_scatter_tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lsemrl.types import UserError


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU; all ranks must ask for the same."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().to("cpu", copy=True).contiguous()
        for name, value in tensors.items()
    }


def whole_state(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that a model's files hold, buffers and weights that are not trained too.

    Args:
        model: Perhaps with shards.
        weights: By their names in `model`, whole tensors to take instead of its own.
    """
    state = model.state_dict(keep_vars=True)
    names = {weight: name for name, weight in model.named_parameters()}  # one weight may be found in two places
    return {key: weights.get(names.get(value, key), value).detach() for key, value in state.items()}


def checked(folder: Path, found: dict[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was `found` in `folder`, if its names and shapes are those of `targets`.

    Raises:
        UserError: They are not.
    """
    if found.keys() != targets.keys() or any(found[name].shape != target.shape for name, target in targets.items()):
        raise UserError(
            f"{str(folder)!r} does not hold this policy's trained weights; resume with the configuration that wrote it"
        )
    return found


@torch.no_grad()
def scatter_into(targets: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into `targets` of the same names, each rank its shards."""
    for name, target in targets.items():
        value = whole[name].to(target.device)
        target.copy_(
            distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value
        )


@torch.no_grad()
def move_towards(target: Tensor, source: Tensor, share: float) -> None:
    """target = share * source + (1 - share) * target, each rank its shards; a share of 1 copies."""
    if isinstance(target, DTensor) and isinstance(source, DTensor):
        target, source = target.to_local(), source.to_local()
    if share == 1:
        target.copy_(source)
    else:
        target.lerp_(source, share)


def spread(module: nn.Module, layers: Sequence[nn.Module], mesh: DeviceMesh, called: Sequence[str]) -> Traffic | None:
    """Spread each of `layers` over the ranks of `mesh` (FSDP2), and the rest of `module` as one more piece.

    Args:
        module: Changed in place.
        layers: Of it.
        mesh: The ranks.
        called: Methods of `module` by which it computes.

    Returns:
        What it costs; None where PyTorch is 2.8, which does not let its collectives be timed.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # Its own pieces, embedding and head, are needed from the first layer to the last.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for method in called:
        register_fsdp_forward_method(module, method)
    if not hasattr(FSDPModule, "set_custom_all_gather"):
        return None
    return Traffic([piece for piece in module.modules() if isinstance(piece, FSDPModule)])


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Inside, the weights of a sharded module are whole on every rank; all ranks must enter."""
    layers = [piece for name, piece in module.named_modules() if name and isinstance(piece, FSDPModule)]
    pieces: list[Any] = [module, *layers]
    for piece in pieces:
        piece.unshard()
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True, recurse=False)
        for piece in pieces:
            piece.reshard()


class Traffic:
    """Seconds that FSDP's collectives take, those included during which the device computes something else."""

    def __init__(self, pieces: Sequence[FSDPModule]) -> None:
        """
        Args:
            pieces: The modules whose weights travel together.
        """
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for piece in pieces:
            piece.set_custom_all_gather(_Timed(self, all_gather_into_tensor))  # type: ignore[arg-type]
            piece.set_custom_reduce_scatter(_Timed(self, reduce_scatter_tensor))  # type: ignore[arg-type]

    def take(self) -> float:
        """The seconds since the last call; the device must have come to the end of its queue."""
        seconds: float = self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds

    def time(self, device: torch.device, collective: Callable[[], Any]) -> Any:
        """Call `collective` and count its time."""
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work = collective()
            end.record()
            self._events.append((start, end))
            return work
        began = time.perf_counter()
        work = collective()
        if work is not None:
            work.wait()
        self._seconds += time.perf_counter() - began
        return work


class _Timed:
    """A collective as FSDP calls it."""

    def __init__(self, traffic: Traffic, collective: Callable[..., Any]) -> None:
        self._traffic, self._collective = traffic, collective

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, *args: Any, **settings: Any) -> Any:
        return self._traffic.time(
            input_tensor.device, lambda: self._collective(output_tensor, input_tensor, *args, group=group, **settings)
        )
