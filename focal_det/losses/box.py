"""Box regression losses of assigned anchors (section 4.1), summed over anchors and coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_l1_loss(pred: Tensor, target: Tensor, *, beta: float, reduction: str = "sum") -> Tensor:
    """Smooth L1: d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere; plain L1 at beta = 0.

    Args:
        pred, target: the same shape, any; computed in float32 or better.
        beta: width of the quadratic part, >= 0, in units of the box deltas.
        reduction: "sum", "mean" (0 for no elements) or "none".

    Raises:
        ValueError: negative beta, unknown reduction, shapes that differ.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    if beta < 0:
        raise ValueError(f"beta={beta} must be >= 0")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f'reduction="{reduction}" is not one of "sum", "mean", "none"')
    difference = (pred.to(target.dtype) - target).abs()
    if beta > 0:
        losses = torch.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)
    else:
        losses = difference
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" or not losses.numel() else losses.mean()
