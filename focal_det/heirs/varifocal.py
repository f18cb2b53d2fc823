"""Varifocal loss (Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021, equation 2).

The target t (their q) of an assigned anchor's own class is how good its box is, the IoU with the object's; all others
are 0. With p = sigmoid(x):

    VFL     = -t (t log(p) + (1 - t) log(1 - p))    for t > 0,    dVFL/dx = t (p - t)
    VFL     = -alpha p^gamma log(1 - p)             for t = 0

So negatives have the focal loss, and positives a cross-entropy that is weighted by the target: good boxes count more,
and no positive is counted down for being easy. A positive of quality 0 counts as a negative.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..losses.cross_entropy import cross_entropy_formula, plain_cross_entropy
from ..losses.elementwise import elementwise_loss, plain_loss
from ..losses.focal import focal_formula
from ..losses.formula import Formula, Terms, check_number, join_terms, terms_by_sign

_MAX_ALPHA = 1e6


def varifocal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "sum"
) -> Tensor:
    """The varifocal loss of every anchor and class; the defaults are the paper's.

    Args:
        logits: (..., K) one logit for each binary problem.
        targets: (..., K) float in [0, 1], -1 for what is ignored: the quality for the anchor's own class, 0 for the
            others. Or (...) int64 class indices, of quality 1. See `elementwise_loss`, which also says what is returned
            and raised.
        alpha: weight of a negative, in [0, 1e6]; a positive's is its target.
        gamma: focusing parameter of negatives, in [0, 1e6].
        reduction: "sum", "mean" over every element, or "none".

    Raises:
        ValueError: alpha or gamma out of its range.
    """
    return elementwise_loss(logits, targets, varifocal_formula(alpha, gamma), reduction=reduction)


def varifocal_loss_reference(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "sum"
) -> Tensor:
    """`varifocal_loss` by autograd: slower and with more memory, but with derivatives of any order."""
    return plain_loss(logits, targets, varifocal_formula(alpha, gamma), reduction=reduction)


def varifocal_formula(alpha: float, gamma: float) -> Formula:
    """The loss of those constants; raises what `varifocal_loss` does."""
    check_number("alpha", alpha)
    if not 0 <= alpha <= _MAX_ALPHA:
        raise ValueError(f"alpha={alpha} is outside [0, {_MAX_ALPHA:g}]")
    negative, positive = focal_formula(None, gamma), cross_entropy_formula(None)
    of_negatives = functools.partial(negative.terms, weights=(1.0, float(alpha)))
    return Formula(
        functools.partial(terms_by_sign, positive=positive.terms, negative=of_negatives),  # positives of quality 1
        "varifocal",
        soft_terms=functools.partial(_soft_terms, positive=positive, negative=of_negatives),
        plain=functools.partial(_plain, alpha=float(alpha), gamma=float(gamma)),
    )


def _soft_terms(
    x: Tensor, t: Tensor, needs_grad: bool, *, positive: Formula, negative: Terms
) -> tuple[Tensor, Tensor | None]:
    """VFL and dVFL/dx of targets t."""
    assert positive.soft_terms is not None
    of_positives, of_negatives = positive.soft_terms(x, t, needs_grad), negative(x, -1, needs_grad)
    return join_terms(lambda one, other: torch.where(t == 0, other, one * t), of_positives, of_negatives)


def _plain(x: Tensor, t: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """VFL for autograd."""
    weights = torch.where(t == 0, alpha * torch.exp(gamma * torch.nn.functional.logsigmoid(x)), t)
    return weights * plain_cross_entropy(x, t, weights=(1.0, 1.0))
