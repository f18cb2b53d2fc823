"""Which anchor answers for which object (section 4, "Anchors").

Shapes
    anchors:    (R, 4)     XYXY float32, R anchors over all levels, the same for every image
    gt_boxes:   (N, G, 4)  XYXY float32, the objects of N images, each image's filled up to G >= 1 by empty boxes
    gt_classes: (N, G)     int64 in 0..K-1, or -1: anchors that take such a box are ignored
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Pairs (object, anchor) handled at a time. A pair takes ~16 bytes while its IoU is computed, so this bounds the memory
# for any number of objects and images: at 16 MB on a processor, whose caches are small, and at 512 MB on a GPU, where
# few launches count.
_MAX_PAIRS = {"cpu": 1 << 20, "cuda": 1 << 25}


class Assignment(NamedTuple):
    """The outcome for a batch.

    labels: (N, R) int64: the object's class 0..K-1, K background, -1 ignored.
    matched: (N, R) int64: which of its image's objects has the highest IoU; without meaning where none is touched.
    """

    labels: Tensor
    matched: Tensor


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., G, 4) and (..., R, 4) XYXY give (..., G, R); 0 where none is."""
    # Coordinate by coordinate and in place: passes over dense matrices, where pairs of coordinates take six times as
    # long on a processor.
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(-2)  # (..., G, 1)
    other_x1, other_y1, other_x2, other_y2 = (x.contiguous() for x in others.unsqueeze(-3).unbind(-1))  # (..., 1, R)
    width = torch.minimum(x2, other_x2).sub_(torch.maximum(x1, other_x1)).clamp_(min=0)  # (..., G, R)
    height = torch.minimum(y2, other_y2).sub_(torch.maximum(y1, other_y1)).clamp_(min=0)
    intersection = width.mul_(height)
    areas = (x2 - x1) * (y2 - y1)
    union = (areas + (other_x2 - other_x1) * (other_y2 - other_y1)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))  # of two empty boxes it is 0


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
    """Label every anchor of every image by its IoU with the image's objects, without waiting for the device.

    An anchor takes the object of its highest IoU (the first of equals) if that is >= `object_iou`; it is
    background below `background_iou` and ignored between the two.

    Args:
        gt_boxes, gt_classes: see `pad_objects`.
        num_classes: K.
        background_iou, object_iou: 0 < background_iou <= object_iou <= 1; the paper's are .4 and .5.
        match_best_anchor: an anchor that overlaps some object more than every other anchor does is
            assigned whatever its IoU, ties included, so that no object in reach is left without one. It
            still takes the object of its own highest IoU. (RPN's rule, which the paper adapts; the authors' code
            leaves out those below `background_iou`.) Of a box of class -1 the best anchors are ignored, if they take
            it, and become no other object's.

    Raises:
        ValueError: see `check_iou_thresholds`.
    """
    check_iou_thresholds((background_iou, object_iou))
    if anchors.device.type == "cpu":  # each image by itself, without the boxes it was filled up with
        images = [
            _match(anchors, boxes[None, : _last_object(boxes)], classes[None], match_best_anchor)
            for boxes, classes in zip(gt_boxes, gt_classes, strict=True)
        ]
        best_iou, matched, best_for = (torch.cat(parts) for parts in zip(*images, strict=True))
    else:
        best_iou, matched, best_for = _match(anchors, gt_boxes, gt_classes, match_best_anchor)
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
    """Return every anchor's highest IoU, with which object, and for what it is the best anchor, (N, R) each.

    The last is 2 for an object, 1 for boxes of class -1 alone, and else 0.
    """
    shape, device = (len(gt_boxes), len(anchors)), anchors.device
    best_iou = torch.zeros(shape, dtype=anchors.dtype, device=device)
    matched = torch.zeros(shape, dtype=torch.int64, device=device)
    best_for = torch.zeros(shape, dtype=torch.uint8, device=device)
    chunk = max(1, _MAX_PAIRS["cpu" if device.type == "cpu" else "cuda"] // max(1, best_iou.numel()))
    for start in range(0, gt_boxes.shape[1] if best_iou.numel() else 0, chunk):
        iou = pairwise_iou(gt_boxes[:, start : start + chunk], anchors)  # (N, g, R)
        chunk_iou, chunk_matched = iou.max(dim=1)
        better = chunk_iou > best_iou  # strictly: the first of equal objects keeps the anchor
        best_iou = torch.where(better, chunk_iou, best_iou)
        matched = torch.where(better, chunk_matched + start, matched)
        if match_best_anchor:
            best_per_object = iou.amax(dim=2, keepdim=True)  # (N, g, 1)
            # An object that no anchor touches has every anchor "best" at IoU 0: it gets none, as an empty box.
            kinds = (gt_classes[:, start : start + iou.shape[1], None] >= 0).to(torch.uint8) + 1
            kinds = torch.where(best_per_object > 0, kinds, 0)  # (N, g, 1)
            best_for = torch.maximum(best_for, torch.where(iou == best_per_object, kinds, 0).amax(dim=1))
    return best_iou, matched, best_for


def _last_object(boxes: Tensor) -> int:
    """Count the boxes (G, 4) up to the last that is not empty."""
    places = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def pad_objects(gt_boxes: Sequence[Tensor], gt_classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad each image's (G_i, 4) and (G_i,) to (N, G, 4) and (N, G), G >= 1, with empty boxes of class 0."""
    return _padded(gt_boxes), _padded(gt_classes)


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    one = tensors[0].new_zeros(1, *tensors[0].shape[1:])  # makes G >= 1
    return pad_sequence([*tensors, one], batch_first=True)[:-1]
