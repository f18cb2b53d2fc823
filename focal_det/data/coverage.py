"""Which objects the anchors reach (section 4, "Anchors"): of each object the best IoU with any anchor.

Shapes
    boxes: (N, 4)  XYXY float64 in pixels of the network's input, with x2 > x1 and y2 > y1
    sizes: (N, 2)  width and height of each box's picture, in the same pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class AnchorGrid(NamedTuple):
    """Where anchors stand.

    cells: of each level (A, 4) XYXY around (0, 0).
    strides: of each level, in pixels.
    offset: of the first location from the picture's corner, in strides, in [0, 1).
    divisor: the picture is filled up to a multiple of it, in pixels, before the levels are made.
    """

    cells: Sequence[np.ndarray]
    strides: Sequence[int]
    offset: float
    divisor: int


def resized(sizes: np.ndarray, shorter: float, longest: float) -> np.ndarray:
    """Sizes (N, 2) of pictures after Detectron2's ResizeShortestEdge.

    Args:
        shorter: what the shorter side becomes, in pixels,
        longest: unless the longer one would be beyond this; then that becomes it.
    """
    scale = np.minimum(shorter / sizes.min(axis=1), longest / sizes.max(axis=1))
    rounded: np.ndarray = np.maximum(np.floor(sizes * scale[:, None] + 0.5), 1)
    return rounded


def best_ious(boxes: np.ndarray, sizes: np.ndarray, grid: AnchorGrid) -> np.ndarray:
    """Of each box the highest IoU with any anchor of its picture, (N,).

    Exact without trying every place: the boxes' overlap is a product of one factor for x and one for y, and each falls
    with the distance of the centres in its direction. So the best of the anchors of one shape is that with the nearest
    centre in x and in y, and one IoU for each shape is enough.
    """
    boxes, sizes = np.asarray(boxes, np.float64), np.asarray(sizes, np.float64)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    areas, best = sides.prod(axis=1), np.zeros(len(boxes))
    filled = np.ceil(sizes / grid.divisor) * grid.divisor
    for cells, stride in zip(grid.cells, grid.strides, strict=True):
        last = np.ceil(filled / stride) - 1  # of the locations 0, 1, ... in x and y
        place = np.clip(np.rint(centres / stride - grid.offset), 0, last)
        x1, y1, x2, y2 = (boxes - np.tile((place + grid.offset) * stride, 2)).T  # from the location
        for left, top, right, bottom in np.asarray(cells, np.float64):
            width = np.minimum(x2, right) - np.maximum(x1, left)
            height = np.minimum(y2, bottom) - np.maximum(y1, top)
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            np.maximum(best, shared / (areas + (right - left) * (bottom - top) - shared), out=best)
    return best
