"""The colour of each arm: the same in every plot and page of a report."""

from __future__ import annotations

from lsemrl.report.records import Report

# Okabe and Ito's palette, told apart by every common kind of colour vision.
COLOURS = {
    "base": "#5c5c5c",
    "cold_start": "#b87900",
    "cold_start_anchored": "#7a6a00",
    "rl": "#0072b2",
    "rl_anchored": "#b5569c",
    "sft": "#d55e00",
    "sft_anchored": "#3f7f93",
    "sft_replay": "#00875f",
}
_MORE_COLOURS = ("#2b93c9", "#7b4ea3", "#a8442a", "#6b8e23", "#8a5a83", "#4d6fae", "#996515", "#5b7f4a")


def colours(report: Report) -> dict[str, str]:
    """One colour per arm name, the same in every report for the names that this project gives.

    Arms on the way to another have that one's.
    """
    own = COLOURS.keys() | {arms[-1] for arms in report.paths}
    on_the_way = {name: arms[-1] for arms in report.paths for name in arms[:-1] if name not in own}
    others = [arm.name for arm in report.arms if arm.name not in COLOURS and arm.name not in on_the_way]
    found = COLOURS | {name: _MORE_COLOURS[at % len(_MORE_COLOURS)] for at, name in enumerate(others)}
    return found | {name: found[end] for name, end in on_the_way.items()}
