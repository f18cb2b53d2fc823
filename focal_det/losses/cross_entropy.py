"""Cross-entropy, plain and alpha-balanced (section 3.1; Table 1a).

CE = -alpha_t * log(p_t), dCE/dz = -alpha_t * (1 - p_t), in the terms of `elementwise`. 1 - p_t is taken from log p_t,
exactly down to the smallest number of the dtype, where PyTorch's sigmoid is 0 from x = -88.7 on.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor

from .elementwise import alpha_weight, check_alpha, elementwise_loss


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, alpha: float | None = None, reduction: str = "sum") -> Tensor:
    """Binary cross-entropy of every anchor and class.

    Args:
        logits, labels, reduction: see `elementwise_loss`, which also says what is returned and raised.
        alpha: weight of a positive, in (0, 1); 1 - alpha is a negative's. None for no weights.

    Raises:
        ValueError: alpha outside (0, 1).
    """
    check_alpha(alpha)
    return elementwise_loss(logits, labels, functools.partial(cross_entropy_terms, alpha=alpha), reduction=reduction)


def cross_entropy_terms(x: Tensor, sign: int, needs_grad: bool, *, alpha: float | None) -> tuple[Tensor, Tensor | None]:
    """CE and dCE/dx of binary problems with y = sign; right for infinite logits too."""
    weight = alpha_weight(alpha, sign)
    log_p = F.logsigmoid(x if sign > 0 else -x)
    grad = log_p.expm1().mul_(sign * weight) if needs_grad else None
    return log_p.mul_(-weight), grad
