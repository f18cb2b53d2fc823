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
        select: (logits (R, K), labels (R,), anchors (R, 4)) to the labels of one image with the anchors ignored
            that are not to be trained on; None trains on all. The normaliser counts the assigned ones before it.
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
        select: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_loss = class_loss
        self.select = select
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
        assignments = [self.assign(anchors, *objects) for objects in zip(gt_boxes, gt_classes, strict=True)]
        labels = torch.stack([assignment.labels for assignment in assignments])  # (N, R)
        self.num_assigned = self._is_assigned(labels).sum(dim=1)
        divisors = self.normalizer(self.num_assigned)  # (N,)
        if self.select is not None:
            labels = torch.stack([self.select(*image, anchors) for image in zip(logits, labels, strict=True)])

        class_losses = torch.stack([self.class_loss(*image) for image in zip(logits, labels, strict=True)])  # (N,)
        # Only assigned anchors have a target; one gather of them for the whole batch is one wait for the device.
        first_object = torch.tensor([0, *map(len, gt_boxes)]).cumsum(0)[:-1].to(labels.device)  # (N,)
        matched = torch.stack([a.matched for a in assignments]) + first_object[:, None]  # (N, R)
        image, anchor = self._is_assigned(labels).nonzero(as_tuple=True)  # (P,) each
        matched_boxes = torch.cat(list(gt_boxes))[matched[image, anchor]]  # (P, 4)
        targets = encode_boxes(matched_boxes, anchors[anchor], weights=self.box_weights)
        box_losses = smooth_l1_loss(deltas[image, anchor], targets, beta=self.smooth_l1_beta, reduction="none")
        return {
            "loss_cls": (class_losses / divisors).sum(),
            "loss_box_reg": (box_losses.sum(dim=1) / divisors[image]).sum(),
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

    def _is_assigned(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels < self.num_classes)
