"""Boxes that are wrong in themselves or against their picture, and boxes that were stored in another format.

Shapes
    boxes: (N, 4) float64, as the file has them: [x, y, width, height] in pixels, if they are right
    sizes: (N, 2) float64, width and height of each box's picture
"""

from __future__ import annotations

import numpy as np

_ROUNDING = 1.0  # pixels that a box may reach out of its picture without a word
_FAR = 0.1  # of the picture's side: what no rounding, and no object cut off by the border, explains
# A file is taken for one of corners when nearly all its boxes would be corners inside their picture, and a fifth of
# them reach far out if they are not. Of boxes in their picture that are [x, y, width, height], none reaches out. Of
# corners [x1, y1, x2, y2], with x1 + x2 = 2 * (the centre's x), those do whose centre is beyond .55 of the width or of
# the height: 1 - .55^2 = 70 % where centres lie anywhere. Few boxes prove nothing.
_CORNERS, _REACH_FAR, _ENOUGH = 0.95, 0.2, 5
# A part of a file is taken for corners from this share of suspected boxes on, which 7 % of corners give. A correct box
# is suspected only if it was drawn far beyond the right or the lower border although width > x and height > y, so that
# it covers more than .55 of that side of the picture. Whoever draws beyond borders does so as often beyond the left and
# the upper one, where no corner lies: as many as reach far out there are not counted.
_PART = 0.05


def without_area(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box has no area inside its picture."""
    inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
    empty: np.ndarray = np.minimum(boxes[:, 2:], inside).min(axis=1) <= 0
    return empty


def reaching_out(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box reaches out of its picture by more than rounding."""
    return _beyond(boxes, sizes, np.full_like(sizes, _ROUNDING))


def like_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box reaches far out of its picture as it stands, and would not if it were [x1, y1, x2, y2]."""
    return _are_corners(boxes, sizes) & _beyond(boxes, sizes, _FAR * sizes)


def format_problem(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """That the file, or a part of it, has its boxes in another format than COCO's, if it is so."""
    suspected = like_corners(boxes, sizes)
    if suspected.sum() >= max(_ENOUGH, _REACH_FAR * len(boxes)) and _are_corners(boxes, sizes).mean() >= _CORNERS:
        return (
            f"the boxes are two corners [x1, y1, x2, y2] (XYXY stored as XYWH): as [x, y, width, height], "
            f"{percent(suspected.mean())} of the {len(boxes)} would reach far out of their picture, as corners "
            "nearly none; store x2 - x1 and y2 - y1 as width and height"
        )
    number = int(suspected.sum()) - int((boxes[:, :2] < -_FAR * sizes).any(axis=1).sum())
    if number >= max(_ENOUGH, _PART * len(boxes)):
        return (
            f"a part of the boxes are two corners [x1, y1, x2, y2] (XYXY stored as XYWH): {suspected.sum()} of "
            f"{len(boxes)} ({percent(suspected.mean())}) reach far out of their picture as [x, y, width, height], and "
            "would lie inside it as corners; store x2 - x1 and y2 - y1 as width and height"
        )
    fractions = (boxes <= 1).all(axis=1) & (boxes >= 0).all(axis=1) & (boxes % 1 > 0).any(axis=1)
    if len(boxes) >= _ENOUGH and fractions.all():
        return (
            f"all {len(boxes)} boxes lie in 0..1, as fractions of the picture; COCO's are in pixels: "
            "multiply by width and height, and mind that YOLO's first two are the centre"
        )
    return None


def percent(share: float) -> str:
    """A share in words; never 0% of some."""
    return f"{100 * share:.0f}%" if share == 0 or share >= 0.005 else "under 1%"


def _are_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    ordered, inside = boxes[:, 2:] > boxes[:, :2], (boxes[:, :2] >= -_ROUNDING) & (boxes[:, 2:] <= sizes + _ROUNDING)
    found: np.ndarray = np.all(ordered & inside, axis=1)
    return found


def _beyond(boxes: np.ndarray, sizes: np.ndarray, margin: np.ndarray) -> np.ndarray:
    out = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes)
    found: np.ndarray = (out > margin).any(axis=1)
    return found
