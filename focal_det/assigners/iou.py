"""Assignment by bands of the IoU (section 4, "Anchors"). Shapes are those of `assignment`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .assignment import Assignment, BestObject, chunks, images_of, pairwise_iou


@torch.no_grad()
def assign_by_iou(
    levels: Sequence[Tensor],
    gt_boxes: Tensor,
    gt_classes: Tensor,
    *,
    num_classes: int,
    iou_thresholds: Sequence[float] = (0.4, 0.5),
    match_best_anchor: bool = True,
) -> Assignment:
    """Label every anchor of every image by its IoU with the image's objects, without waiting for the device.

    An anchor takes the object of its highest IoU (the first of equals) if that is at least the upper threshold; it is
    background below the lower one and ignored between the two.

    Args:
        levels, gt_boxes, gt_classes: see `assignment`; on which level an anchor is does not matter.
        num_classes: K.
        iou_thresholds: (background, object), 0 < background <= object <= 1; the paper's are .4 and .5.
        match_best_anchor: an anchor that overlaps some object more than every other anchor does is
            assigned whatever its IoU, ties included, so that no object in reach is left without one. It
            still takes the object of its own highest IoU. (RPN's rule, which the paper adapts; the authors' code
            leaves out those below `background_iou`.) Of a box of class -1 the best anchors are ignored, if they take
            it, and become no other object's.

    Raises:
        ValueError: see `check_iou_thresholds`.
    """
    check_iou_thresholds(iou_thresholds)
    background_iou, object_iou = iou_thresholds
    anchors = torch.cat(list(levels))
    parts = [_match(anchors, *part, match_best_anchor) for part in images_of(gt_boxes, gt_classes)]
    best_iou, matched, best_for = (torch.cat(part) for part in zip(*parts, strict=True))
    labels = gt_classes.gather(1, matched)
    is_object = (best_iou >= object_iou) | (best_for > (labels >= 0))
    labels = torch.where(is_object | (best_iou < background_iou), labels, -1)
    labels = torch.where(is_object | (best_iou >= background_iou), labels, num_classes)
    return Assignment(labels, matched)


def check_iou_thresholds(thresholds: Sequence[float]) -> None:
    """Raise ValueError unless they are those of background and objects, in order."""
    if len(thresholds) != 2 or not 0 < thresholds[0] <= thresholds[1] <= 1:
        raise ValueError(
            f"iou_thresholds={list(thresholds)} must be [background, object] with 0 < background <= object <= 1"
        )


def _match(
    anchors: Tensor, gt_boxes: Tensor, gt_classes: Tensor, match_best_anchor: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each anchor's highest IoU, the object that has it, and whether the anchor is the best of some box.

    (N, R) each; the last is 2 for an object's best anchor, 1 if only boxes of class -1 have it as their best, else 0.
    """
    best = BestObject.of_none(anchors, len(gt_boxes))
    best_for = torch.zeros_like(best.iou, dtype=torch.uint8)
    for chunk in chunks(gt_boxes, anchors):
        iou = pairwise_iou(gt_boxes[:, chunk], anchors)  # (N, g, R)
        best = best.or_among(iou, chunk.start)
        if match_best_anchor:
            best_per_object = iou.amax(dim=2, keepdim=True)  # (N, g, 1)
            # An object that no anchor touches has every anchor "best" at IoU 0: it gets none, as an empty box.
            kinds = (gt_classes[:, chunk.start : chunk.start + iou.shape[1], None] >= 0).to(torch.uint8) + 1
            kinds = torch.where(best_per_object > 0, kinds, 0)  # (N, g, 1)
            best_for = torch.maximum(best_for, torch.where(iou == best_per_object, kinds, 0).amax(dim=1))
    return *best, best_for
