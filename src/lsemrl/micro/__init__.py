"""The embedded world: a small controlled language pair with its own policy, encoder and oracle.

It is for machines with no GPU and no network, and for tests that mean something. The models under `assets/` are rebuilt
from a seed by `lsemrl build-micro`.
"""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
POLICY = ASSETS / "policy"
ENCODER = ASSETS / "encoder"
COLD_START = ASSETS / "cold_start"
NAME = "micro"
"""What a configuration writes in place of a path to mean the embedded policy, adapter, encoder or data."""
