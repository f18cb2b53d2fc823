"""Cross-entropy, plain and alpha-balanced (section 3.1; Table 1a).

CE = -alpha_t * log(p_t), dCE/dz = -alpha_t * (1 - p_t), in the terms of `elementwise`. -log p_t is the softplus of -z
and 1 - p_t the sigmoid of -z, so neither is a difference.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import elementwise_loss
from .formula import Formula, alpha_weights

# From here on softplus(u) rounds to u, in float64 too.
SOFTPLUS_THRESHOLD = 40.0


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, alpha: float | None = None, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy of every anchor and class.

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised.
        alpha: weight of a positive, in [0, 1]; 1 - alpha is a negative's. None for no weights.

    Raises:
        ValueError: alpha outside [0, 1].
    """
    return elementwise_loss(logits, labels, cross_entropy_formula(alpha), reduction=reduction)


def cross_entropy_formula(alpha: float | None) -> Formula:
    """The loss of that alpha; raises what `cross_entropy_loss` does."""
    weights = alpha_weights(alpha)
    return Formula(functools.partial(_terms, weights=weights), "cross_entropy", weights)


def _terms(x: Tensor, sign: int, needs_grad: bool, *, weights: tuple[float, float]) -> tuple[Tensor, Tensor | None]:
    """CE and dCE/dx of binary problems with y = sign; right for infinite logits too."""
    weight = weights[0] if sign > 0 else weights[1]
    u = -x if sign > 0 else x  # -z
    grad = torch.sigmoid(u).mul_(-sign * weight) if needs_grad else None
    return F.softplus(u, threshold=SOFTPLUS_THRESHOLD).mul_(weight), grad
