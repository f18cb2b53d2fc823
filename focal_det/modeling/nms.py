"""Non-maximum suppression class by class, of all images in one call.

Shapes: boxes (N, C, 4) XYXY in pixels, classes (N, C) int64 and which of them are candidates (N, C), best first in each
image. IoU is computed in float64, in which it is exact enough that both ways below keep the same boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from ..assigners.assignment import pairwise_iou

FARTHEST = 10**6  # pixels; a box that reaches further out of its image, inf and NaN included, is as good as this one
APART = 2 * FARTHEST + 1  # pixels between two images or classes


def bound_boxes(boxes: Tensor) -> Tensor:
    """Cut boxes off at `FARTHEST`, so that a wild one hides no other; NaN becomes 0."""
    return boxes.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)


def move_apart(boxes: Tensor, image: Tensor, classes: Tensor) -> Tensor:
    """Shift bounded boxes so that only those of one image and class can overlap: torchvision's `nms` knows neither.

    Args:
        image, classes: (...) or what broadcasts to it.

    Returns:
        (..., 4) float64, in which even group 1280 leaves a coordinate its millionths.
    """
    group = image * (classes.max() + 1) + classes
    return boxes.double() + (group * APART).unsqueeze(-1)


def suppress_one_image(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of what is kept of one image's boxes (M, 4), scores and classes (M,), best first."""
    if not len(boxes):
        return torch.zeros_like(classes)
    apart = move_apart(bound_boxes(boxes), torch.zeros_like(classes), classes)
    return nms(apart, scores.double(), iou_threshold)


def suppress_in_rounds(
    boxes: Tensor, classes: Tensor, candidates: Tensor, iou_threshold: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Suppress with a fixed number of operations, so without waiting for the device.

    The result of suppression is the only fixed point of: kept is what no kept better box hides. Starting with all, each
    round settles at least the best box of each image that was not settled yet.

    Returns:
        (N, C) which are kept, and (N,) where that is final: the last round has changed nothing.
    """
    boxes = bound_boxes(boxes).double()
    hides = pairwise_iou(boxes, boxes) > iou_threshold
    hides &= classes.unsqueeze(2) == classes.unsqueeze(1)
    hides = hides.tril_(-1)  # (N, C, C): the better box of the column hides that of the row
    kept = candidates
    for _ in range(rounds):
        before, kept = kept, candidates & ~(hides & kept.unsqueeze(1)).any(dim=2)
    return kept, (kept == before).all(dim=1)
