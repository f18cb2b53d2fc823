"""The graph that is exported: the whole detector on tensors, from a batch of images to detections.

Shapes: N images, K classes, L levels of R_l anchors, M = L * topk_per_level candidates, D detections an image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling.anchors import grid_anchors
from ..modeling.box_coding import decode_boxes
from ..modeling.convolutions import bake_frozen_norms
from ..modeling.nms import bound_boxes

# (boxes (N, M, 4), scores (N, M), classes (N, M)) to which of them are kept (N, M); those of score 0 never are.
Suppress = Callable[[Tensor, Tensor, Tensor], Tensor]


class DetectorGraph(nn.Module):
    """A `FocalRetinaNet` with its preparation of images and its post-processing, for images of any size.

    The steps are those of `focal_det.modeling.decode`, but with a fixed number of candidates for every image, as a
    graph needs; where there are fewer, the rest have score 0.

    Args:
        model: in evaluation mode, on the CPU; it is copied.
        suppress: non-maximum suppression.
        free: make a number of the image's blocks one that a tracer derives from nothing; see `free_size`.
    """

    def __init__(self, model: Any, suppress: Suppress, free: Callable[[int], int] = lambda size: size) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval()
        bake_frozen_norms(model)
        self.model = model
        self.suppress, self.free = suppress, free
        self.divisor = max(1, model.backbone.size_divisibility)
        self.num_classes: int = model.num_classes
        self.strides: Sequence[int] = model.anchor_generator.strides
        self.offset: float = model.anchor_generator.offset
        options = model.decoding
        self.topk: int = options["topk_per_level"]
        self.box_weights: Tensor
        self.register_buffer("box_weights", torch.tensor(options["box_weights"]))
        thresh = options["score_thresh"]
        self.logit_thresh = math.log(thresh / (1 - thresh)) if thresh > 0 else -math.inf
        self.max_detections = min(options["max_detections"], self.topk * len(self.strides))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (N, 3, H, W) uint8, the channels in the order that the model was trained with; smaller images
                of a batch lie at the upper left.
            sizes: (N, 2) int64 height and width of each image.

        Returns:
            boxes (N, D, 4) float32 XYXY in pixels of the images, scores (N, D) float32, classes (N, D) int64, best
            first, and counts (N,) int64; entries beyond the first `counts` of an image have no meaning.
        """
        logits, deltas = self.model.network(self._prepared(images, sizes))
        cells = self.model.anchor_generator.cell_anchors
        # found and anchors (N, M, 4), values and classes (N, M)
        levels = [self._candidates(*level) for level in zip(logits, deltas, cells, self.strides, strict=True)]
        found, anchors, values, classes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        boxes = decode_boxes(found, anchors, weights=self.box_weights)
        scores = torch.where(values > self.logit_thresh, values.sigmoid(), 0.0)
        kept = self.suppress(bound_boxes(boxes), scores, classes)
        scores, best = torch.where(kept, scores, 0.0).topk(self.max_detections, dim=1)  # (N, D)
        boxes = boxes.gather(1, best.unsqueeze(2).expand(-1, -1, 4))
        return _clipped(boxes, sizes), scores, classes.gather(1, best), (scores > 0).sum(dim=1)

    def _prepared(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise, put zeros beside the images, and pad to sides that the pyramid's strides divide."""
        height, width = images.shape[-2:]
        images = (images.float() - self.model.pixel_mean) / self.model.pixel_std
        inside_y = torch.arange(height) < sizes[:, :1]  # (N, H)
        inside_x = torch.arange(width) < sizes[:, 1:]  # (N, W)
        images = torch.where(inside_y[:, None, :, None] & inside_x[:, None, None, :], images, 0.0)
        rows, columns = (self.free((side - 1) // self.divisor + 1) for side in (height, width))
        return F.pad(images, (0, columns * self.divisor - width, 0, rows * self.divisor - height))

    def _candidates(
        self, logits: Tensor, deltas: Tensor, cells: Tensor, stride: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the best of one level's logits (N, A*K, H, W): deltas and anchors (N, topk, 4), logits and classes."""
        batch, _, height, width = logits.shape
        anchors = grid_anchors(cells, height, width, stride, self.offset)  # (R_l, 4)
        logits = logits.permute(0, 2, 3, 1).reshape(batch, anchors.shape[0], self.num_classes)  # (N, R_l, K)
        per_anchor = self.model.box_channels // 4  # 1, or K
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch, anchors.shape[0] * per_anchor, 4)
        # The best pairs of anchor and class are among the anchors whose best class is best; there are R_l of these,
        # not R_l * K. Small levels are filled up.
        best_class = F.pad(logits.amax(dim=2), (0, self.topk), value=-math.inf)
        filled, anchor = best_class.topk(self.topk, dim=1)  # (N, topk)
        anchor = anchor.clamp(max=anchors.shape[0] - 1)
        pairs = logits.gather(1, anchor.unsqueeze(2).expand(-1, -1, self.num_classes))  # (N, topk, K)
        pairs = torch.where(filled.unsqueeze(2) > -math.inf, pairs, -math.inf)
        values, pair = pairs.flatten(1).topk(self.topk, dim=1)
        anchor = anchor.gather(1, pair // self.num_classes)
        classes = pair % self.num_classes
        place = anchor if per_anchor == 1 else anchor * per_anchor + classes
        found = deltas.gather(1, place.unsqueeze(2).expand(-1, -1, 4))
        return found, anchors[anchor], values, classes


def free_size(size: int) -> int:
    """Return a size, >= 1, as a symbol of its own where it is a tracer's formula.

    All sizes of the network are then multiples of two symbols. PyTorch takes most of an export to reason about formulas
    of the image's sides, and makes it a condition of the program that each level has several locations, as it has in
    the example.
    """
    symbol: Any = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(symbol >= 1)
    return symbol


def _clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    height, width = sizes[:, None, :1].to(boxes.dtype), sizes[:, None, 1:].to(boxes.dtype)  # (N, 1, 1)
    limits = torch.cat((width, height, width, height), dim=2)
    return torch.minimum(boxes.clamp(min=0), limits)
