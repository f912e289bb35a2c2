"""Gradient checkpointing that does not ask which mode a model is in.

transformers' own works in train mode only, where dropout is on too; updates of RL want the one without the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lsemrl.types import UserError


def recompute_layers(model: nn.Module) -> None:
    """Have each layer of `model` keep what goes in only, and compute the rest again in the backward pass.

    Raises:
        UserError: transformers knows none of its layers as one that can.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            "policy.gradient_checkpointing is true, but policy.model has no layers that can be computed again; set it "
            "to false"
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
