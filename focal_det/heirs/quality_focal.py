"""Quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020, equation 2).

The target y of an assigned anchor's own class is how good its box is, the IoU with the object's; all others are 0. With
p = sigmoid(x), q = 1 - p and the cross-entropy C = -(y log(p) + (1 - y) log(q)):

    QFL     = |y - p|^beta * C
    dQFL/dx = |p - y|^beta * (p - y) + beta * |p - y|^(beta - 1) * sign(p - y) * p * q * C

It is 0 where p = y. For y = 0 and 1 it is the focal loss of gamma = beta without alpha. Where y lies between, p - y
cancels near that place, so it is computed in float64. There C is above 0 and for 0 < beta < 1 the slope is infinite:
such a beta is refused.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.cross_entropy import SOFTPLUS_THRESHOLD, likelier_sign, plain_cross_entropy
from ..losses.elementwise import elementwise_loss, plain_loss
from ..losses.focal import MAX_GAMMA, focal_formula
from ..losses.formula import Formula, check_number


def quality_focal_loss(logits: Tensor, targets: Tensor, *, beta: float = 2.0, reduction: str = "sum") -> Tensor:
    """The quality focal loss of every anchor and class.

    Args:
        logits: (..., K) one logit for each binary problem.
        targets: (..., K) float in [0, 1], -1 for what is ignored: the quality for the anchor's own class, 0 for the
            others. Or (...) int64 class indices, of quality 1. See `elementwise_loss`, which also says what is returned
            and raised.
        beta: focusing parameter, 0 (cross-entropy) or in [1, 1e6]; the paper's best is 2.
        reduction: "sum", "mean" over every element, or "none".

    Raises:
        ValueError: beta out of its range.
    """
    return elementwise_loss(logits, targets, quality_focal_formula(beta), reduction=reduction)


def quality_focal_loss_reference(
    logits: Tensor, targets: Tensor, *, beta: float = 2.0, reduction: str = "sum"
) -> Tensor:
    """`quality_focal_loss` by autograd: slower and with more memory, but with derivatives of any order."""
    return plain_loss(logits, targets, quality_focal_formula(beta), reduction=reduction)


def quality_focal_formula(beta: float) -> Formula:
    """The loss of that beta; raises what `quality_focal_loss` does."""
    check_number("beta", beta)
    if not (beta == 0 or 1 <= beta <= MAX_GAMMA):
        raise ValueError(f"beta={beta} is neither 0 nor in [1, {MAX_GAMMA:g}]")
    focal = focal_formula(None, beta)._replace(kind="quality_focal")
    if beta == 0:  # cross-entropy, of any target
        return focal
    return focal._replace(
        soft_terms=functools.partial(_soft_terms, beta=float(beta)),
        plain=functools.partial(_plain, beta=float(beta)),
    )


def _soft_terms(x: Tensor, t: Tensor, needs_grad: bool, *, beta: float) -> tuple[Tensor, Tensor | None]:
    """QFL and dQFL/dx of targets t, in terms of the likelier sign, of which u is -z: as there, 1 - t is exact."""
    dtype, x = x.dtype, x.double()
    sign, major, minor = likelier_sign(t.double())
    u = x * sign
    q = torch.sigmoid(u)
    gap = q - minor  # |p - y| with the sign of the slope by u
    other = F.softplus(-u, threshold=SOFTPLUS_THRESHOLD).clamp_(max=torch.finfo(x.dtype).max)  # else 0 * inf
    entropy = F.softplus(u, threshold=SOFTPLUS_THRESHOLD).mul_(major).addcmul_(minor, other)
    size = gap.abs()
    losses = (size**beta).mul_(entropy)
    if not needs_grad:
        return losses.to(dtype), None
    spread = torch.sigmoid(-u).mul_(q).mul_(entropy).nan_to_num_(0.0)  # p q C, whose limit is 0
    slope = size.pow(beta - 1).mul_(gap.sign()).mul_(gap.square().add_(spread, alpha=beta))
    return losses.to(dtype), slope.mul_(sign).to(dtype)


def _plain(x: Tensor, t: Tensor, *, beta: float) -> Tensor:
    """QFL for autograd."""
    return (t - torch.sigmoid(x)).abs() ** beta * plain_cross_entropy(x, t, weights=(1.0, 1.0))
