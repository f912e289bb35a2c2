"""Cases of one test of which some stand for all in every `make test`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(every: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Those of `every` that are not in `quick` wait for `make test-slow`."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in every]


def slow_cases_but(every: Iterable[tuple[Any, ...]], quick: Collection[tuple[Any, ...]]) -> list[Any]:
    """The same for cases of several values each."""
    return [one if one in quick else pytest.param(*one, marks=pytest.mark.slow) for one in every]
