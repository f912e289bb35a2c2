"""Where the words of a plot stand: beside what they name, over as little else as can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

INK = "#1c1c1c"
_Place = tuple[float, str, str, float, float]
# Where a label may stand: how far, its alignment, and points from what it names; the first that fits is taken.
_PLACES: tuple[_Place, ...] = tuple(
    (far, ha, va, dx, dy)
    for far in (1, 2, 3.5, 6, 9, 13, 18, 25)
    for ha, va, dx, dy in (
        ("left", "center", 9, 0), ("right", "center", -9, 0), ("center", "bottom", 0, 8), ("center", "top", 0, -8),
        ("left", "bottom", 7, 6), ("left", "top", 7, -6), ("right", "bottom", -7, 6), ("right", "top", -7, -6),
    )
)  # fmt: skip


def make_room(ax: Axes, points: Sequence[tuple[float, float]]) -> float:
    """Have the plane begin below `points` and not at a base far below them, with room for words above and on the left.

    There is the crowd of those that lost little. Returns the height at which the plane begins.
    """
    heights = [y for _, y in points]
    spare = 0.25 * (max(heights) - min(heights)) + 1
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    ax.set_xlim(left - 0.45 * (right - left), right)
    ax.set_ylim(max(bottom, min(heights) - spare), max(top, max(heights) + spare))
    low, high = ax.get_ylim()
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= right])
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= min(high, 100)])
    return low


def label(ax: Axes, ends: Sequence[tuple[float, float, str, str]], lines: Iterable[list[tuple[float, float]]]) -> None:
    """Write each label near its point, on the side and at the distance where it covers least."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()  # or each box would be asked of a new one
    half, ways = 3 * figure.dpi / 72, [np.empty((0, 2))]
    for line in lines:
        drawn = [point for point in line if all(map(math.isfinite, point))]
        steps = itertools.pairwise(ax.transData.transform([*drawn[:1], *drawn])) if drawn else ()
        # So close that words over a long line cover more than a point or two of it.
        ways += [np.linspace(a, b, max(8, int(np.hypot(*(b - a)) / (4 * half)))) for a, b in steps]
    way_M2 = np.concatenate(ways)
    busy_M4, labels_M4 = np.hstack([way_M2 - half, way_M2 + half]), np.empty((0, 4))
    for x, y, text, colour in ends:
        note = ax.annotate(text, (x, y), (0, 0), textcoords="offset points", color=colour, zorder=6)
        note.set_fontweight("normal" if colour == INK else "bold")
        costs = list[float]()
        for place in _PLACES:
            if costs and min(costs) <= 2 * place[0]:  # nor would one farther away be better
                break
            box = _stand(note, place, renderer)
            outside = not (ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max))
            costs.append(_overlaps(box, busy_M4) + 60 * (_overlaps(box, labels_M4) + outside) + 2 * place[0])
        best = _PLACES[costs.index(min(costs))]
        labels_M4 = np.vstack([labels_M4, _stand(note, best, renderer).extents])
        if best[0] > 1:
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
            ax.annotate("", (x, y), note.get_position(), textcoords="offset points", arrowprops=leader)


def _overlaps(box: Bbox, others_M4: NDArray[np.float64]) -> int:
    """How many of `others_M4` (left, bottom, right, top) a box overlaps: as its own count, which converts each anew."""
    left_M, bottom_M, right_M, top_M = others_M4.T
    return int(((left_M < box.x1) & (right_M > box.x0) & (bottom_M < box.y1) & (top_M > box.y0)).sum())


def _stand(note: Annotation, place: _Place, renderer: RendererAgg) -> Bbox:
    """Move `note` to `place` and say what it then covers, in pixels."""
    far, ha, va, dx, dy = place
    note.set(position=(far * dx, far * dy), ha=ha, va=va)
    return note.get_window_extent(renderer)
