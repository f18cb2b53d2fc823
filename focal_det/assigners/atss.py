"""Adaptive training sample selection (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection
via Adaptive Training Sample Selection", CVPR 2020, algorithm 1). Shapes are those of `assignment`.

Of each object g the candidates C are the k anchors of each level whose centres are nearest to its own, and its
threshold is the mean plus the standard deviation of their IoU with it. The candidates that reach it are g's if their
centre is inside of it; all other anchors are background, and none is between.

    C = the k nearest of each level     t = mean(IoU(C, g)) + std(IoU(C, g))     positive: IoU >= t, centre inside g

What the paper leaves open is as follows. Of anchors at the same distance the first ones are candidates. The deviation
is that of a sample, with |C| - 1 in the denominator. Inside is strictly between the sides. Of two objects with the same
IoU the first has the anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from .assignment import Assignment, BestObject, chunks, images_of, pairwise_iou

_BYTES_OF_PAIR = 48  # (object, anchor), mostly of the counts by which ties are decided


@torch.no_grad()
def assign_by_atss(
    levels: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int, topk: int = 9
) -> Assignment:
    """Label every anchor of every image as algorithm 1 has it, without waiting for the device.

    An anchor that several objects claim goes to the one of its highest IoU. Boxes of class -1 claim as the others do,
    and what they get is ignored.

    Args:
        levels, gt_boxes, gt_classes: see `assignment`.
        num_classes: K.
        topk: k, the candidates on each level; all anchors of a level that has fewer. The paper's 9 is for one anchor
            per location: several at the same location are at the same distance.

    Raises:
        ValueError: see `check_topk`.
    """
    check_topk(topk)
    parts = [_claims(levels, boxes, topk) for boxes, _ in images_of(gt_boxes, gt_classes)]
    best_iou, matched = (torch.cat(part) for part in zip(*parts, strict=True))
    return Assignment(torch.where(best_iou > 0, gt_classes.gather(1, matched), num_classes), matched)


def check_topk(topk: object) -> None:
    """Raise ValueError unless it is a whole number from 1 to a million."""
    if isinstance(topk, bool) or not isinstance(topk, Integral) or not 1 <= int(topk) <= 10**6:
        raise ValueError(f"topk={topk} must be a whole number from 1 to a million")


def _claims(levels: Sequence[Tensor], gt_boxes: Tensor, topk: int) -> BestObject:
    """Return the object that each anchor is a positive of; the IoU is 0 where there is none."""
    anchors = torch.cat(list(levels))  # (R, 4)
    x, y = _centres(anchors)  # (R,) each
    best = BestObject.of_none(anchors, len(gt_boxes))
    for chunk in chunks(gt_boxes, anchors, _BYTES_OF_PAIR):
        boxes = gt_boxes[:, chunk]  # (N, g, 4)
        x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(-2)  # (N, g, 1) each
        of_levels = [_nearest(boxes, level, topk) for level in levels if len(level)]
        is_candidate = torch.cat(of_levels, dim=-1)  # (N, g, R)
        iou = pairwise_iou(boxes, anchors)
        # In float64, so that equal IoUs are equal to their mean, and reach it.
        count = is_candidate.sum(dim=-1, keepdim=True)
        mean = torch.where(is_candidate, iou, 0).sum(dim=-1, keepdim=True, dtype=torch.float64) / count
        squares = torch.where(is_candidate, (iou - mean).square(), 0).sum(dim=-1, keepdim=True)
        threshold = mean + (squares / (count - 1).clamp(min=1)).sqrt()  # (N, g, 1)
        is_inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        best = best.or_among(torch.where(is_candidate & is_inside & (iou >= threshold), iou, 0), chunk.start)
    return best


def _nearest(boxes: Tensor, anchors: Tensor, topk: int) -> Tensor:
    """Tell which anchors (R_l, 4) are among the k nearest of each box (N, g, 4), the first of equals; (N, g, R_l)."""
    x, y = _centres(anchors)
    own_x, own_y = _centres(boxes)
    distance = (x - own_x.unsqueeze(-1)).square() + (y - own_y.unsqueeze(-1)).square()  # squared: the order is the same
    k = min(topk, len(anchors))
    last = distance.topk(k, largest=False).values.amax(dim=-1, keepdim=True)  # (N, g, 1)
    is_nearer, is_last = distance < last, distance == last
    room = k - is_nearer.sum(dim=-1, keepdim=True)
    return is_nearer | (is_last & (is_last.cumsum(dim=-1, dtype=torch.int32) <= room))


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
