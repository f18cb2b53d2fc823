"""FL*, the other form of the focal loss (appendix A; Table 3, figures 5 to 7).

In the terms of `elementwise`, with u = gamma * z + beta and p* = sigmoid(u):

    FL*      = -log(p*) / gamma
    dFL*/dz  = p* - 1 = -sigmoid(-u)

gamma steers how steep the loss is, beta shifts it; gamma = 1, beta = 0 is cross-entropy.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import elementwise_loss, plain_loss
from .focal import MAX_GAMMA
from .formula import Formula, check_number


def focal_loss_star(logits: Tensor, labels: Tensor, *, gamma: float, beta: float, reduction: str = "sum") -> Tensor:
    """FL* of every anchor and class. The paper's settings: (gamma, beta) = (2, 1) and (4, 0).

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised.
        gamma: steepness, in [1e-6, 1e6].
        beta: shift, in [-1e6, 1e6].

    Raises:
        ValueError: gamma or beta out of its range.
    """
    return elementwise_loss(logits, labels, focal_star_formula(gamma, beta), reduction=reduction)


def focal_loss_star_reference(
    logits: Tensor, labels: Tensor, *, gamma: float, beta: float, reduction: str = "sum"
) -> Tensor:
    """`focal_loss_star` by autograd: slower and with more memory, but with derivatives of any order."""
    return plain_loss(logits, labels, focal_star_formula(gamma, beta), reduction=reduction)


def focal_star_formula(gamma: float, beta: float) -> Formula:
    """The loss of those constants; raises what `focal_loss_star` does."""
    check_star_constants(gamma, beta)
    terms = functools.partial(_terms, gamma=float(gamma), beta=float(beta))
    plain = functools.partial(_plain, gamma=float(gamma), beta=float(beta))
    return Formula(terms, "focal_star", gamma=float(gamma), shift=float(beta), plain=plain)


def check_star_constants(gamma: float, beta: float) -> None:
    """Raise ValueError unless gamma and beta make an FL* that float32 computes with."""
    check_number("gamma", gamma)
    check_number("beta", beta)
    if not 1 / MAX_GAMMA <= gamma <= MAX_GAMMA:
        raise ValueError(f"gamma={gamma} is outside [{1 / MAX_GAMMA:g}, {MAX_GAMMA:g}]; FL* divides by it")
    if not -MAX_GAMMA <= beta <= MAX_GAMMA:
        raise ValueError(f"beta={beta} is outside [{-MAX_GAMMA:g}, {MAX_GAMMA:g}]")


def _terms(x: Tensor, sign: int, needs_grad: bool, *, gamma: float, beta: float) -> tuple[Tensor, Tensor | None]:
    """FL* and dFL*/dx of binary problems with y = sign."""
    # In float64, since exp would magnify the rounding of u by |u|.
    u = (x.double() * (sign * gamma)).add_(beta)
    decayed = u.abs().neg_().exp_().to(x.dtype)  # exp(-|u|), in (0, 1]
    # -log sigmoid(u) = max(-u, 0) + log(1 + exp(-|u|)): two terms that are never negative
    losses = (-u).clamp_(min=0).div_(gamma).to(x.dtype).add_(decayed.log1p().div_(gamma))
    if not needs_grad:
        return losses, None
    numerator = torch.where(u > 0, decayed, 1)  # sigmoid(-u) = this / (1 + exp(-|u|))
    return losses, numerator.div_(decayed.add_(1)).mul_(-sign)


def _plain(x: Tensor, t: Tensor, *, gamma: float, beta: float) -> Tensor:
    """FL* of targets 0 and 1 for autograd."""
    return -F.logsigmoid(gamma * (2 * t - 1) * x + beta) / gamma
