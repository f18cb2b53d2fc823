"""The family as the paper writes it: one-hot targets, p_t, autograd. Slow, clear, and the tests' oracle.

Each takes and returns what its namesake does. They are exact where p_t does not round to 0 or 1, and have
derivatives of any order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementwise import check_inputs
from .focal import check_gamma
from .focal_star import check_star_constants
from .formula import IGNORED, alpha_weights
from .hinge import check_margin


def focal_loss_reference(
    logits: Tensor, labels: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0, reduction: str = "sum"
) -> Tensor:
    """Equation 5: -alpha_t (1 - p_t)^gamma log(p_t); with gamma = 0 the cross-entropy of section 3.1."""
    check_inputs(logits, labels, reduction)
    weights = alpha_weights(alpha)
    check_gamma(gamma)
    p_t = torch.sigmoid(_x_t(logits, labels))
    losses = (1 - p_t) ** gamma * -torch.log(p_t)
    losses = torch.where(_is_own_class(logits, labels), losses * weights[0], losses * weights[1])
    return _reduced(losses, labels, reduction)


def focal_loss_star_reference(
    logits: Tensor, labels: Tensor, *, gamma: float, beta: float, reduction: str = "sum"
) -> Tensor:
    """Appendix A: -log(sigmoid(gamma x_t + beta)) / gamma."""
    check_inputs(logits, labels, reduction)
    check_star_constants(gamma, beta)
    return _reduced(-torch.log(torch.sigmoid(gamma * _x_t(logits, labels) + beta)) / gamma, labels, reduction)


def hinge_loss_reference(logits: Tensor, labels: Tensor, *, margin: float, reduction: str = "sum") -> Tensor:
    """Section 5.1: max(0, margin - p_t)."""
    check_inputs(logits, labels, reduction)
    check_margin(margin)
    return _reduced(F.relu(margin - torch.sigmoid(_x_t(logits, labels))), labels, reduction)


def _is_own_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Tell whether the class is the anchor's own, (..., K) bool."""
    return labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)


def _x_t(logits: Tensor, labels: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = logits.to(dtype).masked_fill((labels == IGNORED).unsqueeze(-1), 0)  # whatever they are, inf and NaN too
    return torch.where(_is_own_class(logits, labels), logits, -logits)


def _reduced(losses: Tensor, labels: Tensor, reduction: str) -> Tensor:
    losses = losses.masked_fill((labels == IGNORED).unsqueeze(-1), 0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" or not losses.numel() else losses.mean()
