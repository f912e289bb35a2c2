"""Rehearsal text for a tiny model: rows of unlike lengths, with what the model thinks of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from lsemrl.data.rehearsal import Rehearsed, digest_of, identity_path, likeliest_path
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.rehearsing import likeliest


def write_own_text(path: Path, model: str, rows: int = 7, top_k: int = 8, prompt_tokens: int = 9) -> Path:
    """Rows of random tokens, the likeliest tokens of `model`, and its name."""
    generator = torch.Generator().manual_seed(4)

    def ids(least: int, most: int) -> tuple[int, ...]:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return tuple(torch.randint(10, 1000, (length,), generator=generator).tolist())

    made = [
        Rehearsed(prompt=f"p{at}", response=f"r{at}", prompt_ids=ids(3, prompt_tokens), given=2, answer_ids=ids(1, 8))
        for at in range(rows)
    ]
    policy = Policy(PolicySettings(model=model, reference="base"))
    policy.load()
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in made))
    identity_path(path).write_text(json.dumps({"model": model, "fingerprint": policy.fingerprint}))
    save_file(likeliest(policy, made, top_k), likeliest_path(path), {"text": digest_of(path)})
    return path
