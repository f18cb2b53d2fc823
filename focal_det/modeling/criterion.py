"""From predictions and ground truth to the two losses (sections 3 and 4.1).

Shapes
    logits:  (N, R, K)  class logits, R anchors over all levels
    deltas:  (N, R, 4)  predicted box deltas
    anchors: (R, 4)     XYXY, the same for every image of the batch
    gt_boxes, gt_classes: of each image (G_i, 4) XYXY and (G_i,) int64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..losses.box import smooth_l1_loss
from .assignment import Assignment, assign_anchors
from .box_coding import encode_boxes
from .normalizer import LossNormalizer


class DenseCriterion(nn.Module):
    """Assign every anchor, sum the class loss over all of them and the box loss over the assigned, normalise.

    Args:
        num_classes: K.
        class_loss: (logits (R, K), labels (R,)) to the summed loss of one image.
        normalizer: divisors of the summed losses.
        iou_thresholds: (background, object), see `assign_anchors`.
        match_best_anchor: see `assign_anchors`.
        smooth_l1_beta: see `smooth_l1_loss`.
        box_weights: see `encode_boxes`.

    Attributes:
        num_assigned: (N,) int64, anchors assigned to an object in the last batch, for logging.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        class_loss: Callable[[Tensor, Tensor], Tensor],
        normalizer: LossNormalizer,
        iou_thresholds: tuple[float, float],
        match_best_anchor: bool,
        smooth_l1_beta: float,
        box_weights: Sequence[float],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_loss = class_loss
        self.normalizer = normalizer
        self.iou_thresholds = iou_thresholds
        self.match_best_anchor = match_best_anchor
        self.smooth_l1_beta = smooth_l1_beta
        self.box_weights = tuple(box_weights)
        self.num_assigned: Tensor | None = None

    def forward(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_classes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """The losses of a batch by name, "loss_cls" and "loss_box_reg", scalars in float32."""
        class_losses, box_losses, num_assigned = [], [], []
        for image, (boxes, classes) in enumerate(zip(gt_boxes, gt_classes, strict=True)):
            labels, matched = self.assign(anchors, boxes, classes)
            is_assigned = (labels >= 0) & (labels < self.num_classes)  # (R,)
            class_losses.append(self.class_loss(logits[image], labels))
            box_losses.append(self._box_loss(deltas[image], anchors, boxes, matched, is_assigned))
            num_assigned.append(is_assigned.sum())
        self.num_assigned = torch.stack(num_assigned)
        divisors = self.normalizer(self.num_assigned)
        return {
            "loss_cls": (torch.stack(class_losses) / divisors).sum(),
            "loss_box_reg": (torch.stack(box_losses) / divisors).sum(),
        }

    def assign(self, anchors: Tensor, gt_boxes: Tensor, gt_classes: Tensor) -> Assignment:
        """Labels and matched objects of one image's anchors, by this criterion's thresholds."""
        background_iou, object_iou = self.iou_thresholds
        return assign_anchors(
            anchors,
            gt_boxes,
            gt_classes,
            num_classes=self.num_classes,
            background_iou=background_iou,
            object_iou=object_iou,
            match_best_anchor=self.match_best_anchor,
        )

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor, matched: Tensor, is_assigned: Tensor) -> Tensor:
        if len(boxes) == 0:
            return deltas.float().sum() * 0  # keeps the box subnet in the graph, as DDP needs
        index = is_assigned.nonzero().squeeze(1)  # (P,): only these have a target
        targets = encode_boxes(boxes[matched[index]], anchors[index], weights=self.box_weights)
        return smooth_l1_loss(deltas[index], targets, beta=self.smooth_l1_beta)
