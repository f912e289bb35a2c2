"""How long runs take that wait for each other, and for room."""

from __future__ import annotations

import pytest

from lsemrl.experiment.schedule import seconds_until_all_end


@pytest.mark.parametrize(("parallel", "together"), [(1, 22), (2, 13), (3, 9), (9, 9)])
def test_runs_wait_for_what_they_build_on_and_for_room(parallel: int, together: int) -> None:
    # By two: 0 and 1 begin; 2 from second 1 to 5, 3 until 9, 4 from 8 to 13. By three 4 waits for nobody.
    assert seconds_until_all_end([1, 8, 4, 4, 5], [[], [], [0], [2], []], parallel) == together


def test_what_is_at_work_holds_its_place_though_earlier_ones_could_begin() -> None:
    assert seconds_until_all_end([5, 3], [[], []], 1, at_work=[1]) == 8
    assert seconds_until_all_end([5, 3, 4], [[], [], [1]], 2, at_work=[1]) == 7
    assert seconds_until_all_end([5, 3, 2], [[], [], []], 2, at_work=[1, 2]) == 7


def test_nothing_takes_no_time() -> None:
    assert seconds_until_all_end([0, 0], [[], [0]], 1) == 0
    assert seconds_until_all_end([], [], 1) == 0
