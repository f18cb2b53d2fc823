"""From head outputs to detections (section 4.1, "Inference").

Shapes: logits (N, R_l, K) and deltas (N, R_l, 4) of each level l; anchors (R_l, 4) XYXY of each level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from .box_coding import check_box_weights, decode_boxes
from .nms import bound_boxes, move_apart

# Candidates of an image that suppression looks at first, to each detection wanted. Their survivors are the first
# survivors of all, so the rest is looked at only where these do not give enough.
_FIRST_LOOK = 4

# Boxes of a batch that are compared with one another on a GPU; of many more each image's are compared by themselves.
_MOST_TOGETHER = 20_000


# The options of `decode_detections` as the paper has them; COCO counts 100 detections.
PAPERS_DECODING = {"score_thresh": 0.05, "topk_per_level": 1000, "nms_thresh": 0.5, "max_detections": 100}


class ImageDetections(NamedTuple):
    """D detections of one image as tensors, best first.

    boxes: (D, 4) XYXY float32, inside the image. scores: (D,) in (0, 1). classes: (D,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@torch.no_grad()
def decode_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    score_thresh: float,
    topk_per_level: int,
    nms_thresh: float,
    max_detections: int,
    box_weights: Sequence[float],
) -> list[ImageDetections]:
    """Threshold, keep the best of each level, decode, suppress per class, cap, clip; each step for the whole batch.

    Args:
        image_sizes: of each image (height, width) in pixels of the network's input, to which boxes are clipped.
        score_thresh: a detection's score is above this, in [0, 1); the paper's is .05.
        topk_per_level: at most so many candidates per level and image are decoded; the paper's is 1,000.
        nms_thresh: of two boxes of a class whose IoU is above this, the lower-scoring goes; the paper's is .5.
        max_detections: at most so many are returned per image; COCO counts 100.

    Raises:
        ValueError: see `check_decoding`.
    """
    check_decoding(
        score_thresh=score_thresh,
        topk_per_level=topk_per_level,
        nms_thresh=nms_thresh,
        max_detections=max_detections,
        box_weights=box_weights,
    )
    # The sigmoid rises with its logit, so comparing logits spares a sigmoid of all R * K of them.
    logit_thresh = math.log(score_thresh / (1 - score_thresh)) if score_thresh > 0 else -math.inf

    on_cpu = logits[0].device.type == "cpu"
    candidates = _above_first if on_cpu else _best_first
    levels = [
        _gather(*candidates(level, logit_thresh, topk_per_level), level.shape[-1], level_deltas, level_anchors)
        for level, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True)
    ]
    found = _Found(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
    above = (found.logits.float() > logit_thresh).nonzero().squeeze(1)
    found = _Found(*(part[above] for part in found))
    boxes = decode_boxes(found.deltas, found.anchors, weights=box_weights)  # (M, 4)
    scores = found.logits.to(boxes.dtype).sigmoid()  # (M,)
    suppress = _suppress_one_by_one if on_cpu else _suppress_together
    bounded = bound_boxes(boxes)
    kept = suppress(bounded, scores, found.classes, found.image, len(image_sizes), nms_thresh, max_detections)
    return [
        ImageDetections(_clipped(boxes[of_image], size), scores[of_image], found.classes[of_image])
        for of_image, size in zip(kept, image_sizes, strict=True)
    ]


def check_decoding(
    *, score_thresh: float, topk_per_level: int, nms_thresh: float, max_detections: int, box_weights: Sequence[float]
) -> None:
    """Raise ValueError unless every option of `decode_detections` is in its range."""
    if not 0 <= score_thresh < 1:
        raise ValueError(f"score_thresh={score_thresh} is outside [0, 1)")
    if not 0 <= nms_thresh <= 1:
        raise ValueError(f"nms_thresh={nms_thresh} is outside [0, 1]")
    for name, value in (("topk_per_level", topk_per_level), ("max_detections", max_detections)):
        if not 1 <= value < 2**31:
            raise ValueError(f"{name}={value} must be >= 1 and below 2^31")
    check_box_weights(box_weights)


class _Found(NamedTuple):
    """Candidates of a batch: image, classes, logits (M,), deltas and anchors (M, 4)."""

    image: Tensor
    classes: Tensor
    logits: Tensor
    deltas: Tensor
    anchors: Tensor


def _above_first(level: Tensor, logit_thresh: float, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, index in R_l * K and logit of one level's best logits (N, R_l, K), at most `topk` of each image.

    What is below the threshold goes first, since a processor would sort for long; anchor by anchor, as looking for
    ones in a mask of all logits takes three times as long as the largest logit of every anchor.
    """
    # Comparing half precision rounds the threshold; what lies within that rounding is decided later.
    rounding = torch.finfo(level.dtype).eps * abs(logit_thresh) if level.dtype.itemsize < 4 else 0.0
    if not level.numel():
        return _best_first(level, logit_thresh, topk)
    rows = (~(level.amax(dim=2) <= logit_thresh - rounding)).nonzero()  # (S, 2); NaN hides no other class
    some = level[rows[:, 0], rows[:, 1]]  # (S, K)
    row, class_ = (some > logit_thresh - rounding).nonzero(as_tuple=True)
    image, index, values = rows[row, 0], rows[row, 1] * level.shape[2] + class_, some[row, class_]
    if len(values) <= topk:
        return image, index, values
    of_images = ((image == i).nonzero().squeeze(1) for i in range(len(level)))
    best = torch.cat([places[values[places].topk(min(topk, len(places))).indices] for places in of_images])
    return image[best], index[best], values[best]


def _best_first(level: Tensor, logit_thresh: float, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same on a GPU, which would have to wait for the number above the threshold: those below it stay."""
    flat = level.flatten(1)  # (N, R_l * K)
    values, index = flat.topk(min(topk, flat.shape[1]), dim=1)
    image = torch.arange(len(flat), device=flat.device).repeat_interleave(index.shape[1])
    return image, index.flatten(), values.flatten()


def _gather(image: Tensor, index: Tensor, values: Tensor, num_classes: int, deltas: Tensor, anchors: Tensor) -> _Found:
    anchor = index // num_classes
    return _Found(image, index % num_classes, values, deltas[image, anchor], anchors[anchor])


def _suppress_one_by_one(
    boxes: Tensor, scores: Tensor, classes: Tensor, image: Tensor, num_images: int, nms_thresh: float, most: int
) -> list[Tensor]:
    """Return for each image the indices of at most `most` detections, best first."""
    kept = []
    for i in range(num_images):
        ranked = (image == i).nonzero().squeeze(1)
        ranked = ranked[scores[ranked].argsort(descending=True, stable=True)]
        for looked_at in (ranked[: _FIRST_LOOK * most], ranked):
            survivors = looked_at[batched_nms(boxes[looked_at], scores[looked_at], classes[looked_at], nms_thresh)]
            if len(survivors) >= most or len(looked_at) == len(ranked):
                break
        kept.append(survivors[:most])
    return kept


def _suppress_together(
    boxes: Tensor, scores: Tensor, classes: Tensor, image: Tensor, num_images: int, nms_thresh: float, most: int
) -> list[Tensor]:
    """Do the same in one suppression of all images and classes, moved apart; it waits for the device twice."""
    if len(boxes) > _MOST_TOGETHER:
        return _suppress_one_by_one(boxes, scores, classes, image, num_images, nms_thresh, most)
    if not len(boxes):
        return [image] * num_images
    kept = nms(move_apart(boxes, image, classes), scores.double(), nms_thresh)
    of_image = image[kept] == torch.arange(num_images, device=image.device).unsqueeze(1)  # (N, kept)
    kept = kept[image[kept].argsort(stable=True)]
    return [indices[:most] for indices in kept.split(of_image.sum(dim=1).tolist())]


def _clipped(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack((x, y), dim=2).flatten(1)  # XYXY again
