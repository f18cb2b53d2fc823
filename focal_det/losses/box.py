"""Box regression losses of assigned anchors (section 4.1), summed over anchors and coordinates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_BETA = 1e6  # far beyond any delta; the loss of all deltas is quadratic then


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


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta can be that of a smooth L1 loss."""
    if not 0 <= beta <= LARGEST_BETA:
        raise ValueError(f"beta={beta} is outside [0, {LARGEST_BETA:g}]")
