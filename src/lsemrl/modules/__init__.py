"""Training: the policy, its sampler, advantages, losses, and the two loops (GRPO and SFT)."""
