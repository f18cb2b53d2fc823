"""Registered assigners: thin classes that read the constants of `focal_det.assigners` from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ..assigners.assignment import Assigner, Assignment, assign_checked, pad_objects
from ..assigners.atss import assign_by_atss, check_topk
from ..assigners.iou import assign_by_iou, check_iou_thresholds
from ..defaults import with_own_keys


class IoUAssigner:
    """`assign_by_iou` (section 4, "Anchors")."""

    @configurable
    def __init__(self, *, iou_thresholds: Sequence[float], match_best_anchor: bool) -> None:
        check_iou_thresholds(iou_thresholds)
        self.iou_thresholds, self.match_best_anchor = tuple(iou_thresholds), match_best_anchor

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "iou_thresholds": cfg.MODEL.RETINANET.IOU_THRESHOLDS,
            "match_best_anchor": with_own_keys(cfg).MODEL.FOCAL_DET.MATCH_BEST_ANCHOR,
        }

    def __call__(
        self, levels: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int
    ) -> Assignment:
        """Label every anchor."""
        return assign_by_iou(levels, gt_boxes, gt_classes, num_classes=num_classes, **vars(self))


class ATSSAssigner:
    """`assign_by_atss` (Zhang et al., CVPR 2020)."""

    @configurable
    def __init__(self, *, topk: int) -> None:
        check_topk(topk)
        self.topk = topk

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"topk": with_own_keys(cfg).MODEL.FOCAL_DET.ASSIGNER.TOPK}

    def __call__(
        self, levels: Sequence[Tensor], gt_boxes: Tensor, gt_classes: Tensor, *, num_classes: int
    ) -> Assignment:
        """Label every anchor."""
        return assign_by_atss(levels, gt_boxes, gt_classes, num_classes=num_classes, topk=self.topk)


def check_assigner(assigner: Assigner, levels: Sequence[Tensor], num_classes: int) -> None:
    """Label one object on a few anchors, which shows most mistakes in an assigner of one's own before a training.

    Args:
        levels: (R_l, 4) each; see `focal_det.assigners.assignment`. The object is the first anchor.

    Raises:
        ValueError: see `assign_checked`; or whatever the assigner raises.
    """
    objects = pad_objects([levels[0][:1]], [torch.zeros(1, dtype=torch.int64)])
    assign_checked(assigner, levels, *objects, num_classes=num_classes)


ASSIGNERS = (IoUAssigner, ATSSAssigner)
