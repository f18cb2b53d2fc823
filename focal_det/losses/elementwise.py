"""The common part of the loss family: K binary problems per anchor, and the reductions of their losses.

Shapes
    logits: (..., K)  one logit per anchor and class
    labels: (...)     int64: 0..K-1 object class, K background, -1 ignored
            (..., K)  floating point, for losses with soft targets: the probability of y = +1, -1 ignored

Every anchor is K independent binary problems. With x the logit, y = +1 where the class is the anchor's own and
-1 elsewhere, z = y * x is the paper's x_t and p_t = sigmoid(z). A loss of the family is a function of z, with at most
a weight for each sign; it is given as a `Formula`. Several classes of an anchor (multi-hot) or none at all are float
targets of 1 and 0; `focal` says what a target between them means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formula import (
    IGNORED,
    Formula,
    can_be_looked_at,
    check_number_of_weights,
    computed_in,
    is_transformed,
    refuse_second_derivative,
    wants_grad,
)
from .fused import batch_loss, losses_and_grad

REDUCTIONS = ("sum", "mean", "none")
_LARGEST_LOGIT = 1e37  # of `plain_loss`: a few times it are finite in float32


def elementwise_loss(logits: Tensor, labels: Tensor, formula: Formula, *, reduction: str) -> Tensor:
    """Reduce the losses of all anchors and classes; the ignored have neither loss nor gradient.

    Inside of torch.compile and of the transforms of torch.func, such as vmap, grad and hessian, `plain_loss` is
    computed instead, which those can see through.

    Args:
        logits: (..., K) float64, float32, bfloat16 or float16; computed in float32 or better.
        labels: (...) int64; for a formula with soft targets also (..., K) floating point, each from 0 to 1, or -1.
        reduction: "sum", "mean" (over every element, the ignored too) or "none", such as to weight each by its own.

    Returns:
        A scalar, or (..., K) for "none", in float32 (float64 for float64 logits). The same input gives the same bits
        on the CPU; sum and mean also with another number of threads.

    Raises:
        ValueError: unknown reduction, shapes that do not fit, labels outside -1..K, targets outside of [0, 1] but for
            -1, NaN among them. The last two are not looked at on a GPU, where that would stall the stream, nor inside
            of transforms: such a label counts as background there, and such a target makes the loss NaN.
        TypeError: logits that are not floating point, labels of another type, targets that want a gradient; for all
            losses also a constant that is not a number.
        RuntimeError: from a backward with create_graph=True. No loss of the family has a second derivative: to lead
            to the logits it would have to keep them beside the gradient, twice the memory, in every training too.
            Those named `..._reference` have it.
    """
    check_inputs(logits, labels, formula, reduction)
    alphas = [weight for weight in formula.weights if isinstance(weight, Tensor)]
    if formula.plain is not None and is_transformed(logits, labels, *alphas):
        return plain_loss(logits, labels, formula, reduction=reduction)
    if labels.is_floating_point() and wants_grad([labels]):
        raise TypeError("float targets get no gradient: give targets.detach(), or take the loss's own ..._reference")
    rows = logits.reshape(-1, logits.shape[-1])  # (M, K)
    row_labels = labels.reshape(-1, *labels.shape[logits.dim() - 1 :])  # (M,) or (M, K)
    if reduction == "none":
        losses: Tensor = _EveryLoss.apply(rows, row_labels, formula, wants_grad([rows]))
        return losses.view(logits.shape)
    count = logits.numel() if reduction == "mean" and logits.numel() else 1
    divisor = torch.full((1,), count, dtype=computed_in(logits), device=logits.device)
    return batch_loss([rows.unsqueeze(0)], row_labels.unsqueeze(0), divisor, formula, hand_over=False)


def plain_loss(logits: Tensor, labels: Tensor, formula: Formula, *, reduction: str) -> Tensor:
    """`elementwise_loss` by one-hot targets, masks and autograd: slow, clear, differentiable, and the tests' oracle.

    Logits beyond ±1e37, infinite ones too, count as that and have no gradient, so that nothing is NaN.
    """
    check_inputs(logits, labels, formula, reduction)
    assert formula.plain is not None
    if labels.is_floating_point():
        targets, is_ignored = _or_nan(labels), labels == IGNORED
    else:
        targets = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
        is_ignored = (labels == IGNORED).unsqueeze(-1)
    dtype = computed_in(logits)
    # Ignored logits may be anything, inf and NaN too, which masking the losses alone would leave in the gradient.
    x, t = (values.to(dtype).masked_fill(is_ignored, 0) for values in (logits, targets))
    x = x.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return reduced(formula.plain(x, t).masked_fill(is_ignored, 0), reduction)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Return the losses, or their sum, or their mean, which of none is 0."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" or not losses.numel() else losses.mean()


def check_inputs(logits: Tensor, labels: Tensor, formula: Formula, reduction: str) -> None:
    """Raise what `elementwise_loss` documents of its input."""
    check_logits(logits, labels, reduction)
    takes_targets = formula.soft_terms is not None
    if takes_targets and labels.is_floating_point():
        if labels.shape != logits.shape:
            raise ValueError(f"float targets {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)}")
        _check_targets(labels)
    else:
        check_labels(logits, labels, has_background=True, or_else=" or float targets" if takes_targets else "")
    if isinstance(formula.weights[0], Tensor):
        check_number_of_weights(formula.weights[0], logits)


def check_logits(logits: Tensor, labels: Tensor, reduction: str) -> None:
    """Raise ValueError or TypeError unless there are logits (..., K), labels of any kind, and a known reduction."""
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, not {logits.dtype}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., K) with K >= 1 classes, not {tuple(logits.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is not one of {', '.join(map(repr, REDUCTIONS))}")


def check_labels(logits: Tensor, labels: Tensor, *, has_background: bool, or_else: str = "") -> None:
    """Raise TypeError or ValueError unless labels are class indices (...), which K may be too if that is background."""
    num_classes = logits.shape[-1]
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices{or_else}, not {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        hint = "; as targets, give labels.float()" if or_else and labels.shape == logits.shape else ""
        if labels.shape == (*logits.shape[:1], *logits.shape[2:]):  # (N, K, H, W), as PyTorch's cross_entropy has them
            hint = "; classes come last: give logits.movedim(1, -1)"
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} without the last{hint}"
        )
    if can_be_looked_at(labels) and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < IGNORED or high >= num_classes + has_background:
            allowed = f"-1 (ignored), 0..{num_classes - 1} (classes)"
            allowed += f" and {num_classes} (background)" if has_background else ""
            raise ValueError(f"labels span {low}..{high}; allowed are {allowed}")


def _check_targets(targets: Tensor) -> None:
    """Raise ValueError for the first target that is neither from 0 to 1 nor -1."""
    if not can_be_looked_at(targets) or not targets.numel():
        return
    low, high = targets.aminmax()  # NaN if there is one
    if low >= 0 and high <= 1:
        return
    wrong = (_or_nan(targets).isnan() & (targets != IGNORED)).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        where = ", ".join(map(str, place))
        raise ValueError(f"targets[{where}]={targets[place].item()}; allowed are 0 to 1, and -1 (ignored)")


def _or_nan(targets: Tensor) -> Tensor:
    """Return the targets with NaN in place of what is not from 0 to 1: of the ignored, and of mistakes."""
    return targets.masked_fill((targets < 0) | (targets > 1), torch.nan)


class _EveryLoss(torch.autograd.Function):
    """The loss of every element, (M, K), its derivative kept for the backward in the dtype of the computation."""

    @staticmethod
    def forward(ctx, rows, labels, formula, needs_grad):  # type: ignore[no-untyped-def]
        losses, grad = losses_and_grad(rows.to(computed_in(rows)), labels, formula, needs_grad)
        ctx.logits_dtype = rows.dtype
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return losses

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.logits_dtype), None, None, None
