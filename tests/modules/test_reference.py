"""A reference that is a copy of its own follows the policy."""

from __future__ import annotations

import torch

from lsemrl.modules.reference import held_against, sync_reference
from tiny import make_policy


def test_the_reference_moves_by_alpha_of_the_way(tiny_model: str) -> None:
    policy = make_policy(tiny_model, ref_model_sync_steps=1, ref_model_mixup_alpha=0.25)
    trained = {name: weight.detach().clone() for name, weight in policy.trained().items()}
    before = {name: weight.detach().clone() for name, weight in held_against(policy).items()}
    sync_reference(policy)
    assert before
    for name, weight in held_against(policy).items():
        target = trained[name.replace(".reference.", ".default.")]
        assert not torch.equal(target, before[name])
        torch.testing.assert_close(weight, 0.25 * target + 0.75 * before[name])
