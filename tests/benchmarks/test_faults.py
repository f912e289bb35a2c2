"""The campaign of faults, in small: `make faults` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import CASES, Case
from faults import told_in_one_sentence

from forks import Fork, script

SCRIPT = """
from faults import kill_campaign

outcomes = kill_campaign(kills=1, seed=1)
assert [len(outcome.kills) for outcome in outcomes] == [1]
assert not [outcome for outcome in outcomes if outcome.differences], outcomes
"""


def test_a_run_that_is_killed_ends_as_if_nothing_had_happened() -> None:
    # In a process of its own: it forks, and this one has threads.
    done = Fork([SCRIPT], script).end(500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_there_are_enough_of_them() -> None:
    assert len({case.words for case in CASES}) >= 60


@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: " ".join(case.words[-1:]))
def test_a_bad_input_is_told_in_one_sentence(case: Case, tmp_path: Path) -> None:
    """Every fifth of them."""
    assert told_in_one_sentence(case, tmp_path) is None
