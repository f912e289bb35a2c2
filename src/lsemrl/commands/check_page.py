"""What `lsemrl check` found as a page that needs no other file, and as JSON."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsemrl.commands.check_readings import Read
from lsemrl.data.inspection import Inspection
from lsemrl.files import write_text
from lsemrl.foreign import page_template, visible
from lsemrl.json_records import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, JSON = "check.html", "check.json"
_BLUE, _ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's
_LONGEST = 200


def write(folder: Path, found: Inspection, read: Read, costs: Sequence[str], facts: dict[str, Any]) -> None:
    """Write both to `folder`, which exists.

    Args:
        folder: Where to.
        found: What was found.
        read: By models.
        costs: What training would take, in sentences.
        facts: What was looked at.

    Raises:
        UserError: One of them cannot be written.
    """
    sides = [{name: value for name, value in asdict(side).items() if name != "lengths"} for side in found.sides]
    tokens = [
        {
            "by": one.by,
            "what": one.what,
            "per_unit": one.carried.tokens_per_unit,
            "unit": one.carried.unit,
            "unknown": one.carried.unknown,
        }
        for one in read.readings
    ]
    content = {
        "version": 2,  # the first had tokens per_word, of whatever unit
        **facts,
        "rows": found.rows,
        "sides": sides,
        "findings": [asdict(one) for one in found.findings],
        "tokens": tokens,
        "cost": asdict(read.cost) | {"memory_bytes": read.cost.memory.total} if read.cost else None,
    }
    write_json(folder / JSON, content)
    page = page_template(Path(__file__).with_name("check.html.jinja"), shorter=_shorter).render(
        facts=facts,
        found=found,
        tokens=tokens,
        costs=costs,
        picture=_picture(found, read.lengths),
        total=sum(found.rows.values()),
    )
    write_text(folder / PAGE, page)


def _shorter(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _picture(found: Inspection, lengths: Sequence[tuple[int, int]]) -> str:
    """Lengths, their ratios and, where a policy was named, lengths in its tokens, as a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    ratios = [ratio for ratio in found.ratios if ratio > 0]
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9.5}):  # a label is not TeX
        panels = 2 + bool(lengths)
        figure = Figure(figsize=(3.9 * panels, 2.9), layout="constrained")
        axes = figure.subplots(1, panels)
        for side, colour in zip(found.sides, (_BLUE, _ORANGE), strict=True):
            _histogram(axes[0], side.lengths, visible(side.field), colour)
        _dress(axes[0], "Length of the texts, characters", legend=True)
        _histogram(axes[1], ratios, "", _BLUE, logarithmic=True)
        _dress(axes[1], "Length of the output for one of the input, units", legend=False)
        if lengths:
            _histogram(axes[2], [prompt for prompt, _ in lengths], "prompt", _BLUE)
            _histogram(axes[2], [answer for _, answer in lengths], "output", _ORANGE)
            _dress(axes[2], "Length in tokens of the policy", legend=True)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=160)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def _histogram(ax: Axes, values: Sequence[float], label: str, colour: str, *, logarithmic: bool = False) -> None:
    if not values:
        return
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(len(ordered) * 0.995))]
    if logarithmic:
        low, high = math.log(low), math.log(max(high, low * 1.01))
        edges = [math.exp(low + (high - low) * at / 40) for at in range(41)]
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        edges = [low + max(high - low, 1) * at / 40 for at in range(41)]
    ax.hist(values, bins=edges, histtype="stepfilled", alpha=0.18, color=colour)
    ax.hist(values, bins=edges, histtype="step", color=colour, label=label)


def _dress(ax: Axes, title: str, *, legend: bool) -> None:
    ax.set_title(title, loc="left", fontsize=9.5)
    ax.set_ylabel("rows")
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(frameon=False, fontsize=9)
