"""The plots of a report, as matplotlib figures that know no display and leave no global state behind."""

from __future__ import annotations

import base64
import io
import itertools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lsemrl.foreign import visible
from lsemrl.report.colours import colours
from lsemrl.report.findings import matched, number, path, unmeasured
from lsemrl.report.fonts import families
from lsemrl.report.labels import INK, label, make_room
from lsemrl.report.records import SCORES, Arm, Report

_MUTED, _RULE = "#6b6b6b", "#d8d8d8"
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ebebeb",
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a label is not TeX
    "svg.hashsalt": "lsemrl",  # the same report gives the same bytes
}
_CURVES = {  # in no arm's colour
    "similarity": ("similarity reward", "#7b4ea3"),
    "meaning_f1": ("meaning F1 (oracle)", INK),
    "language": ("language reward", "#8f7f00"),
}
_MONITORS = {"reward": "total reward", "kl": "KL to the reference, nats per token", "length": "length, tokens"}
_DRIFT = "NLL of the gold answer minus the base's, nats per token"
_BINS = 48
_MANY, _MANY_SIZE = 7, (10.5, 7.2)
"""From how many arms on a plot needs more room, and how much in inches."""
Series = NDArray[np.float64]


def draw(report: Report) -> dict[str, Figure]:
    """Every plot that the report has numbers for, by the name of its file."""
    words = "".join((report.general_name, report.text_name, *(arm.label for arm in report.arms)))
    with _styled(families(visible(words))):
        figures = {"gain_tax": _gain_tax(report), "nll_drift": _nll_drift(report)}
        figures |= {"hacking": _hacking(report), "kl_tax": _kl_tax(report)} if report.contrasts else {}
        figures |= {f"reward_{arm.name}": _reward_curve(arm) for arm in report.trained}
    return {name: figure for name, figure in figures.items() if figure}


def png(figure: Figure) -> bytes:
    """`figure` at 200 dots per inch."""
    return _save(figure, "png", None)


def svg(figure: Figure) -> str:
    """`figure` as a data URI, isolated from the page so that no two plots share ids."""
    return "data:image/svg+xml;base64," + base64.b64encode(_save(figure, "svg", {"Date": None})).decode()


def _save(figure: Figure, kind: str, metadata: dict[str, None] | None) -> bytes:
    buffer = io.BytesIO()
    with _styled():
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _styled(family: Sequence[str] = ()) -> Iterator[None]:
    finds = logging.getLogger("matplotlib.font_manager")
    level = finds.level
    with matplotlib.rc_context(_STYLE | ({"font.family": family} if family else {})), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # what no font has is told once, by its letters
        finds.setLevel(logging.ERROR)  # most fonts of other scripts are not bold, which no label needs
        try:
            yield
        finally:
            finds.setLevel(level)


def _gain_tax(report: Report) -> Figure | None:
    """Target score over loss: up is gain, right is tax; a line per arm through its training.

    Where the base has next to nothing to lose of its main score, the loss is what gold answers lost in likelihood.
    """
    scored = math.isfinite(report.base.general.get(report.kept, math.nan)) and not unmeasured(report)
    kept, unit = (report.kept, -100) if scored else ("nll", 1)
    before, lines = report.base.general.get(kept, math.nan), {}
    for arm in report.arms:
        if rows := path(arm, report.score, kept):
            lines[arm.name] = [(unit * (after - before), 100 * score) for _, score, after in rows]
    if not math.isfinite(before) or not any(arm.name in lines for arm in report.trained):
        return None
    figure = Figure(figsize=_MANY_SIZE if len(lines) > _MANY else (7.4, 4.7), layout="constrained")
    ax = figure.add_subplot()
    ax.axvline(0, color=_RULE, linewidth=1.2, zorder=0)
    colour, ends, obstacles, trained = colours(report), [], list(lines.values()), list[tuple[float, float]]()
    for arm in report.arms:
        if arm.name not in lines:
            continue
        xs, ys = zip(*lines[arm.name], strict=True)
        ax.plot(xs, ys, color=colour[arm.name], linewidth=1.8, marker="o", markersize=3.5, alpha=0.75)
        bars = _seeds(ax, report, arm, colour[arm.name], kept)
        obstacles += bars
        if arm.name != "base":
            trained += [lines[arm.name][-1], *itertools.chain(*bars)]
        _dot(ax, arm, xs[-1], ys[-1], colour[arm.name])
        ends.append((xs[-1], ys[-1], visible(arm.label), colour[arm.name]))
    final = {name: rows[-1] for name, rows in lines.items()}
    for arms in report.paths:
        way = [final[name] for name in ("base", *arms) if name in final]
        ax.plot(
            *zip(*way, strict=True), color=colour[arms[-1]], linewidth=1.2, linestyle=(0, (4, 2)), alpha=0.7, zorder=2
        )
        obstacles.append(way)
    for rl, other, same in matched(report) if scored else ():
        if same and other.name == "sft":
            height, losses = 100 * same.score, (100 * same.loss_a, 100 * same.loss_b)
            obstacles.append([(loss, height) for loss in losses])
            ax.plot(losses, (height, height), color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=3)
            for loss, arm in zip(losses, (rl, other), strict=True):
                edge = colour[arm.name]
                ax.plot(loss, height, marker="D", markersize=5, color="white", markeredgecolor=edge, zorder=5)
            ends.append((max(losses), height, f"same score: {number(losses[0])} against {number(losses[1])}", INK))
    ax.margins(x=0.12, y=0.1)
    if len(lines) > _MANY:
        low = make_room(ax, trained)
        ends = [
            (x, y, text, hue) if y >= low else (x, low, f"{text}: {number(y)}, below", hue) for x, y, text, hue in ends
        ]
    lost = f"{visible(report.kept_name)} lost against the base, percentage points"
    ax.set_xlabel(f"{lost if scored else _DRIFT}  →  worse")
    ax.set_ylabel(f"{SCORES[report.score]}, points of 100  →  better")
    label(ax, ends, obstacles)
    return figure


def _seeds(ax: Axes, report: Report, arm: Arm, colour: str, kept: str) -> list[list[tuple[float, float]]]:
    """Draw where each seed ended, and the intervals of gain and loss around their mean; returns these lines."""
    gain, loss, unit = f"target.{report.score}", f"tax.{kept}", 1 if kept == "nll" else 100
    if arm.spread(gain) is not None and arm.spread(loss) is not None:
        xs, ys = ([scale * value for value in arm.by_seed[metric]] for metric, scale in ((loss, unit), (gain, 100)))
        ax.plot(xs, ys, color=colour, marker="o", markersize=3.5, alpha=0.6, linestyle="none")
    gained, lost = (report.contrast(arm.name, "base", metric) for metric in (gain, loss))
    if gained and lost and all(map(math.isfinite, (gained.low, gained.high, lost.low, lost.high))):
        x, y, before = unit * lost.value, 100 * arm.target[report.score], 100 * report.base.target[report.score]
        across = [(unit * lost.low, y), (unit * lost.high, y)]
        upright = [(x, before + 100 * gained.low), (x, before + 100 * gained.high)]
        for line in (across, upright):
            ax.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, alpha=0.8)
        return [across, upright]
    return []


def _dot(ax: Axes, arm: Arm, x: float, y: float, colour: str) -> None:
    """Draw where an arm is."""
    marker = "s" if arm.name == "base" else "o"
    ax.plot(x, y, color=colour, marker=marker, markersize=9, markeredgecolor="white", zorder=4)


def _hacking(report: Report) -> Figure | None:
    """The oracle's meaning over the similarity reward; right of the others at the same height is reward for nothing."""
    points = [
        (arm, arm.target["similarity_reward"], arm.target["meaning_f1"])
        for arm in report.arms
        if {"similarity_reward", "meaning_f1"} <= arm.target.keys()
    ]
    words = ("similarity reward of greedy outputs", "meaning F1 (oracle)  →  better")
    return _scatter(report, points, ("target.similarity_reward", "target.meaning_f1"), words)


def _kl_tax(report: Report) -> Figure | None:
    """What was lost over how far the arm moved on the new task."""
    before, kept = report.base.general.get(report.kept, math.nan), report.kept
    points = [
        (arm, arm.kl_from_base["target"], 100 * (before - arm.general[kept]))
        for arm in report.arms
        if "target" in arm.kl_from_base and kept in arm.general and not unmeasured(report)
    ]
    words = ("KL(base ‖ arm) on the new task, nats per token", f"{visible(report.kept_name)} lost, points")
    return _scatter(report, points, ("kl_from_base.target", f"tax.{kept}"), words, scale=100)


def _scatter(
    report: Report,
    points: Sequence[tuple[Arm, float, float]],
    metrics: tuple[str, str],
    words: tuple[str, str],
    scale: float = 1,
) -> Figure | None:
    """A dot per arm and a small one per seed; `scale` is that of the second metric."""
    points = [point for point in points if all(map(math.isfinite, point[1:]))]
    if len(points) < 2:
        return None
    figure = Figure(figsize=_MANY_SIZE if len(points) > _MANY else (7.4, 4.2), layout="constrained")
    ax, colour, obstacles = figure.add_subplot(), colours(report), [[(x, y)] for _, x, y in points]
    for arm, x, y in points:
        xs, ys = (arm.by_seed.get(metric, ()) for metric in metrics)
        small = [scale * value for value in ys]
        ax.plot(xs, small, color=colour[arm.name], marker="o", markersize=3.5, alpha=0.6, linestyle="none")
        obstacles += [[dot] for dot in zip(xs, small, strict=True)]
        _dot(ax, arm, x, y, colour[arm.name])
    ax.margins(x=0.14, y=0.12)
    ax.set_xlabel(words[0])
    ax.set_ylabel(words[1])
    ends = [(x, y, visible(arm.label), colour[arm.name]) for arm, x, y in points]
    label(ax, ends, obstacles)
    return figure


def _reward_curve(arm: Arm) -> Figure | None:
    """What the reward says against what the oracle says, the gap between them, and the run's monitors."""
    main = [key for key in _CURVES if _has(arm, key)]
    if not main:
        return None
    gap = "similarity" in main and "meaning_f1" in main
    monitors = [key for key in _MONITORS if _has(arm, key)]
    figure = Figure(figsize=(9.6, 4.7), layout="constrained")
    parts = figure.subfigures(1, 1 + bool(monitors), squeeze=False, width_ratios=(1.75, 1)[: 1 + bool(monitors)])[0]
    axes = parts[0].subplots(1 + gap, sharex=True, squeeze=False, height_ratios=(2.4, 1) if gap else None)[:, 0]
    steps = _series(arm, "rollout_step")
    for key in main:
        _line(axes[0], steps, _series(arm, key), _CURVES[key][1])
    axes[0].set_ylim(top=1.03)
    _name_ends(axes[0], steps, [(_smooth(_series(arm, key))[-1], *_CURVES[key]) for key in main])
    axes[0].set_title("Rollouts of training, 0 to 1")
    if gap:
        similarity, oracle = _series(arm, "similarity"), _series(arm, "meaning_f1")
        axes[0].fill_between(steps, _smooth(similarity), _smooth(oracle), color=_MUTED, alpha=0.13, linewidth=0)
        axes[1].axhline(0, color=_MUTED, linewidth=1)
        _line(axes[1], steps, similarity - oracle, INK)
        axes[1].set_title("Hacking gap: similarity reward minus meaning F1")
    axes[-1].set_xlabel("rollout step")
    if monitors:
        small = parts[1].subplots(len(monitors), sharex=True, squeeze=False)[:, 0]
        for ax, key in zip(small, monitors, strict=True):
            _line(ax, steps, _series(arm, key), _MUTED)
            ax.set_title(_MONITORS[key])
        small[-1].set_xlabel("rollout step")
    return figure


def _has(arm: Arm, key: str) -> bool:
    return bool(np.isfinite(_series(arm, key)).any())


def _series(arm: Arm, key: str) -> Series:
    return np.array([point.get(key, math.nan) for point in arm.curve], dtype=float)


def smoothing(steps: int) -> int:
    """How many rollout steps the bold lines average over."""
    return steps // 12 | 1  # odd, so that the mean is centred


def _smooth(values: Series) -> Series:
    """A running mean over `smoothing` steps, of what is finite, centred and shorter at both ends."""
    window, finite = np.ones(smoothing(len(values))), np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(float), window, mode="same")
    mean: Series = np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0)
    return mean


def _line(ax: Axes, steps: Series, values: Series, colour: str) -> None:
    ax.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    ax.plot(steps, _smooth(values), color=colour, linewidth=2)
    ax.margins(x=0.01)


def _name_ends(ax: Axes, steps: Series, ends: list[tuple[float, str, str]]) -> None:
    """Name each line at its right end, pushed apart where they meet."""
    height, (low, high) = -math.inf, ax.get_ylim()
    for value, name, colour in sorted(end for end in ends if math.isfinite(end[0])):
        height = max(value, height + 0.08 * (high - low))
        ax.annotate(
            f" {name}", (steps[-1], height), color=colour, fontweight="bold", va="center", annotation_clip=False
        )


def _nll_drift(report: Report) -> Figure | None:
    """How much less likely each question's gold answer became: a histogram per arm, on shared bins."""
    arms = [arm for arm in report.trained if np.isfinite(arm.nll_drifts).any()]
    if not arms:
        return None
    drifts = [np.array([drift for drift in arm.nll_drifts if math.isfinite(drift)]) for arm in arms]
    low, high = np.percentile(np.concatenate(drifts), (0.5, 99.5))
    edges = np.linspace(min(low, 0.0), max(high, 0.0) + 1e-6, _BINS + 1)
    figure = Figure(figsize=(7.4, 0.75 + 1.05 * len(arms)), layout="constrained")
    axes = figure.subplots(len(arms), sharex=True, sharey=True, squeeze=False)[:, 0]
    colour = colours(report)
    for ax, arm, values in zip(axes, arms, drifts, strict=True):
        # The last bins hold what lies beyond, so that a few extremes do not flatten the rest.
        shares = 100 * np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(arm.nll_drifts)
        ax.stairs(shares, edges, fill=True, color=colour[arm.name], alpha=0.35)
        ax.stairs(shares, edges, color=colour[arm.name], linewidth=1.2)
        ax.axvline(0, color=_MUTED, linewidth=1)
        ax.grid(axis="x", visible=False)
        ax.text(0.995, 0.95, _drift_words(arm, values), transform=ax.transAxes, ha="right", va="top", color=INK)
        ax.set_title(visible(arm.label), color=colour[arm.name], fontweight="bold")
    axes[-1].set_xlabel(f"{_DRIFT}  →  forgotten")
    figure.supylabel("questions, %", fontsize=9.5)
    return figure


def _drift_words(arm: Arm, values: Series) -> str:
    """Mean and tail of an arm's finite drifts, and how many were not finite."""
    p50, p90 = np.percentile(values, (50, 90))
    broken = len(arm.nll_drifts) - len(values)
    summaries = zip(("mean", "P50", "P90"), (values.mean(), p50, p90), strict=True)
    words = ", ".join(f"{name} {number(float(value), 2, '+')}" for name, value in summaries)
    return words + (f", {broken} not finite" if broken else "")
