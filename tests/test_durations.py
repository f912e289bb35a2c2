"""When a line on progress is due, and what it says of the time that is left."""

from __future__ import annotations

import pytest

from lsemrl import durations
from lsemrl.durations import Pace, spoken


def test_a_duration_is_told_in_the_unit_that_people_would_use() -> None:
    assert [spoken(seconds) for seconds in (0.4, 89, 91, 5_330, 5_430)] == [
        "0 s",
        "89 s",
        "2 min",
        "89 min",
        "1 h 30 min",
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_lines_are_due_every_thirty_seconds(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(durations.time, "monotonic", lambda: clock[0])
    pace, due = Pace(at_once=at_once), []
    for clock[0] in (100.0, 129.0, 130.0, 159.0, 161.0):
        due.append(pace.due())
    assert due == ([True, False, True, False, True] if at_once else [False, False, True, False, True])
    assert pace.due(anyhow=True)
    clock[0] = 200.0
    assert pace.left(20, 30) == "about 50 s left"  # 100 seconds for 20
