"""The reference of the KL penalty, where it is a copy of its own: which weights it has, and how it moves."""

from __future__ import annotations

import torch
from torch import nn

from lsemrl.modules.adapters.loading import reference_of
from lsemrl.modules.policy import Policy
from lsemrl.modules.sharding import move_towards


def held_against(policy: Policy) -> dict[str, nn.Parameter]:
    """What the KL penalty pulls towards, by name, where it can be found in no file of the user's."""
    return {name: weight for name, (weight, _) in _pairs(policy).items()}


@torch.no_grad()
def sync_reference(policy: Policy) -> None:
    """Move the reference towards the policy; with sharded weights each rank moves its shards."""
    for kept, trained in _pairs(policy).values():
        move_towards(kept, trained, policy.settings.ref_model_mixup_alpha)


def _pairs(policy: Policy) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Each weight of a reference that is kept, by name, with what it is the reference of."""
    if policy.adapted:
        of = reference_of(policy.model)
        return {name: (weight, of[weight]) for name, weight in policy.named_parameters() if weight in of}
    if policy.settings.ref_model_sync_steps is None:
        return {}
    kept = policy.reference_model.named_parameters(prefix="reference_model")
    return {name: (weight, own) for (name, weight), own in zip(kept, policy.model.parameters(), strict=True)}
