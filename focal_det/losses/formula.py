"""The definition of a loss of the family, its constants checked: a function of one binary problem's logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -1

# (x, sign y, whether the slope is needed) to the loss and its derivative by x, elementwise and in the dtype of x. If
# the weights are by class, they are given anew as `weights` where x has not all classes side by side.
Terms = Callable[..., tuple[Tensor, Tensor | None]]
SoftTerms = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]  # the same with a target for each x
Plain = Callable[[Tensor, Tensor], Tensor]  # (x, targets) to the loss, for autograd to differentiate
Weights = tuple[float, float] | tuple[Tensor, Tensor]  # of a positive and of a negative, (K,) each if by class


class Formula(NamedTuple):
    """A loss of the family with its constants."""

    terms: Terms  # the loss and its derivative on tensors, weights included
    # The same for the kernels of `triton_loss`: "cross_entropy", "focal", "focal_star" or "hinge"; any other name for a
    # loss that has no kernel.
    kind: str
    weights: Weights = (1.0, 1.0)
    gamma: float = 0.0  # of "focal" and "focal_star"
    shift: float = 0.0  # beta of "focal_star", the margin of "hinge"
    soft_terms: SoftTerms | None = None  # of targets in [0, 1]; None for a loss that is defined for labels alone
    # By autograd, so with derivatives of any order, and right inside of torch.compile and torch.func, where a loss
    # without it cannot be used.
    plain: Plain | None = None

    @property
    def is_by_class(self) -> bool:
        """Tell whether the weights are tensors, which the kernels do not take."""
        return isinstance(self.weights[0], Tensor)


def terms_by_sign(
    x: Tensor, sign: int, needs_grad: bool, *, positive: Terms, negative: Terms
) -> tuple[Tensor, Tensor | None]:
    """Return the loss and its derivative of binary problems with y = sign, each sign of which has terms of its own."""
    return positive(x, 1, needs_grad) if sign > 0 else negative(x, -1, needs_grad)


def join_terms(
    join: Callable[[Tensor, Tensor], Tensor], one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return two losses joined, and their slopes alike, if there are any."""
    slope = None if one[1] is None or other[1] is None else join(one[1], other[1])
    return join(one[0], other[0]), slope


def check_number(name: str, value: float | Tensor, needed: str = "a number") -> None:
    """Raise TypeError unless the value is a real number. A tensor is not: it would get no gradient."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r:.60} must be {needed}, not {type(value).__name__}")


def alpha_weights(alpha: float | Tensor | None) -> Weights:
    """Return alpha_t of a positive and of a negative: alpha and 1 - alpha, or 1 and 1 without alpha.

    With alpha = 0 positives have neither loss nor gradient, with alpha = 1 negatives, at finite logits. A tensor (K,)
    has an alpha for each class, of the K binary problems of an anchor.

    Raises:
        ValueError: an alpha that makes a weight negative, a tensor that is not (K,).
        TypeError: an alpha that is not a number, a tensor that is not floating point or wants a gradient.
    """
    if alpha is None:
        return 1.0, 1.0
    if isinstance(alpha, Tensor) and alpha.dim():
        check_class_weights(alpha, 1.0)
        return alpha, 1 - alpha
    check_number("alpha", alpha, "a number, or a tensor (K,) with one for each class")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1]; None means no alpha")
    return float(alpha), 1.0 - float(alpha)


def check_class_weights(alpha: Tensor, highest: float) -> None:
    """Raise what `alpha_weights` documents of a tensor, of weights from 0 to the highest."""
    if alpha.dim() != 1:
        raise ValueError(f"alpha {tuple(alpha.shape)} must be (K,), a weight for each class")
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must be floating point, not {alpha.dtype}")
    if alpha.requires_grad:
        raise TypeError("alpha gets no gradient: give alpha.detach()")
    if can_be_looked_at(alpha):
        wrong = (~((alpha >= 0) & (alpha <= highest))).nonzero().flatten().tolist()  # NaN too
        if wrong:
            raise ValueError(f"alpha[{wrong[0]}]={alpha[wrong[0]].item()} is outside [0, {highest:g}]")


def check_number_of_weights(alpha: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless alpha (K,) has a weight for each class of logits (..., K), on their device."""
    if len(alpha) != logits.shape[-1]:
        raise ValueError(
            f"alpha has {len(alpha)} weights, but logits {tuple(logits.shape)} have {logits.shape[-1]} classes, which "
            "are their last dimension"
        )
    if alpha.device != logits.device:
        raise ValueError(f"alpha is on {alpha.device}, logits on {logits.device}: give alpha.to(logits.device)")


def alpha_t(targets: Tensor, weights: Weights) -> Tensor:
    """Return the weight of each target (..., K): that of a positive where it is 1, of a negative where it is 0."""
    return targets.mul(weights[0]).add(targets.neg().add(1).mul(weights[1])).to(targets.dtype)


def computed_in(logits: Tensor) -> torch.dtype:
    """Return the dtype in which losses of those logits are computed: float32 or better."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def wants_grad(tensors: Sequence[Tensor]) -> bool:
    """Tell whether a gradient is needed. Ask outside an autograd Function, inside of which grad mode is off."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_transformed(*tensors: Tensor) -> bool:
    """Tell whether torch.compile or a transform of torch.func, such as vmap or grad, is looking on."""
    return torch.compiler.is_compiling() or any(torch.func.debug_unwrap(x) is not x for x in tensors)


def can_be_looked_at(tensor: Tensor) -> bool:
    """Tell whether the values are at hand: a GPU would be waited for, and a transform has none."""
    return tensor.device.type == "cpu" and not is_transformed(tensor)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward with create_graph=True: a kept gradient is a constant, its derivative were 0."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the losses have no second derivative; with create_graph=True use the loss's own ..._reference, such as "
            "focal_loss_reference, which takes the same arguments (for a cross-entropy: focal_loss_reference, gamma=0)"
        )
