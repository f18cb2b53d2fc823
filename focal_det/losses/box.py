"""Box regression losses: smooth L1 of box deltas (section 4.1), and losses of the IoU of boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

LARGEST_BETA = 1e6  # far beyond any delta; the loss of all deltas is quadratic then
IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def smooth_l1_loss(pred: Tensor, target: Tensor, *, beta: float, reduction: str = "sum") -> Tensor:
    """Smooth L1: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere; plain L1 at beta = 0.

    Args:
        pred, target: the same shape, any, of any type of numbers; computed in float32, or float64 if either is.
        beta: width of the quadratic part, >= 0, in units of the box deltas.
        reduction: "sum", "mean" (0 for no elements) or "none".

    Raises:
        ValueError: beta outside [0, 1e6], unknown reduction, shapes that differ.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    check_beta(beta)
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction={reduction!r} is not one of 'sum', 'mean', 'none'")
    if reduction == "mean" and not pred.numel():
        reduction = "sum"  # PyTorch's mean of nothing is NaN
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return F.smooth_l1_loss(pred.to(dtype), target.to(dtype), beta=beta, reduction=reduction)


def box_iou_loss(pred: Tensor, target: Tensor, name: str) -> Tensor:
    """Return 1 - GIoU (Rezatofighi et al. 2019), 1 - DIoU or 1 - CIoU (Zheng et al. 2020) of each pair of boxes, (...).

    Args:
        pred, target: (..., 4) XYXY, in pixels. Sides of `pred` below .001 px and a millionth of their place, inverted
            ones too, are widened to that: a ratio of sides has no finite gradient at 0.
        name: one of `IOU_LOSSES`.

    Raises:
        KeyError: another name.
    """
    low, high = pred[..., :2], pred[..., 2:]
    with_sides = torch.cat((low, torch.maximum(high, low + 1e-3 + low.abs() * 1e-6)), dim=-1)
    losses: Tensor = IOU_LOSSES[name](with_sides, target)
    return losses


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta can be that of a smooth L1 loss."""
    if not 0 <= beta <= LARGEST_BETA:
        raise ValueError(f"beta={beta} is outside [0, {LARGEST_BETA:g}]")
