"""Cross-entropy, plain and alpha-balanced (section 3.1; Table 1a).

CE = -alpha_t * log(p_t), dCE/dz = -alpha_t * (1 - p_t), in the terms of `elementwise`. -log p_t is the softplus of -z
and 1 - p_t the sigmoid of -z, so neither is a difference.

A soft target t weights both signs: CE = alpha_t * (t * softplus(-x) + (1 - t) * softplus(x)), in which alpha_t is
t * alpha + (1 - t) * (1 - alpha).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import elementwise_loss
from .formula import Formula, Weights, alpha_t, alpha_weights

# From here on softplus(u) rounds to u, in float64 too.
SOFTPLUS_THRESHOLD = 40.0


def cross_entropy_loss(
    logits: Tensor, labels: Tensor, *, alpha: float | Tensor | None = None, reduction: str = "sum"
) -> Tensor:
    """Binary cross-entropy of every anchor and class.

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised; labels may be
            float targets.
        alpha: weight of a positive, in [0, 1]; 1 - alpha is a negative's. None for no weights. A tensor (K,) on the
            logits' device has an alpha for each class.

    Raises:
        ValueError: alpha outside [0, 1] (not looked at in a tensor on a GPU), not one for each class.
    """
    return elementwise_loss(logits, labels, cross_entropy_formula(alpha), reduction=reduction)


def cross_entropy_formula(alpha: float | Tensor | None) -> Formula:
    """The loss of that alpha; raises what `cross_entropy_loss` does."""
    weights = alpha_weights(alpha)
    return Formula(
        functools.partial(_terms, weights=weights),
        "cross_entropy",
        weights,
        soft_terms=functools.partial(_soft_terms, weights=weights),
        plain=functools.partial(plain_cross_entropy, weights=weights),
    )


def _terms(x: Tensor, sign: int, needs_grad: bool, *, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """CE and dCE/dx of binary problems with y = sign; right for infinite logits too."""
    weight = weights[0] if sign > 0 else weights[1]
    u = -x if sign > 0 else x  # -z
    grad = torch.sigmoid(u).mul_(-sign * weight) if needs_grad else None
    return F.softplus(u, threshold=SOFTPLUS_THRESHOLD).mul_(weight), grad


def _soft_terms(x: Tensor, t: Tensor, needs_grad: bool, *, weights: Weights) -> tuple[Tensor, Tensor | None]:
    """CE and dCE/dx of targets t, of 0 and 1 with the very bits of `_terms`."""
    sign, major, minor = likelier_sign(t)
    u = x * sign  # -z
    weight = alpha_t(t, weights)
    other = F.softplus(-u, threshold=SOFTPLUS_THRESHOLD).clamp_(max=torch.finfo(x.dtype).max)  # else 0 * inf
    losses = F.softplus(u, threshold=SOFTPLUS_THRESHOLD).mul_(major).addcmul_(minor, other).mul_(weight)
    if not needs_grad:
        return losses, None
    slope = torch.sigmoid(u).mul_(major).addcmul_(minor, torch.sigmoid(-u), value=-1)  # -dCE/dz
    return losses, slope.mul_(weight).mul_(sign)


def likelier_sign(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return -y for the sign y that the target t thinks likelier, the probability of that sign, and of the other.

    That of the other is NaN for a target that is not from 0 to 1, which then shows in loss and slope.
    """
    rest = 1 - t
    minor = torch.minimum(t, rest)
    return torch.where(t < 0.5, 1.0, -1.0).to(t.dtype), torch.maximum(t, rest), minor.masked_fill_(minor < 0, torch.nan)


def plain_cross_entropy(x: Tensor, t: Tensor, *, weights: Weights) -> Tensor:
    """CE for autograd."""
    return -alpha_t(t, weights) * (t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))
