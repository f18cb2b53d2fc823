"""Focal loss (section 3.2, equations 4 and 5; derivative in the appendix).

In the terms of `elementwise`, with p = sigmoid(z), q = 1 - p = sigmoid(-z) and s = -log(p) = softplus(-z):

    FL      =  alpha_t * q^gamma * s
    dFL/dz  = -alpha_t * q^gamma * (q + gamma * p * s)

The last factor is a sum of two terms that are never negative. The power of q magnifies its roundings gamma times;
exp(gamma * log q) would magnify them gamma * |log q| times. p is taken as 1 - q: where that cancels, q is near 1 and
outweighs it. No power of zero is differentiated, so value and gradient are finite at every finite logit, also for
0 < gamma < 1 where autograd's derivative of (1 - p)^gamma is infinite once p rounds to 1.

The paper has targets of 0 and 1 alone. Of a soft target t in [0, 1] every factor is here what lies between its values
at 0 and 1, as in torchvision.ops.sigmoid_focal_loss and fvcore.nn.sigmoid_focal_loss, which Detectron2 trains with.
With p = sigmoid(x) and q = 1 - p now of the logit itself, and the cross-entropy C of `cross_entropy`:

    p_t     = t * p + (1 - t) * q,   so that   1 - p_t = t * q + (1 - t) * p
    alpha_t = t * alpha + (1 - t) * (1 - alpha)
    FL      = alpha_t * (1 - p_t)^gamma * C,   C = t * softplus(-x) + (1 - t) * softplus(x)
    dFL/dx  = alpha_t * (1 - p_t)^gamma * (p - t + gamma * (1 - 2 t) * C * p * q / (1 - p_t))

Again nothing is a difference but the gradient itself, which is 0 somewhere between both signs. With gamma > 0 that is
not where p = t, but further out (gamma = 2, t = .9: p = .986); a loss whose modulating factor is |t - p|^gamma, as in
the quality focal loss, is another one.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_entropy import cross_entropy_formula, likelier_sign, plain_cross_entropy
from .elementwise import elementwise_loss, plain_loss
from .formula import Formula, Weights, alpha_t, alpha_weights, check_number

# Far beyond any use; float32 would not hold what is much larger.
MAX_GAMMA = 1e6


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """The alpha-balanced focal loss of equation 5; equation 4 with ``alpha=None``.

    Args:
        logits: (..., K) one logit for each binary problem.
        labels: (...) int64 class indices, or (..., K) float targets in [0, 1], which of 0 and 1 give the same bits as
            the indices that they stand for. See `elementwise_loss`, which also says what is returned and raised.
        alpha: weight of a positive, in [0, 1]; 1 - alpha is a negative's. None for no weights. A tensor (K,) on the
            logits' device has an alpha for each class.
        gamma: focusing parameter, in [0, 1e6]; 0 is cross-entropy.
        reduction: "sum", "mean" over every element, or "none".

    Raises:
        ValueError: alpha outside [0, 1] (not looked at in a tensor on a GPU), not one for each class; gamma outside
            [0, 1e6].
    """
    return elementwise_loss(logits, labels, focal_formula(alpha, gamma), reduction=reduction)


def focal_loss_reference(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """`focal_loss` by autograd: slower and with more memory, but with derivatives of any order."""
    return plain_loss(logits, labels, focal_formula(alpha, gamma), reduction=reduction)


def focal_formula(alpha: float | Tensor | None, gamma: float) -> Formula:
    """The loss of those constants; raises what `focal_loss` does."""
    weights = alpha_weights(alpha)
    check_gamma(gamma)
    if gamma == 0:
        return cross_entropy_formula(alpha)  # without 0 * inf
    gamma = float(gamma)
    return Formula(
        functools.partial(_terms, weights=weights, gamma=gamma),
        "focal",
        weights,
        gamma,
        soft_terms=functools.partial(_soft_terms, weights=weights, gamma=gamma),
        plain=functools.partial(_plain, weights=weights, gamma=gamma),
    )


def check_gamma(gamma: float, name: str = "gamma") -> None:
    """Raise ValueError unless gamma is a focusing parameter that float32 computes with; the message has its name."""
    check_number(name, gamma)
    if not 0 <= gamma <= MAX_GAMMA:
        raise ValueError(f"{name}={gamma} is outside [0, {MAX_GAMMA:g}]")


def _terms(x: Tensor, sign: int, needs_grad: bool, *, weights: Weights, gamma: float) -> tuple[Tensor, Tensor | None]:
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


def _soft_terms(
    x: Tensor, t: Tensor, needs_grad: bool, *, weights: Weights, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """FL and dFL/dx of targets t, of 0 and 1 with the very bits of `_terms`: its steps, for the likelier sign."""
    sign, major, minor = likelier_sign(t)
    u = x * sign  # -z
    q = torch.sigmoid(u)
    p = 1 - q
    softened = torch.minimum(p, q).neg_().log1p_()  # -log(1 + exp(-|u|))
    other = (-u).clamp_(0, torch.finfo(x.dtype).max)  # else 0 * inf
    s = u.clamp_(min=0).mul_(major).addcmul_(minor, other).sub_(softened)  # the cross-entropy
    wrong = (major * q).addcmul_(minor, p)  # 1 - p_t
    modulating = (wrong**gamma).mul_(alpha_t(t, weights))
    if not needs_grad:
        return s.mul_(modulating), None
    share = torch.div(q, wrong, out=wrong).nan_to_num_(1.0)  # 1 for a hard target, also where both have rounded to 0
    share.mul_(p).mul_(major - minor)
    slope = q.mul_(major).addcmul_(minor, p, value=-1).addcmul_(share, s, value=gamma)  # -dFL/dz, but for what follows
    return s.mul_(modulating), slope.mul_(modulating).mul_(sign)


def _plain(x: Tensor, t: Tensor, *, weights: Weights, gamma: float) -> Tensor:
    """FL for autograd: through logarithms, since (1 - p_t)^gamma has derivatives that are not finite."""
    either = torch.stack([t.log() + F.logsigmoid(-x), (1 - t).log() + F.logsigmoid(x)])
    return torch.exp(gamma * either.logsumexp(0)) * plain_cross_entropy(x, t, weights=weights)
