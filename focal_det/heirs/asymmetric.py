"""The asymmetric loss (Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021).

Positives and negatives have focusing parameters of their own, and a negative whose score is below the shift m has no
loss at all. With p = sigmoid(x) and q = 1 - p = sigmoid(-x):

    L+      = -q^gamma_pos * log(p),               the focal loss of a positive
    L-      = -p_m^gamma_neg * log(1 - p_m),       p_m = max(p - m, 0)
    dL-/dx  =  p_m^gamma_neg * p * q * (1 / (1 - p_m) + gamma_neg * s / p_m),       s = -log(1 - p_m)

of which the slope has the derivative of the focusing factor, as in the paper's analysis (their code can leave it out).
The loss of a target t is the paper's t * L+ + (1 - t) * L-, also between 0 and 1.

p_m is the difference of two sigmoids, sigmoid(x) - sigmoid(x0) with x0 = log(m / (1 - m)), which cancels near x0. The
same number without a difference of probabilities is

    p_m = p * (1 - m) * -expm1(-(x - x0))     for x > x0

with x0 in two parts, so that x - x0 is exact to a rounding. 1 - p_m is q + m, and its logarithm is taken of whichever
of p_m and q + m is the smaller. s / p_m tends to 1 as p_m does to 0.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from ..losses.elementwise import elementwise_loss, plain_loss
from ..losses.focal import check_gamma, focal_formula
from ..losses.formula import Formula, Plain, Terms, check_number, join_terms, terms_by_sign


def asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    prob_shift: float = 0.05,
    reduction: str = "sum",
) -> Tensor:
    """The asymmetric loss of every anchor and class; the defaults are the paper's.

    Args:
        logits: (..., K) one logit for each binary problem.
        labels: (...) int64 class indices, or (..., K) float targets in [0, 1]. See `elementwise_loss`, which also says
            what is returned and raised.
        gamma_pos, gamma_neg: focusing parameters of positives and of negatives, in [0, 1e6].
        prob_shift: m, the probability up to which a negative has no loss, in [0, 1).
        reduction: "sum", "mean" over every element, or "none".

    Raises:
        ValueError: a constant outside its range.
    """
    formula = asymmetric_formula(gamma_pos, gamma_neg, prob_shift)
    return elementwise_loss(logits, labels, formula, reduction=reduction)


def asymmetric_loss_reference(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    prob_shift: float = 0.05,
    reduction: str = "sum",
) -> Tensor:
    """`asymmetric_loss` by autograd: slower and with more memory, but with derivatives of any order."""
    formula = asymmetric_formula(gamma_pos, gamma_neg, prob_shift)
    return plain_loss(logits, labels, formula, reduction=reduction)


def asymmetric_formula(gamma_pos: float, gamma_neg: float, prob_shift: float) -> Formula:
    """The loss of those constants; raises what `asymmetric_loss` does."""
    check_gamma(gamma_pos, "gamma_pos")
    check_gamma(gamma_neg, "gamma_neg")
    check_number("prob_shift", prob_shift)
    if not 0 <= prob_shift < 1:
        raise ValueError(f"prob_shift={prob_shift} is outside [0, 1)")
    positive, negative = focal_formula(None, gamma_pos), focal_formula(None, gamma_neg)
    of_negatives, plain_of_negatives = negative.terms, negative.plain
    if prob_shift > 0:
        gamma, shift = float(gamma_neg), float(prob_shift)
        of_negatives = functools.partial(_shifted_terms, gamma=gamma, shift=shift)
        plain_of_negatives = functools.partial(_plain_shifted, gamma=gamma, shift=shift)
    assert positive.plain is not None
    assert plain_of_negatives is not None
    return Formula(
        functools.partial(terms_by_sign, positive=positive.terms, negative=of_negatives),
        "asymmetric",
        soft_terms=functools.partial(_soft_terms, positive=positive.terms, negative=of_negatives),
        plain=functools.partial(_plain, positive=positive.plain, negative=plain_of_negatives),
    )


@functools.lru_cache(maxsize=64)
def _logit_in_two(probability: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return log(p / (1 - p)) as a number of the dtype and the rest."""
    with localcontext() as context:
        context.prec = 50
        exact = (Decimal(probability) / (1 - Decimal(probability))).ln()
        high = torch.tensor(float(exact), dtype=dtype).item()
        return high, float(exact - Decimal(high))


def _soft_terms(
    x: Tensor, t: Tensor, needs_grad: bool, *, positive: Terms, negative: Terms
) -> tuple[Tensor, Tensor | None]:
    """The loss and its derivative by x of targets t; those of 0 and 1 with the very bits of `terms_by_sign`."""
    t = t.masked_fill((t < 0) | (t > 1), torch.nan)
    return join_terms(  # of 0 and 1 by choice, since the other sign's may be infinite
        lambda one, other: torch.where(t == 1, one, torch.where(t == 0, other, one * t + other * (1 - t))),
        positive(x, 1, needs_grad),
        negative(x, -1, needs_grad),
    )


def _shifted_terms(
    x: Tensor, sign: int, needs_grad: bool, *, gamma: float, shift: float
) -> tuple[Tensor, Tensor | None]:
    """L- and dL-/dx with a shift m > 0."""
    high, low = _logit_in_two(shift, x.dtype)
    beyond = (x - high).sub_(low).clamp_(min=0)  # x - x0
    q = torch.sigmoid(-x)
    p = torch.sigmoid(x)
    shifted = torch.expm1(beyond.neg_()).mul_(p).mul_(shift - 1)  # p_m
    rest = q + shift  # 1 - p_m, where that is below 1
    s = torch.where(shifted > 0.5, rest.log(), torch.log1p(-shifted)).neg_()
    modulating = shifted**gamma
    if not needs_grad:
        return s.mul_(modulating), None
    ratio = torch.where(shifted > 0, s / shifted, 1.0)
    slope = rest.clamp_(max=1).reciprocal_().add_(ratio, alpha=gamma).mul_(p).mul_(q).mul_(modulating)
    return s.mul_(modulating), slope.masked_fill_(shifted <= 0, 0)


def _plain(x: Tensor, t: Tensor, *, positive: Plain, negative: Plain) -> Tensor:
    """The loss of targets t for autograd."""
    return t * positive(x, torch.ones_like(x)) + (1 - t) * negative(x, torch.zeros_like(x))


def _plain_shifted(x: Tensor, _: Tensor, *, gamma: float, shift: float) -> Tensor:
    """L- with a shift m > 0 for autograd, whose where() needs a finite derivative on either side."""
    beyond = x - math.log(shift) + math.log1p(-shift)
    has_loss = beyond > 0
    beyond = torch.where(has_loss, beyond, 1.0)
    shifted = -torch.sigmoid(x) * (1 - shift) * torch.expm1(-beyond)
    entropy = torch.where(shifted > 0.5, -torch.log(torch.sigmoid(-x) + shift), -torch.log1p(-shifted.clamp(max=0.5)))
    return torch.where(has_loss, shifted**gamma * entropy, 0.0)
