"""Where the words of a plot stand."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from lsemrl.report.labels import INK, _overlaps, label


def test_boxes_overlap_as_matplotlib_counts_them() -> None:
    corners = np.random.default_rng(0).integers(0, 6, (200, 4))  # whole numbers, so that some only touch
    boxes = [Bbox.from_extents(x, y, x + width, y + height) for x, y, width, height in corners]
    extents_M4 = np.array([box.extents for box in boxes])
    assert [_overlaps(box, extents_M4) for box in boxes] == [box.count_overlaps(boxes) for box in boxes]
    assert _overlaps(boxes[0], np.empty((0, 4))) == 0


def test_words_at_the_end_of_a_long_line_do_not_stand_on_it() -> None:
    figure = Figure(figsize=(7.4, 4.7), dpi=200)
    ax = figure.subplots()
    ax.set(xlim=(-9, 85), ylim=(-10, 109))
    way = [(0.0, 0.0), (43.0, 56.3), (70.0, 91.3), (74.0, 97.1), (75.5, 99.0)]
    ends = [(*way[-1], "Strong SFT", "#d55e00"), (73.2, 96.1, "same score: 6.5 against 73.2", INK)]
    label(ax, ends, [way, [(6.5, 96.1), (73.2, 96.1)]])
    [words] = [text for text in ax.texts if "same score" in text.get_text()]
    box = words.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert not box.y0 < ax.transData.transform((50, 96.1))[1] < box.y1


def test_a_point_that_is_nowhere_is_in_no_words_way() -> None:
    alone, beside = (Figure().add_subplot() for _ in range(2))
    ends, line = [(0.5, 0.5, "RL", INK)], [(0.0, 0.0), (1.0, 1.0)]
    label(alone, ends, [line])
    label(beside, ends, [[*line, (math.nan, 1.0)], [(math.inf, 0.5)]])
    assert alone.texts[0].get_position() == beside.texts[0].get_position()
