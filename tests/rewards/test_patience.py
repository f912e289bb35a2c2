"""Rewards that raise, hang, or give something that is no reward."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lsemrl.errors import UserError
from lsemrl.rewards import Reward, RewardMix
from lsemrl.rewards.patience import Patience
from lsemrl.types import Completion, Example

COMPLETIONS = [
    Completion(text="a", ended=True, example=Example(id=str(row), prompt="p", source="s", references=("r",)))
    for row in range(4)
]


class Moody(Reward):
    """Does what it is told, call by call."""

    def __init__(self, *moods: str) -> None:
        super().__init__()
        self.moods, self.threads = list(moods), set[str]()

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        self.threads.add(threading.current_thread().name)
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "raise":
            raise RuntimeError("the encoder died")
        if mood == "hang":
            time.sleep(60)
        return torch.ones(len(completions) - (mood == "short"))


class Steady(Reward):
    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        return torch.full((len(completions),), 0.5)


def mix(*moods: str, **patience: Any) -> RewardMix:
    return RewardMix({"moody": Moody(*moods), "steady": Steady()}, patience=Patience(**patience))


@pytest.mark.parametrize("mood", ["raise", "short", "hang"])
def test_a_part_is_asked_again(mood: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = mix(mood, timeout=0.3 if mood == "hang" else 20.0)
    with caplog.at_level("WARNING"):
        rewards = parts(COMPLETIONS, 2)
    assert rewards.total_N.tolist() == [1.5] * 4
    assert "reward 'moody' failed (1 of 2)" in caplog.text
    assert parts.counters["rewards/moody/failures"] == 0
    if mood == "raise":
        assert "test_patience.py" in caplog.text  # where it went wrong


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("raise", "RuntimeError: the encoder died"),
        ("short", r"gave shape \(3,\) for 4 completions"),
        ("hang", "TimeoutError: no answer within 0.3 seconds"),
    ],
)
def test_a_part_that_fails_to_the_last_stops_the_run(mood: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        mix(mood, mood, timeout=0.3 if mood == "hang" else 20.0)(COMPLETIONS, 2)


@pytest.mark.parametrize("mood", ["raise", "short", "hang"])
def test_or_the_others_make_the_reward(mood: str) -> None:
    parts = mix(mood, mood, timeout=0.3 if mood == "hang" else 20.0, on_failure="nan")
    rewards = parts(COMPLETIONS, 2)
    assert rewards.parts_N["moody"].isnan().all()
    assert rewards.total_N.tolist() == [0.5] * 4
    assert parts.counters["rewards/moody/failures"] == 1
    assert parts(COMPLETIONS, 2).total_N.tolist() == [1.5] * 4  # it is asked again next time
    again = mix()
    again.resume(parts.state())
    assert again.counters["rewards/moody/failures"] == 1


def test_no_patience_needs_no_thread() -> None:
    part = Moody()
    RewardMix({"moody": part}, patience=Patience(timeout=None))(COMPLETIONS, 2)
    assert part.threads == {threading.current_thread().name}
