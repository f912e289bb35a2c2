"""The calibration report: JSON to read on, Markdown to read, histograms to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl.files import write_bytes, write_text
from lsemrl.foreign import markdown, visible
from lsemrl.json_records import write_json
from lsemrl.rewards.calibration import FIGURES, OUTPUTS, PAIRS, Calibration, Probe, Tau
from lsemrl.rewards.semantic import rescaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {  # Okabe and Ito's
    "matched": "#0072b2", "corrupted": "#d55e00", "shuffled": "#5c5c5c",
    "paraphrase": "#0072b2", "spoiled": "#d55e00", "unrelated": "#5c5c5c", "copy": "#b87900", "tau": "#00875f",
}  # fmt: skip
_EDGES = [-1 + at / 50 for at in range(101)]


def write(
    folder: Path, calibrations: dict[str, Calibration], texts: Probe, tau: Tau | None, facts: dict[str, Any]
) -> None:
    """Write calibration.json, calibration.md and calibration.png to `folder`.

    Args:
        folder: It exists.
        calibrations: By what to call them, such as before and after; the last is the encoder that is kept.
        texts: What they were measured on.
        tau: The threshold, if there is one.
        facts: What else the JSON is to hold; its `summary`, a sentence, is also shown.

    Raises:
        UserError: One of them cannot be written.
    """
    content = {
        "version": 1,
        **facts,
        "pairs": len(texts.references),
        "corruption": texts.corruption,
        "tau": asdict(tau) if tau else None,
        "calibrations": {name: asdict(calibration) for name, calibration in calibrations.items()},
    }
    write_json(folder / "calibration.json", content)
    write_text(folder / "calibration.md", _page(calibrations, texts, tau, facts))
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a label is not TeX
        picture = io.BytesIO()
        _draw(calibrations, tau).savefig(picture, format="png", dpi=160)
    write_bytes(folder / "calibration.png", picture.getvalue())


def tau_line(tau: Tau) -> str:
    """What tau is, where it comes from and whom it pays nothing."""
    silent = f" ({tau.silent} more were empty or broken, which have none)" if tau.silent else ""
    rewards = _rewards(tau)
    return (
        f"tau = {tau.value:g}, the {tau.quantile:.1%} quantile of the cosines of {len(tau.cosines)} outputs of policy "
        f"{tau.policy}{silent}: {_share_of_nothing(rewards):.1%} of all {len(rewards)} earn nothing"
    )


def _rewards(tau: Tau) -> list[float]:
    """What all outputs that tau comes from earn with it."""
    return [rescaled(cosine, tau.value) for cosine in tau.cosines] + [0.0] * tau.silent


def _share_of_nothing(rewards: list[float]) -> float:
    return sum(reward == 0 for reward in rewards) / len(rewards)


def _page(calibrations: dict[str, Calibration], texts: Probe, tau: Tau | None, facts: dict[str, Any]) -> str:
    kept = list(calibrations.values())[-1]
    columns = " | ".join(map(markdown, calibrations))
    lines = [
        "# Calibration of the reward encoder",
        "",
        markdown(
            f"{facts['summary']} Measured on {len(texts.references)} held-out pairs. Corrupted: {texts.corruption}."
        ),
        "",
        f"| what (best) | {columns} |",
        f"|---|{'---:|' * len(calibrations)}",
    ]
    for name, label in FIGURES.items():
        if name in kept.figures:
            values = " | ".join(_number(calibration.figures[name]) for calibration in calibrations.values())
            lines.append(f"| {label} | {values} |")
    lines += ["", f"| mean cosine | {columns} |", f"|---|{'---:|' * len(calibrations)}"]
    for name, label in PAIRS.items():
        values = " | ".join(_number(_mean(calibration.cosines[name])) for calibration in calibrations.values())
        lines.append(f"| {label} | {values} |")
    lines += ["", "## What the reward pays", ""]
    if tau is None:
        why = "no policy was named, or the encoder tells translations by chance"
        lines.append(f"No tau was derived ({why}): the rewards below are for tau 0.")
    else:
        lines.append(
            f"{markdown(tau_line(tau))}. The paper takes the minimal adequacy seen in the cold start and names no "
            "number; the quantile is our choice."
        )
    lines += ["", "| output | mean cosine | mean reward | paid nothing |", "|---|---:|---:|---:|"]
    threshold = tau.value if tau else 0.0
    rows = {
        label: (kept.cosines[name], [rescaled(cosine, threshold) for cosine in kept.cosines[name]])
        for name, label in OUTPUTS.items()
        if name in kept.cosines
    }
    if tau is not None:
        rows[markdown(f"outputs of policy {tau.policy}")] = tau.cosines, _rewards(tau)
    for label, (cosines, rewards) in rows.items():
        lines.append(
            f"| {label} | {_number(_mean(cosines))} | {_number(_mean(rewards))} | {_share_of_nothing(rewards):.1%} |"
        )
    lines += [
        "",
        "Of the encoder that is kept, before the part's weight. An untranslated source has the cosine of a matched "
        "pair, which training raises: it is the language reward that must stop copying.",
        "",
        "![Histograms of the cosines](calibration.png)",
        "",
    ]
    return "\n".join(lines)


def _draw(calibrations: dict[str, Calibration], tau: Tau | None) -> Figure:
    """Histograms: a column for each calibration, above across the languages, below as the reward compares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.4 * len(calibrations), 6.4), layout="constrained")
    axes = figure.subplots(2, len(calibrations), sharex=True, squeeze=False)
    for column, (name, calibration) in enumerate(calibrations.items()):
        for row, labels in enumerate((PAIRS, OUTPUTS)):
            ax: Axes = axes[row][column]
            for kind, label in labels.items():
                if kind in calibration.cosines:
                    _histogram(ax, calibration.cosines[kind], label, _COLOURS[kind])
            ax.set_title(f"{name}: {('across the languages', 'as the reward compares')[row]}", loc="left", fontsize=9.5)
            ax.set_yticks([])
            ax.spines[["top", "right", "left"]].set_visible(False)
    if tau is not None:
        kept: Axes = axes[1][-1]
        _histogram(kept, tau.cosines, visible(f"outputs of policy {tau.policy}"), _COLOURS["tau"])
        kept.axvline(tau.value, color=_COLOURS["tau"], linestyle="--", label=f"tau = {tau.value:g}")
    for ax in axes[:, -1]:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    every = [values for calibration in calibrations.values() for values in calibration.cosines.values()]
    lowest = min(map(min, [*every, tau.cosines] if tau else every))
    for ax in axes[1]:
        ax.set_xlim(max(-1.0, lowest - 0.05), 1.02)
        ax.set_xlabel("cosine")
    return figure


def _histogram(ax: Axes, cosines: list[float], label: str, colour: str) -> None:
    ax.hist(cosines, bins=_EDGES, density=True, histtype="stepfilled", alpha=0.18, color=colour)
    ax.hist(cosines, bins=_EDGES, density=True, histtype="step", color=colour, label=label)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"
