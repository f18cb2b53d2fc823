"""Focal loss (section 3.2, equations 4 and 5; derivative in the appendix).

In the terms of `elementwise`, with p = sigmoid(z), q = 1 - p = sigmoid(-z) and s = -log(p) = softplus(-z):

    FL      =  alpha_t * q^gamma * s
    dFL/dz  = -alpha_t * q^gamma * (q + gamma * p * s)

The last factor is a sum of two terms that are never negative. The power of q magnifies its roundings gamma times;
exp(gamma * log q) would magnify them gamma * |log q| times. p is taken as 1 - q: where that cancels, q is near 1 and
outweighs it. No power of zero is differentiated, so value and gradient are finite at every finite logit, also for
0 < gamma < 1 where autograd's derivative of (1 - p)^gamma is infinite once p rounds to 1.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .cross_entropy import cross_entropy_formula
from .elementwise import elementwise_loss
from .formula import Formula, alpha_weights, check_number

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
        alpha: weight of a positive, in [0, 1]; 1 - alpha is a negative's. None for no weights.
        gamma: focusing parameter, in [0, 1e6]; 0 is cross-entropy.

    Raises:
        ValueError: alpha outside [0, 1], gamma outside [0, 1e6].
    """
    return elementwise_loss(logits, labels, focal_formula(alpha, gamma), reduction=reduction)


def focal_formula(alpha: float | None, gamma: float) -> Formula:
    """The loss of those constants; raises what `focal_loss` does."""
    weights = alpha_weights(alpha)
    check_gamma(gamma)
    if gamma == 0:
        return cross_entropy_formula(alpha)  # without 0 * inf
    return Formula(functools.partial(_terms, weights=weights, gamma=float(gamma)), "focal", weights, float(gamma))


def check_gamma(gamma: float) -> None:
    """Raise ValueError unless gamma is a focusing parameter that float32 computes with."""
    check_number("gamma", gamma)
    if not 0 <= gamma <= MAX_GAMMA:
        raise ValueError(f"gamma={gamma} is outside [0, {MAX_GAMMA:g}]")


def _terms(
    x: Tensor, sign: int, needs_grad: bool, *, weights: tuple[float, float], gamma: float
) -> tuple[Tensor, Tensor | None]:
    """FL and dFL/dx of binary problems with y = sign."""
    # In place where it can be: what a block takes beyond the processor's caches counts.
    u = -x if sign > 0 else x  # -z
    q = torch.sigmoid(u)
    p = 1 - q
    # softplus(u) = max(u, 0) - log(1 - sigmoid(-|u|)): F.softplus would take a second exponential.
    s = torch.minimum(p, q).neg_().log1p_()
    torch.sub(u.clamp(min=0), s, out=s)
    modulating = (q**gamma).mul_(weights[0] if sign > 0 else weights[1])  # alpha_t * q^gamma
    if not needs_grad:
        return s.mul_(modulating), None
    slope = torch.addcmul(q, p, s, value=gamma, out=p).mul_(modulating)  # -dFL/dz
    return s.mul_(modulating), slope.neg_() if sign > 0 else slope
