"""A command that shows what it was given."""

from __future__ import annotations

import os
import time

import torch


def show(words: list[str]) -> None:
    """Print words and surroundings, and wait where the word is so."""
    print(*words, os.environ.get("SHOWN"), os.environ.get("PL_GLOBAL_SEED"), os.getcwd(), torch.get_num_threads())
    if words == ["wait"]:
        time.sleep(60)
