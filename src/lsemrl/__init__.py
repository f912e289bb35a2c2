"""Reinforcement learning with semantic rewards for low-resource languages (arXiv 2605.14366)."""

__version__ = "0.1.0"
