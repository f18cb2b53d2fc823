"""Non-maximum suppression class by class, of all images in one call: what may not hide one another is moved apart.

Shapes: boxes (..., 4) XYXY in pixels; image and classes (...) or what broadcasts to it, int64.
"""

from __future__ import annotations

from torch import Tensor

FARTHEST = 10**6  # pixels; a box that reaches further out of its image, inf and NaN included, is as good as this one
APART = 2 * FARTHEST + 1  # pixels between two images or classes


def bound_boxes(boxes: Tensor) -> Tensor:
    """Cut boxes off at `FARTHEST`, so that a wild one hides no other; NaN becomes 0."""
    return boxes.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)


def move_apart(boxes: Tensor, image: Tensor, classes: Tensor) -> Tensor:
    """Shift bounded boxes so that only those of one image and class can overlap.

    Returns:
        (..., 4) float64, in which even group 1280 leaves a coordinate its millionths.
    """
    group = image * (classes.max() + 1) + classes
    return boxes.double() + (group * APART).unsqueeze(-1)
