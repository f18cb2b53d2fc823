"""From head outputs to detections (section 4.1, "Inference").

Shapes, for one image: logits (R_l, K) and deltas (R_l, 4) of each level l; anchors (R_l, 4) XYXY.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .box_coding import decode_boxes


class Detections(NamedTuple):
    """D detections of one image, best first.

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
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    topk_per_level: int,
    nms_thresh: float,
    max_detections: int,
    box_weights: Sequence[float],
) -> Detections:
    """Threshold, keep the best of each level, decode, suppress per class, cap, clip.

    Args:
        image_size: (height, width) in pixels of the network's input, to which boxes are clipped.
        score_thresh: a detection's score is above this, in [0, 1); the paper's is .05.
        topk_per_level: at most so many candidates per level are decoded; the paper's is 1,000.
        nms_thresh: of two boxes of a class whose IoU is above this, the lower-scoring goes; the paper's is .5.
        max_detections: at most so many are returned; COCO counts 100.

    Raises:
        ValueError: a score threshold out of its range.
    """
    if not 0 <= score_thresh < 1:
        raise ValueError(f"score_thresh={score_thresh} is outside [0, 1)")
    # The sigmoid rises with its logit, so comparing logits spares a sigmoid of all R * K of them.
    logit_thresh = math.log(score_thresh / (1 - score_thresh)) if score_thresh > 0 else -math.inf

    kept_logits, kept_deltas, kept_anchors, kept_classes = [], [], [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        num_classes = level_logits.shape[-1]
        flat = level_logits.flatten()
        index = (flat > logit_thresh).nonzero().squeeze(1)
        values = flat[index]
        if len(values) > topk_per_level:
            values, best = values.topk(topk_per_level)
            index = index[best]
        row = index // num_classes
        kept_logits.append(values)
        kept_classes.append(index % num_classes)
        kept_deltas.append(level_deltas[row])
        kept_anchors.append(level_anchors[row])

    boxes = decode_boxes(torch.cat(kept_deltas), torch.cat(kept_anchors), weights=box_weights)
    scores = torch.cat(kept_logits).to(boxes.dtype).sigmoid()
    classes = torch.cat(kept_classes)
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    height, width = image_size
    limit = boxes.new_tensor((width, height, width, height))
    return Detections(boxes[keep].clamp(min=0).minimum(limit), scores[keep], classes[keep])
