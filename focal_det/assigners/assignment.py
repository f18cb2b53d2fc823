"""The parts that assigners share: their result, the overlap of boxes, and the layout of objects.

An assigner is a function of the anchors of each level, gt_boxes, gt_classes and `num_classes`, to an `Assignment`.

Shapes
    levels:     (R_l, 4) each  XYXY float32, the anchors of each level, together R, the same for every image
    gt_boxes:   (N, G, 4)      XYXY float32, the objects of N images, each image's filled up to G >= 1 by empty boxes
    gt_classes: (N, G)         int64 in 0..K-1, or -1: anchors that take such a box are ignored
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Pairs (object, anchor) handled at a time. A pair takes ~16 bytes while its IoU is computed, so this bounds the memory
# for any number of objects and images: at 16 MB on a processor, whose caches are small, and at 512 MB on a GPU, where
# few launches count.
MAX_PAIRS = {"cpu": 1 << 20, "cuda": 1 << 25}


class Assignment(NamedTuple):
    """The outcome for a batch.

    labels: (N, R) int64: the object's class 0..K-1, K background, -1 ignored.
    matched: (N, R) int64: which of its image's objects it is; without meaning where the label is background.
    """

    labels: Tensor
    matched: Tensor


class Assigner(Protocol):
    """Labels every anchor of every image; shapes are above."""

    def __call__(
        self, levels: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int
    ) -> Assignment: ...


def assign_checked(
    assigner: Assigner, levels: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int
) -> Assignment:
    """Label every anchor by an assigner, which may be one of the user's own, and check what it returns.

    Raises:
        ValueError: it is no `Assignment` of every anchor of every image, or has labels or objects that do not exist
            (not looked at on a GPU, where that would stall the stream); the message names the assigner.
    """
    found = assigner(levels, gt_boxes, gt_classes, num_classes=num_classes)
    name, shape = getattr(assigner, "__name__", type(assigner).__name__), (len(gt_boxes), sum(map(len, levels)))
    parts = found if isinstance(found, tuple) and len(found) == len(Assignment._fields) else ()
    if not parts or any(getattr(part, "shape", None) != shape or part.dtype != torch.int64 for part in parts):
        raise ValueError(f"{name} returned {found!r:.80}; it must be Assignment(labels, matched), {shape} int64 each")
    labels, matched = parts
    if labels.device.type == "cpu":
        is_assigned = (labels >= 0) & (labels < num_classes)
        if labels.numel() and (labels.min() < -1 or labels.max() > num_classes):
            raise ValueError(f"{name} returned labels outside [-1, {num_classes}]")
        for image, boxes in enumerate(gt_boxes):
            own, count = matched[image, is_assigned[image]], _last_object(boxes)
            if len(wrong := own[(own < 0) | (own >= count)]):
                raise ValueError(f"{name} matched object {wrong[0]} of image {image} of the batch, which has {count}")
    return Assignment(labels, matched)


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


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each box with the other of its place: (..., 4) twice give (...)."""
    return pairwise_iou(boxes.unsqueeze(-2), others.unsqueeze(-2)).flatten(-3)


class BestObject(NamedTuple):
    """The highest IoU so far of every anchor, and with which object, (N, R) each: 0 and 0 where none is touched."""

    iou: Tensor
    matched: Tensor

    @classmethod
    def of_none(cls, anchors: Tensor, num_images: int) -> BestObject:
        iou = torch.zeros((num_images, len(anchors)), dtype=anchors.dtype, device=anchors.device)
        return cls(iou, torch.zeros_like(iou, dtype=torch.int64))

    def or_among(self, iou: Tensor, start: int) -> BestObject:
        """Return the best with the objects from `start` on, whose IoU is (N, g, R): the first of equals."""
        chunk_iou, chunk_matched = iou.max(dim=1)
        better = chunk_iou > self.iou  # strictly: the first of equal objects keeps the anchor
        return BestObject(
            torch.where(better, chunk_iou, self.iou), torch.where(better, chunk_matched + start, self.matched)
        )


def chunks(gt_boxes: Tensor, anchors: Tensor, bytes_of_pair: int = 16) -> Iterator[slice]:
    """Yield ranges of the objects (N, G, 4), as many as are to be compared with all anchors (R, 4) at a time."""
    pairs_of_object = len(gt_boxes) * len(anchors)
    most = MAX_PAIRS["cpu" if anchors.device.type == "cpu" else "cuda"] * 16 // bytes_of_pair
    size = max(1, most // max(1, pairs_of_object))
    for start in range(0, gt_boxes.shape[1] if pairs_of_object else 0, size):
        yield slice(start, start + size)


def images_of(gt_boxes: Tensor, gt_classes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return gt_boxes (n, g, 4) and gt_classes (n, g) to match at a time.

    On a processor they are each image's alone, without the boxes it was filled up with; a GPU takes them all at once.
    """
    if gt_boxes.device.type != "cpu":
        return [(gt_boxes, gt_classes)]
    images = zip(gt_boxes, gt_classes, strict=True)
    return [(boxes[None, : _last_object(boxes)], classes[None]) for boxes, classes in images]


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
