"""Settings of GRPO that contradict each other, told before anything is loaded."""

from __future__ import annotations

from lsemrl.modules.losses import LossSettings
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.sampling import Sampling
from lsemrl.rewards.advantages import AdvantageSettings, validate_group
from lsemrl.types import UserError


def check_grpo(
    *,
    combine: str = "sum",
    policy: PolicySettings = PolicySettings(),
    sampling: Sampling = Sampling(),
    advantages: AdvantageSettings = AdvantageSettings(),
    loss: LossSettings = LossSettings(),
    num_iterations: int = 1,
    optimizer_batch_size: int | None = None,
    samples_every: int = 10,
) -> None:
    """Refuse settings under which nothing could be learned, or that have no effect; the defaults are those of `GRPO`.

    Args:
        combine: How the parts of the reward are combined.
        policy: What is trained.
        sampling: How completions are drawn.
        advantages: How siblings are compared.
        loss: The objective.
        num_iterations: Passes over each batch.
        optimizer_batch_size: Completions of a rank per optimizer step; None takes all.
        samples_every: Rollout steps between two samples.

    Raises:
        UserError: A field is out of range, or two contradict each other.
    """
    validate_group(sampling.num_generations, advantages)
    for name, value, least in (
        ("num_iterations", num_iterations, 1),
        ("optimizer_batch_size", 1 if optimizer_batch_size is None else optimizer_batch_size, 1),
        ("samples_every", samples_every, 0),
    ):
        if value < least:
            raise UserError(f"model.{name} is {value}; it must be at least {least}")
    if sampling.temperature == 0:
        raise UserError("sampling.temperature is 0, so that siblings are all alike; GRPO needs it above 0")
    if loss.beta > 0 and policy.reference == "none":
        raise UserError(f"loss.beta is {loss.beta} but policy.reference is none; set beta to 0 or name a reference")
    _check_used(policy, sampling, loss)
    if combine == "normalize_then_sum" and advantages.scale_rewards == "none":
        raise UserError(
            "advantages.scale_rewards is none, but model.combine normalize_then_sum scales by the batch; set "
            "scale_rewards to batch"
        )


def _check_used(policy: PolicySettings, sampling: Sampling, loss: LossSettings) -> None:
    steps, alpha = policy.ref_model_sync_steps, policy.ref_model_mixup_alpha
    if loss.beta == 0 and steps is not None:
        raise UserError(
            f"policy.ref_model_sync_steps is {steps}, but loss.beta is 0, so that nothing is held to the reference; "
            "set beta above 0, or ref_model_sync_steps to null"
        )
    if alpha != 1 and steps is None:
        raise UserError(
            f"policy.ref_model_mixup_alpha is {alpha}, but policy.ref_model_sync_steps is null, so that the reference "
            "does not move; say after how many steps it does, or leave it out"
        )
    for name in ("server", "server_timeout", "server_sleeps"):
        value = getattr(sampling, name)
        if sampling.engine != "vllm" and value != getattr(Sampling, name):
            raise UserError(
                f"sampling.{name} is {value!r}, but sampling.engine is {sampling.engine}, which asks no server; set "
                "engine to vllm, or leave it out"
            )


def check_windows(optimizer_batch_size: int | None, batch_size: int, num_generations: int) -> None:
    """Refuse a batch that does not divide into optimizer steps.

    Args:
        optimizer_batch_size: Completions per optimizer step; None takes all.
        batch_size: Prompts of a batch.
        num_generations: Completions of a prompt.

    Raises:
        UserError: It does not.
    """
    completions = batch_size * num_generations
    if completions % (optimizer_batch_size or completions):
        raise UserError(
            f"model.optimizer_batch_size is {optimizer_batch_size}, which does not divide the {completions} "
            "completions of a batch (data.batch_size times sampling.num_generations); choose a divisor"
        )
