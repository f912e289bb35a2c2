"""Where the words of a plot stand."""

from __future__ import annotations

import numpy as np
from matplotlib.transforms import Bbox

from lsemrl.report.labels import _overlaps


def test_boxes_overlap_as_matplotlib_counts_them() -> None:
    corners = np.random.default_rng(0).integers(0, 6, (200, 4))  # whole numbers, so that some only touch
    boxes = [Bbox.from_extents(x, y, x + width, y + height) for x, y, width, height in corners]
    extents_M4 = np.array([box.extents for box in boxes])
    assert [_overlaps(box, extents_M4) for box in boxes] == [box.count_overlaps(boxes) for box in boxes]
    assert _overlaps(boxes[0], np.empty((0, 4))) == 0
