"""Non-maximum suppression as a part of an exported graph; see `focal_det.export.graph.Suppress`.

Shapes: boxes (N, M, 4) XYXY, scores (N, M), classes (N, M); what comes back is (N, M) bool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from ..modeling.nms import APART, move_apart


def torch_suppression(iou_threshold: float) -> Any:
    """Suppress by torchvision's operator, which a PyTorch program may hold: all images and classes in one call."""

    def suppress(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        image = torch.arange(scores.shape[0]).unsqueeze(1)
        places = move_apart(boxes, image, classes).flatten(0, 1)
        flat = scores.flatten().double()
        candidates = (flat > 0).nonzero().squeeze(1)
        # A traced program assumes that at least two boxes are kept: two that are far from all others always are.
        alone = torch.tensor([[-2.0, 0, -1.0, 1], [-4.0, 0, -3.0, 1]], dtype=torch.float64) * APART
        indices = torch.cat((candidates, torch.arange(2) + flat.numel()))
        scored = torch.cat((flat[candidates], torch.zeros(2, dtype=torch.float64)))
        kept = indices[nms(torch.cat((places[candidates], alone)), scored, iou_threshold)]
        mask = torch.zeros(flat.numel() + 2, dtype=torch.bool).index_fill(0, kept, True)
        return mask[: flat.numel()].view(scores.shape)

    return suppress


def onnx_suppression(iou_threshold: float, num_classes: int, most: int) -> Any:
    """Suppress by ONNX's operator NonMaxSuppression, which separates the classes; none needs more than `most`."""
    return lambda boxes, scores, classes: _keep(boxes, scores, classes, iou_threshold, num_classes, most)


@torch.library.custom_op("focal_det::keep", mutates_args=())
def _keep(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, num_classes: int, most: int) -> Tensor:
    return torch_suppression(iou_threshold)(boxes, scores, classes)


@_keep.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, num_classes: int, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translations() -> dict[Any, Any]:
    """Return the translation of the operator above for `torch.onnx.export`."""
    from onnxscript import opset20 as op

    def keep(boxes: Any, scores: Any, classes: Any, iou_threshold: float, num_classes: int, most: int) -> Any:
        # Of each class the scores (N, K, M), 0 where a candidate is of another class.
        every = op.Unsqueeze(op.Range(0, num_classes, 1), [1])  # (K, 1)
        is_class = op.Equal(op.Unsqueeze(classes, [1]), every)  # (N, K, M)
        by_class = op.Where(is_class, op.Unsqueeze(scores, [1]), op.Constant(value_float=0.0))
        kept = op.NonMaxSuppression(boxes, by_class, most, iou_threshold, 0.0)  # (P, 3): image, class, candidate
        places = op.Gather(kept, [0, 2], axis=1)  # (P, 2)
        mask = op.ConstantOfShape(op.Shape(scores))
        ones = op.Expand(op.Constant(value_float=1.0), op.Gather(op.Shape(kept), [0]))
        return op.Cast(op.ScatterND(mask, places, ones), to=9)  # bool

    return {torch.ops.focal_det.keep.default: keep}
