"""Focal loss (section 3.2, equations 4 and 5; derivative in the appendix).

In the terms of `elementwise`, with p = sigmoid(z) and q = 1 - p = sigmoid(-z):

    FL      = -alpha_t * q^gamma * log(p)
    dFL/dz  = -alpha_t * q^gamma * (q - gamma * p * log(p))

The last factor is a sum of two terms that are never negative, so nothing cancels. q is taken as -expm1(log p), as exact
as log p. Its power magnifies its roundings gamma times; exp(gamma * log q) would magnify them gamma * |log q| times.
No power of zero is differentiated, so value and gradient are finite at every finite logit, also for 0 < gamma < 1
where autograd's derivative of (1 - p)^gamma is infinite once p rounds to 1.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_entropy import cross_entropy_terms
from .elementwise import Terms, alpha_weight, check_alpha, check_number, elementwise_loss

# Far beyond any use; float32 would not hold what is much larger.
MAX_GAMMA = 1e6


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """The alpha-balanced focal loss of equation 5; equation 4 with ``alpha=None``.

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised.
        alpha: weight of a positive, in (0, 1); 1 - alpha is a negative's. None for no weights.
        gamma: focusing parameter, in [0, 1e6]; 0 is cross-entropy.

    Raises:
        ValueError: alpha outside (0, 1), gamma outside [0, 1e6].
    """
    check_alpha(alpha)
    check_gamma(gamma)
    terms: Terms = functools.partial(cross_entropy_terms, alpha=alpha)  # for gamma = 0 without 0 * inf
    if gamma > 0:
        terms = functools.partial(_focal_terms, alpha=alpha, gamma=float(gamma))
    return elementwise_loss(logits, labels, terms, reduction=reduction)


def check_gamma(gamma: float) -> None:
    """Raise ValueError unless gamma is a focusing parameter that float32 computes with."""
    check_number("gamma", gamma)
    if not 0 <= gamma <= MAX_GAMMA:
        raise ValueError(f"gamma={gamma} is outside [0, {MAX_GAMMA:g}]")


def _focal_terms(
    x: Tensor, sign: int, needs_grad: bool, *, alpha: float | None, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """FL and dFL/dx of binary problems with y = sign."""
    z = x if sign > 0 else -x
    log_p = F.logsigmoid(z)
    q = log_p.expm1().neg_()
    modulating = (q**gamma).mul_(-alpha_weight(alpha, sign))  # -alpha_t * q^gamma
    losses = modulating * log_p
    if not needs_grad:
        return losses, None
    slope = torch.sigmoid(z).mul_(log_p).mul_(-gamma).add_(q).mul_(modulating)
    return losses, slope if sign > 0 else slope.neg_()
