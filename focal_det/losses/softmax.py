"""The focal loss of classes that exclude one another (the footnote of section 3: "straightforward and works well").

p_t is the softmax probability of the anchor's own class y, among classes with the background's as one of them:

    FL = -alpha_y * (1 - p_y)^gamma * log(p_y)

With z = x_y - log(sum of exp(x_j) over the other classes j) it is p_y = sigmoid(z), so that the loss is the binary one
at x_t = z. In terms of z neither 1 - p_y nor log(p_y) is a difference, as they are in those of log_softmax, where both
round to 0 as soon as p_y rounds to 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import check_labels, check_logits, reduced
from .focal import check_gamma
from .formula import IGNORED, check_class_weights, check_number_of_weights, computed_in


def softmax_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: Tensor | None = None, gamma: float = 2.0, reduction: str = "sum"
) -> Tensor:
    """The focal loss of one class out of K; with gamma = 0 the cross-entropy of `torch.nn.functional.cross_entropy`.

    By autograd alone, so with derivatives of any order, and inside of torch.compile and torch.func too.

    Args:
        logits: (..., K) float64, float32, bfloat16 or float16, K >= 2; computed in float32 or better. -inf masks a
            class, whose p is 0: where it is the label's own, or all are masked, the loss is infinite. +inf gives NaN.
        labels: (...) int64, 0..K-1, or -1 for what is ignored. A background is a class like the others: after 80
            object classes it is class 80 of 81 logits.
        alpha: (K,) weight of each class, >= 0, on the logits' device; None for no weights. Not a number: here no
            negative is left for 1 - alpha, and the same weight for all would change nothing but the loss's scale.
        gamma: focusing parameter, in [0, 1e6].
        reduction: "sum", "mean" (over every label, the ignored too, and without the weights) or "none".

    Returns:
        A scalar, or (...) for "none", in float32 (float64 for float64 logits).

    Raises:
        ValueError: unknown reduction, shapes that do not fit, gamma out of its range, weights below 0, labels outside
            -1..K-1. The last two are not looked at on a GPU, where that would stall the stream, nor inside of
            transforms.
        TypeError: logits that are not floating point, labels that are not int64, an alpha that is not a tensor or
            wants a gradient, a gamma that is not a number.
    """
    check_logits(logits, labels, reduction)
    if logits.shape[-1] < 2:
        raise ValueError(f"logits {tuple(logits.shape)} have one class, whose softmax is 1: focal_loss is for those")
    check_labels(logits, labels, has_background=False)
    check_gamma(gamma)
    if alpha is not None:
        if not isinstance(alpha, Tensor):
            raise TypeError(
                f"alpha={alpha!r} must be a tensor (K,) with a weight for each class: for a background in the last, "
                "0.25 and 0.75 are torch.tensor([0.25] * (K - 1) + [0.75])"
            )
        check_class_weights(alpha, math.inf)
        check_number_of_weights(alpha, logits)

    is_ignored = labels == IGNORED
    x = logits.to(computed_in(logits)).masked_fill(is_ignored.unsqueeze(-1), 0)  # whatever they are, inf and NaN too
    own = labels.clamp(min=0).unsqueeze(-1)  # (..., 1)
    others = x.scatter(-1, own, -math.inf)
    x_own = x.gather(-1, own)
    is_alone = others.amax(-1, keepdim=True) == -math.inf  # the other classes are masked
    z = x_own - others.masked_fill(is_alone, 0).logsumexp(-1, keepdim=True)
    z = z.masked_fill(is_alone & (x_own > -math.inf), torch.finfo(z.dtype).max).squeeze(-1)  # (...), p_y is 1
    is_masked = z == -math.inf  # of a class that is masked itself the loss is infinite, and its slope that for p_y = 0
    losses = torch.where(is_masked, -z, _binary(z.masked_fill(is_masked, 0), gamma))
    if alpha is not None:
        weights = alpha.to(losses.dtype)[labels.clamp(min=0)]
        losses = (losses * weights).masked_fill(weights == 0, 0)  # else inf * 0
    return reduced(losses.masked_fill(is_ignored, 0), reduction)


def _binary(z: Tensor, gamma: float) -> Tensor:
    """Return the focal loss at x_t = z, by autograd."""
    entropy = -F.logsigmoid(z)
    return entropy if gamma == 0 else torch.exp(gamma * F.logsigmoid(-z)) * entropy
