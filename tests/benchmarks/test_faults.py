"""The campaign of faults, in small: `make faults` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import CASES, Case, make_files
from faults import told_in_one_sentence

from forks import Fork, script
from matrix import slow_but

SCRIPT = """
import faults

faults._LAYOUTS["one"] = (1, ("--data.batch_size=4", "--trainer.max_epochs=1"))
outcomes = faults.kill_campaign(kills=1, seed=10)
assert [len(outcome.kills) for outcome in outcomes] == [1]
assert not [outcome for outcome in outcomes if outcome.differences], outcomes
"""


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_nothing_had_happened() -> None:
    # In a process of its own: it forks, and this one has threads.
    done = Fork([SCRIPT], script).end(500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_there_are_enough_of_them() -> None:
    assert len({case.words for case in CASES}) >= 60


def test_a_run_that_ends_by_itself_is_told_with_what_it_said() -> None:
    done = Fork(["import faults; faults.run(('fit', '--config', 'nowhere.yaml'))"], script).end()
    assert done.returncode == 1
    assert "RuntimeError: the run ended with exit codes [2], and said:\nlsemrl: error: --config is" in done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("case", slow_but(CASES[::8], CASES[::32]), ids=lambda case: " ".join(case.words[-1:]))
def test_a_bad_input_is_told_in_one_sentence(case: Case, files: dict[str, str], tmp_path: Path) -> None:
    """Every eighth of them; in every `make test` every 32nd."""
    assert told_in_one_sentence(case, {**files, "runs": str(tmp_path / "runs")}) is None
