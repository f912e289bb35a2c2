"""The parts of a run's reward, made again from its configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lsemrl.commands import scored
from lsemrl.commands.scored import parts_of, score
from lsemrl.commands.trained import Trained
from lsemrl.rewards import Reward


def run_with(**rewards: Any) -> Trained:
    """What `parts_of` reads of a run whose parts are of these classes, each with its settings."""
    parts = {name: {"class_path": f"lsemrl.rewards.{name}", "init_args": given} for name, given in rewards.items()}
    config = {"model": {"init_args": {"rewards": parts}}}
    return cast(Trained, SimpleNamespace(config=config, folder=Path("run")))


def test_every_reward_of_lsemrl_is_known() -> None:
    ours = {kind.__name__ for kind in Reward.__subclasses__() if kind.__module__.startswith("lsemrl.")}
    assert ours == scored._REWARDS.keys()


@pytest.mark.parametrize(("pair", "copied"), [(True, "CopyOfSource 0.0000"), (False, "CopyOfSource does not apply")])
def test_what_looks_for_cheats_is_scored_as_in_the_run(pair: bool, copied: str) -> None:
    mix, left_out = parts_of(run_with(CopyOfSource={}, Broken={}, Length={"longest": 2.0}, Repetition={}))
    line = score(mix, "I drink water at home", "I drink water at home", "I dey drink wata for house", pair=pair)
    assert line == f"{copied}, Broken 1.0000, Length 1.0000, Repetition 1.0000" and not left_out


def test_a_floor_that_a_run_measured_is_not_taken_for_none() -> None:
    mix, left_out = parts_of(run_with(Coverage={"encoder": "micro"}))
    assert list(mix.parts) == ["chrf"]
    assert left_out == ["Coverage is left out: its floor is what the rows of the run say, which are not read here"]
