"""Which anchor answers for which object (section 4, "Anchors").

Shapes
    anchors:  (R, 4) XYXY float32, R anchors of one image over all levels
    gt_boxes: (G, 4) XYXY float32, G objects of the image, G = 0 allowed
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Pairs (object, anchor) handled at a time. A pair takes ~24 bytes while its IoU is computed, so this bounds the
# memory at ~100 MB for any number of objects.
_MAX_PAIRS = 1 << 22


class Assignment(NamedTuple):
    """The outcome for one image.

    labels: (R,) int64: the object's class 0..K-1, K background, -1 ignored.
    matched: (R,) int64: index of the object with the highest IoU; 0 and without meaning when G = 0.
    """

    labels: Tensor
    matched: Tensor


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair: (G, 4) and (R, 4) XYXY give (G, R); 0 where nothing is shared."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    other_areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    sides = torch.min(boxes[:, None, 2:], others[:, 2:]) - torch.max(boxes[:, None, :2], others[:, :2])
    intersection = sides.clamp_(min=0).prod(dim=2)  # (G, R)
    # Where the intersection is 0 the union may be 0 as well, hence where().
    return torch.where(
        intersection > 0,
        intersection / (areas[:, None] + other_areas - intersection),
        torch.zeros((), dtype=intersection.dtype, device=intersection.device),
    )


@torch.no_grad()
def assign_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    num_classes: int,
    background_iou: float,
    object_iou: float,
    match_best_anchor: bool,
) -> Assignment:
    """Label every anchor of one image by its IoU with the objects.

    An anchor takes the object of its highest IoU (the first of equals) if that is >= `object_iou`; it is
    background below `background_iou` and ignored between the two.

    Args:
        gt_classes: (G,) int64 in 0..num_classes-1.
        num_classes: K.
        background_iou, object_iou: 0 < background_iou <= object_iou; the paper's are .4 and .5.
        match_best_anchor: an anchor that overlaps some object more than every other anchor does is
            assigned whatever its IoU, ties included, so that no object in reach is left without one. It
            still takes the object of its own highest IoU (the authors' code; the text does not say so).

    Raises:
        ValueError: thresholds out of order.
    """
    if not 0 < background_iou <= object_iou:
        raise ValueError(
            f"IoU thresholds background={background_iou}, object={object_iou}: 0 < background <= object is needed"
        )
    num_anchors, device = len(anchors), anchors.device
    if len(gt_boxes) == 0:
        return Assignment(
            torch.full((num_anchors,), num_classes, dtype=torch.int64, device=device),
            torch.zeros(num_anchors, dtype=torch.int64, device=device),
        )

    best_iou = torch.full((num_anchors,), -1.0, dtype=anchors.dtype, device=device)
    matched = torch.zeros(num_anchors, dtype=torch.int64, device=device)
    is_best_anchor = torch.zeros(num_anchors, dtype=torch.bool, device=device)
    chunk = max(1, _MAX_PAIRS // max(1, num_anchors))
    for start in range(0, len(gt_boxes), chunk):
        iou = pairwise_iou(gt_boxes[start : start + chunk], anchors)  # (g, R)
        chunk_iou, chunk_matched = iou.max(dim=0)
        better = chunk_iou > best_iou  # strictly: the first of equal objects keeps the anchor
        best_iou = torch.where(better, chunk_iou, best_iou)
        matched = torch.where(better, chunk_matched + start, matched)
        if match_best_anchor and num_anchors:
            best_per_object = iou.max(dim=1, keepdim=True).values  # (g, 1)
            # An object that no anchor touches has every anchor "best" at IoU 0: it gets none.
            is_best_anchor |= ((iou == best_per_object) & (best_per_object > 0)).any(dim=0)

    labels = gt_classes[matched]
    is_object = (best_iou >= object_iou) | is_best_anchor
    labels = torch.where(is_object | (best_iou < background_iou), labels, -1)
    labels = torch.where(is_object | (best_iou >= background_iou), labels, num_classes)
    return Assignment(labels, matched)
