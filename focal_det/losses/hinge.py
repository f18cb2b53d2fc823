"""The hinge loss on p_t that the paper tried and gave up (section 5.1, "Hinge Loss").

In the terms of `elementwise`, with p = sigmoid(z) and m the margin:

    hinge      = max(0, m - p)
    dhinge/dz  = -p * (1 - p) where p < m, else 0

Its slope vanishes for the worst mistakes too (p near 0), which is why training on it hardly starts.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .elementwise import elementwise_loss, plain_loss
from .formula import Formula, check_number


def hinge_loss(logits: Tensor, labels: Tensor, *, margin: float, reduction: str = "sum") -> Tensor:
    """The hinge of every anchor and class.

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised.
        margin: the p_t from which on there is no loss, in (0, 1].

    Raises:
        ValueError: margin outside (0, 1].
    """
    return elementwise_loss(logits, labels, hinge_formula(margin), reduction=reduction)


def hinge_loss_reference(logits: Tensor, labels: Tensor, *, margin: float, reduction: str = "sum") -> Tensor:
    """`hinge_loss` by autograd: slower and with more memory, but with derivatives of any order."""
    return plain_loss(logits, labels, hinge_formula(margin), reduction=reduction)


def hinge_formula(margin: float) -> Formula:
    """The loss of that margin; raises what `hinge_loss` does."""
    check_margin(margin)
    terms = functools.partial(_terms, margin=float(margin))
    plain = functools.partial(_plain, margin=float(margin))
    return Formula(terms, "hinge", shift=float(margin), plain=plain)


def check_margin(margin: float) -> None:
    """Raise ValueError unless the margin is a p_t that can be reached or approached."""
    check_number("margin", margin)
    if not 0 < margin <= 1:
        raise ValueError(f"margin={margin} is outside (0, 1]")


def _terms(x: Tensor, sign: int, needs_grad: bool, *, margin: float) -> tuple[Tensor, Tensor | None]:
    """The hinge and its derivative by x of binary problems with y = sign."""
    # In float64, since the difference below cancels near the margin.
    z = x.double() if sign > 0 else -x.double()
    q = torch.sigmoid(-z)
    gap = q - (1 - margin)  # m - p; through q it is exact for m = 1, where p would have rounded to 1
    losses = gap.clamp(min=0).to(x.dtype)
    if not needs_grad:
        return losses, None
    slope = torch.sigmoid(z).mul_(q).mul_(-sign).masked_fill_(gap <= 0, 0)
    return losses, slope.to(x.dtype)


def _plain(x: Tensor, t: Tensor, *, margin: float) -> Tensor:
    """The hinge of targets 0 and 1 for autograd."""
    return (margin - torch.sigmoid((2 * t - 1) * x)).relu()
