"""What is going wrong while GRPO trains, told from the rows that are logged anyway.

Every function here is pure: rows of metrics.csv in, a sentence out. `alarm_log` reads the rows and tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Literal

from lsemrl.finite import check_finite
from lsemrl.rewards.base import RewardMix
from lsemrl.rewards.language import LanguageConsistency
from lsemrl.types import UserError

Row = Mapping[str, float]

_NOTHING = 1e-3
"""A reward whose mean stays below it is none."""
_LEAST_FALL = 0.01
"""A measure that falls by less is taken to have stayed."""
_SURE = 4.0
"""Standard errors by which means have to differ: each batch has other prompts, and a run is looked at many times."""
_BY_CHANCE = 0.001
"""How likely it may be, by all comparisons of a run so far, that what only varies is taken for what fell; about, for
windows overlap."""
_INDEPENDENT = ("val/chrf", "val/meaning_f1")
"""Of what validation measures: what no reward is likely to be made of, but for the paper's ablations."""


@dataclass(frozen=True, kw_only=True)
class AlarmSettings:
    """When training says that something is going wrong; null turns an alarm off.

    The defaults stay silent over the shipped runs and speak up in the recorded bad ones (docs/guards.md). A change from
    one window to another is one only if it is four times its standard error, too.
    """

    on_alarm: Literal["say", "stop"] = "say"
    """say goes on training; stop saves a checkpoint and ends, and the same command goes on from there."""
    window: int = 10
    """Logged rows that are averaged, the first of a run and the newest."""
    gamed: float | None = 0.03
    """The share by which chrF or meaning F1 of validation, or a part of weight 0, has fallen from where it was best,
    while the reward has not."""
    language: float | None = 0.03
    """How far the mean of a language part has fallen."""
    length: float | None = 0.25
    """The share by which completions have become longer or shorter, in tokens."""
    template: float | None = 0.3
    """How many more completions than references have a pair of neighbouring units in common, as a share of all."""
    shared: float | None = 0.2
    """The share of completions that another prompt got too."""
    copied: float | None = 0.1
    """How much more of the source is copied than at the start, and than references do, as a share."""
    ties: float | None = 0.95
    """The share of groups whose rewards are all alike, or of which fewer than two completions have one."""
    unrewarded: bool = True
    """Whether a part that has paid nothing since the start is told."""
    kl: float | None = 1.0
    """Nats per token from the reference."""

    def __post_init__(self) -> None:
        check_finite(self, "alarms")
        if self.on_alarm not in ("say", "stop"):
            raise UserError(f"alarms.on_alarm is {self.on_alarm!r}; choose say or stop")
        if self.window < 1:
            raise UserError(f"alarms.window is {self.window}; give 1 or more")
        for name in ("gamed", "language", "length", "template", "shared", "copied", "ties", "kl"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"alarms.{name} is {value}; give a number above 0, or null to turn it off")


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The parts of the reward that rules of their own hold for, by name.

    Attributes:
        paid: Those that add to the reward, gates too; a penalty is 0 where all is well.
        free: Those of weight 0 that tell no language.
        language: Those that tell a language.
    """

    paid: tuple[str, ...]
    free: tuple[str, ...]
    language: tuple[str, ...]

    @classmethod
    def of(cls, mix: RewardMix) -> Watched:
        """Those of a reward."""
        language = tuple(name for name, part in mix.parts.items() if isinstance(part, LanguageConsistency))
        paid = tuple(name for name, part in mix.parts.items() if part.weight > 0 or name in mix.gates)
        free = tuple(name for name, part in mix.parts.items() if not part.weight and name not in (*paid, *language))
        return cls(paid=paid, free=free, language=language)


def alarms(rows: Sequence[Row], watched: Watched, settings: AlarmSettings) -> dict[str, str]:
    """What is going wrong, a sentence by its kind.

    Args:
        rows: All rows of metrics.csv, in the order of their steps; of training and of validation.
        watched: Of the reward.
        settings: The thresholds.
    """
    trained = [row for row in rows if "reward" in row]
    first, now = trained[: settings.window], trained[-settings.window :]
    if len(trained) < settings.window:
        return {}
    found = {
        "unrewarded": _unrewarded(trained, watched) if settings.unrewarded else "",
        "ties": _ties(now, _most(settings.ties)),
        "kl": _kl(now, _most(settings.kl)),
        "template": _template(now, _most(settings.template)),
        "shared": _shared(now, _most(settings.shared)),
    }
    if len(trained) >= 2 * settings.window:
        found |= {
            "language": _language(first, now, watched, _most(settings.language)),
            "length": _length(first, now, _most(settings.length)),
            "copied": _copied(first, now, _most(settings.copied)),
            "gamed": _gamed(rows, trained, watched, settings),
        }
    return {kind: sentence for kind, sentence in found.items() if sentence}


def _gamed(rows: Sequence[Row], trained: Sequence[Row], watched: Watched, settings: AlarmSettings) -> str:
    """Whether an independent measure is below where it was best although the reward is not."""
    if settings.gamed is None:
        return ""
    for column, points in _measured(rows, trained, watched, settings.window):
        *before, now = points
        # The error of a window of few rows is often too small, and the longer a run, the more windows are compared.
        usual = math.sqrt(2 * fmean(each.error**2 for each in points))
        sure = usual * NormalDist().inv_cdf(1 - _BY_CHANCE / len(points) ** 2)
        fallen = [
            each
            for each in before
            if each.reward <= now.reward  # a batch that is hard is hard for both
            and each.value - now.value
            > max(settings.gamed * abs(each.value), _LEAST_FALL, _SURE * math.hypot(each.error, now.error), sure)
        ]
        if fallen:
            best = max(fallen, key=lambda each: each.value)
            return (
                f"{column} fell from {best.value:.3f} to {now.value:.3f} while the reward went from {best.reward:.3f} "
                f"to {now.reward:.3f}: it is being gamed; read the rows, and add a guard against what they do"
            )
    return ""


@dataclass(frozen=True)
class _Point:
    """Mean reward of a window, an independent measure of it, and the standard error of that over the batches."""

    reward: float
    value: float
    error: float


def _measured(
    rows: Sequence[Row], trained: Sequence[Row], watched: Watched, window: int
) -> Iterator[tuple[str, list[_Point]]]:
    """Each independent measure that there is, from the start to now, two points or more."""
    blocks = [trained[max(end - window, 0) : end] for end in range(len(trained), window - 1, -window)][::-1]
    for name in watched.free:
        column = f"rewards/{name}/mean"
        points = [_Point(_mean(block, "reward"), _mean(block, column), _error(block, column)) for block in blocks]
        yield from _whole(column, points)
    for column in _INDEPENDENT:
        points, seen = [], list[Row]()
        for row in rows:
            if "reward" in row:
                seen.append(row)
            if column in row and len(seen) >= window:
                # The same rows each time, so that no batch is an easy one.
                points.append(_Point(_mean(seen[-window:], "reward"), row[column], 0.0))
        yield from _whole(column, points)


def _whole(column: str, points: list[_Point]) -> Iterator[tuple[str, list[_Point]]]:
    known = [point for point in points if math.isfinite(point.reward) and math.isfinite(point.value)]
    if len(known) > 1:
        yield column, known


def _language(first: Sequence[Row], now: Sequence[Row], watched: Watched, most: float) -> str:
    for name in watched.language:
        column = f"rewards/{name}/mean"
        began, ended = _mean(first, column), _mean(now, column)
        if began - ended > most and _differ(first, now, column):
            return (
                f"{column} fell from {began:.2f} to {ended:.2f}: completions leave the language; raise the "
                f"weight of {name}, or make it a gate"
            )
    return ""


def _length(first: Sequence[Row], now: Sequence[Row], most: float) -> str:
    began, ended = (_mean(rows, "completions/mean_length") for rows in (first, now))
    if not began or not abs(ended / began - 1) > most:
        return ""
    if not _differ(first, now, "completions/mean_length"):
        return ""
    return (
        f"completions have {ended:.1f} tokens where they had {began:.1f}: length is what is learned; add "
        "lsemrl.rewards.Length"
    )


def _copied(first: Sequence[Row], now: Sequence[Row], most: float) -> str:
    began, ended = (_mean(rows, "completions/copied") for rows in (first, now))
    if not ended - began > most or not _differ(first, now, "completions/copied"):
        return ""
    return (
        f"what is copied from the source went from {began:.0%} to {ended:.0%}, beyond what references copy; add "
        "lsemrl.rewards.CopyOfSource"
    )


def _template(now: Sequence[Row], most: float) -> str:
    share = _mean(now, "completions/template")
    if not share > most:
        return ""
    return (
        f"the same two words stand in {share:.0%} more of the completions than of the references: a template is said "
        "whatever is asked; start RL from a stronger cold start, or add lsemrl.rewards.Coverage"
    )


def _shared(now: Sequence[Row], most: float) -> str:
    share = _mean(now, "completions/shared")
    if not share > most:
        return ""
    return (
        f"{share:.0%} of completions are what another prompt got too: the prompt is no longer read; raise loss.beta or "
        "sampling.temperature, or lower optimizer.lr"
    )


def _ties(now: Sequence[Row], most: float) -> str:
    near = _mean(now, "frac_reward_near_tie")  # those that are equal too
    share = _mean(now, "frac_reward_zero_std") if math.isnan(near) else near
    if not share >= most:
        return ""
    return (
        f"in {share:.0%} of groups all completions get the same reward, or nearly, or none, which teaches nothing; "
        "raise sampling.temperature or sampling.num_generations, or end here"
    )


def _unrewarded(trained: Sequence[Row], watched: Watched) -> str:
    for column in ("reward", *(f"rewards/{name}/mean" for name in watched.paid)):
        known = [abs(row[column]) for row in trained if math.isfinite(row.get(column, math.nan))]
        if known and max(known) < _NOTHING:
            return (
                f"{column} has been 0 for all {len(known)} logged steps: nothing is learned from it; look at "
                "samples.csv, lower a threshold such as tau, or start from a stronger cold start"
            )
    return ""


def _kl(now: Sequence[Row], most: float) -> str:
    kl = _mean(now, "kl")
    if not kl > most:
        return ""
    return f"kl is {kl:.2f} nats per token: the policy runs away; lower optimizer.lr, or raise loss.beta"


def _most(setting: float | None) -> float:
    """What an alarm comes above: nothing, where it is turned off."""
    return math.inf if setting is None else setting


def _mean(rows: Sequence[Row], column: str) -> float:
    """Over the rows that have a finite one; NaN, which no threshold is below, where none has."""
    known = [row[column] for row in rows if math.isfinite(row.get(column, math.nan))]
    return fmean(known) if known else math.nan


def _differ(first: Sequence[Row], now: Sequence[Row], column: str) -> bool:
    """Whether two means differ by more than batches do."""
    return abs(_mean(first, column) - _mean(now, column)) > _SURE * math.hypot(
        _error(first, column), _error(now, column)
    )


def _error(rows: Sequence[Row], column: str) -> float:
    """Standard error of `_mean`; 0 of a single row, whose spread is not known."""
    known = [row[column] for row in rows if math.isfinite(row.get(column, math.nan))]
    return math.sqrt(variance(known) / len(known)) if len(known) > 1 else 0.0
