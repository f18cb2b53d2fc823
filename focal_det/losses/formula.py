"""The definition of a loss of the family, its constants checked: a function of one binary problem's logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -1

# (x, sign y, whether the slope is needed) to the loss and its derivative by x, elementwise and in the dtype of x.
Terms = Callable[[Tensor, int, bool], tuple[Tensor, Tensor | None]]


class Formula(NamedTuple):
    """A loss of the family with its constants."""

    terms: Terms  # the loss and its derivative on tensors, weights included
    # The same for the kernels of `triton_loss`: "cross_entropy", "focal", "focal_star" or "hinge"; any other name for a
    # loss that has no kernel.
    kind: str
    weights: tuple[float, float] = (1.0, 1.0)  # of a positive and of a negative
    gamma: float = 0.0  # of "focal" and "focal_star"
    shift: float = 0.0  # beta of "focal_star", the margin of "hinge"


def check_number(name: str, value: float) -> None:
    """Raise TypeError unless the value is a real number. A tensor is not: it would get no gradient."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")


def alpha_weights(alpha: float | None) -> tuple[float, float]:
    """Return alpha_t of a positive and of a negative: alpha and 1 - alpha, or 1 and 1 without alpha.

    With alpha = 0 positives have neither loss nor gradient, with alpha = 1 negatives.

    Raises:
        ValueError: an alpha that makes a weight negative.
    """
    if alpha is None:
        return 1.0, 1.0
    check_number("alpha", alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1]; None means no alpha")
    return float(alpha), 1.0 - float(alpha)


def wants_grad(tensors: Sequence[Tensor]) -> bool:
    """Tell whether a gradient is needed. Ask outside an autograd Function, inside of which grad mode is off."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward with create_graph=True: a kept gradient is a constant, its derivative were 0."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the losses have no second derivative; with create_graph=True use the plain formulas of "
            "focal_det.losses.reference"
        )
