"""The class-balanced focal loss (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019).

With n_y the number of boxes of an anchor's own class y in the training set, and L the focal loss without alpha:

    E_n = (1 - beta^n) / (1 - beta),     the effective number of n samples (proposition 1)
    w_y = 1 / E_n, times what makes the weights of all K classes sum to K
    CB  = w_y * (L of the K binary problems of the anchor),     the paper's "class-balanced focal loss"

beta = 0 weights all classes alike; as beta comes near 1 the weights come near 1 / n. The weight belongs to the anchor,
so also to the negatives of the other classes there; a weight for each class's binary problem instead would leave the
balance of positives and negatives within every class as it is. Background, which in the paper's classification is no
class, has weight 1, the mean of the others.

1 - beta^n is -expm1(n * log(beta)), which loses nothing where beta^n is near 1. The weights are float64 until then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..losses.elementwise import check_logits, reduced
from ..losses.focal import focal_loss
from ..losses.formula import IGNORED, check_number


def class_balanced_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_boxes: Sequence[int],
    beta: float = 0.9999,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """The class-balanced focal loss of every anchor and class.

    Args:
        logits: (..., K) one logit for each binary problem.
        labels: (...) int64 class indices. See `elementwise_loss`, which also says what is returned and raised.
        class_boxes: K numbers >= 1 of boxes in the training set, by class.
        beta: in [0, 1); the paper tries .9, .99, .999 and .9999.
        gamma: focusing parameter, in [0, 1e6].
        reduction: "sum", "mean" over every element, or "none".

    Raises:
        ValueError: a constant outside its range, or not one number for each class.
        TypeError: float targets, which do not say what an anchor's class is; class_boxes that are no sequence or array.
    """
    check_logits(logits, labels, reduction)
    if labels.is_floating_point():
        raise TypeError("labels must be int64 class indices: the weight is that of the anchor's class")
    weights = label_weights(class_boxes, beta)
    if len(class_boxes) != logits.shape[-1]:
        raise ValueError(f"class_boxes has {len(class_boxes)} numbers, and there are {logits.shape[-1]} classes")
    losses = focal_loss(logits, labels, alpha=None, gamma=gamma, reduction="none")
    return reduced(losses * weights.to(losses)[labels.clamp(IGNORED, len(class_boxes))].unsqueeze(-1), reduction)


def label_weights(class_boxes: Sequence[int], beta: float) -> Tensor:
    """Return `class_weights` with weight 1 appended for background, (K + 1,); -1 indexes it too, and is ignored."""
    weights = class_weights(class_boxes, beta)
    return torch.cat([weights, weights.new_ones(1)])


def class_weights(class_boxes: Sequence[int], beta: float) -> Tensor:
    """Return the weights by class, (K,) float64, whose sum is K; raise what `class_balanced_focal_loss` does."""
    check_beta(beta)
    check_counts("class_boxes", class_boxes)
    if beta == 0:
        return torch.ones(len(class_boxes), dtype=torch.float64)
    numbers = -torch.expm1(torch.tensor([float(n) for n in class_boxes], dtype=torch.float64) * math.log(beta))
    weights = numbers.reciprocal()
    return weights * (len(weights) / weights.sum())


def check_beta(beta: float) -> None:
    """Raise ValueError unless beta is a share that overlapping samples can have."""
    check_number("beta", beta)
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} is outside [0, 1)")


def check_counts(name: str, counts: Sequence[int]) -> None:
    """Raise ValueError unless each class has a count of one or more, TypeError unless they are a sequence."""
    if isinstance(counts, str | Mapping) or not hasattr(counts, "__getitem__"):  # arrays are no Sequence
        raise TypeError(f"{name}={counts!r} must be a sequence with a number for each class")
    for label, count in enumerate(counts):
        if not isinstance(count, Integral) or isinstance(count, bool) or not 1 <= count < 2**63:
            raise ValueError(
                f"{name}[{label}]={count!r} must be a whole number >= 1: give a class that the training set does not "
                "have a count of 1, or leave the class out"
            )
