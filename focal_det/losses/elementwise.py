"""The common part of the loss family: K binary problems per anchor, and the reductions of their losses.

Shapes
    logits: (..., K)  one logit per anchor and class
    labels: (...)     int64: 0..K-1 object class, K background, -1 ignored

Every anchor is K independent binary problems. With x the logit, y = +1 where the class is the anchor's own and
-1 elsewhere, z = y * x is the paper's x_t and p_t = sigmoid(z). A loss of the family is a function of z, with at most
a weight for each sign; it is given as a `Formula`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formula import IGNORED, Formula, refuse_second_derivative, wants_grad
from .fused import batch_loss, losses_and_grad

REDUCTIONS = ("sum", "mean", "none")


def elementwise_loss(logits: Tensor, labels: Tensor, formula: Formula, *, reduction: str) -> Tensor:
    """Reduce the losses of all anchors and classes; the ignored have neither loss nor gradient.

    Args:
        logits: (..., K) float64, float32, bfloat16 or float16; computed in float32 or better.
        labels: (...) int64.
        reduction: "sum", "mean" (over every element, the ignored too) or "none".

    Returns:
        A scalar, or (..., K) for "none", in float32 (float64 for float64 logits). The same input gives the same bits
        on the CPU; sum and mean also with another number of threads.

    Raises:
        ValueError: unknown reduction, shapes that do not fit, labels outside -1..K. The last is not looked at on a
            GPU, where that would stall the stream: such a label counts as background there.
        TypeError: logits that are not floating point, labels that are not int64; for all losses also a constant
            that is not a number.
        RuntimeError: from a backward with create_graph=True. No loss of the family has a second derivative: to lead
            to the logits it would have to keep them beside the gradient, twice the memory, in every training too.
    """
    check_inputs(logits, labels, reduction)
    rows, row_labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)  # (M, K), (M,)
    if reduction == "none":
        losses: Tensor = _EveryLoss.apply(rows, row_labels, formula, wants_grad([rows]))
        return losses.view(logits.shape)
    count = logits.numel() if reduction == "mean" and logits.numel() else 1
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    divisor = torch.full((1,), count, dtype=dtype, device=logits.device)
    return batch_loss([rows.unsqueeze(0)], row_labels.unsqueeze(0), divisor, formula, hand_over=False)


def check_inputs(logits: Tensor, labels: Tensor, reduction: str) -> None:
    """Raise what `elementwise_loss` documents of its input."""
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(value).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, not {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64 class indices, not {labels.dtype}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be (..., K) with K >= 1 classes, not {tuple(logits.shape)}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the shape of logits {tuple(logits.shape)} without the last"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is not one of {', '.join(map(repr, REDUCTIONS))}")
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < IGNORED or high > logits.shape[-1]:
            raise ValueError(
                f"labels span {low}..{high}; allowed are -1 (ignored), 0..{logits.shape[-1] - 1} (classes) "
                f"and {logits.shape[-1]} (background)"
            )


class _EveryLoss(torch.autograd.Function):
    """The loss of every element, (M, K), its derivative kept for the backward in the dtype of the computation."""

    @staticmethod
    def forward(ctx, rows, labels, formula, needs_grad):  # type: ignore[no-untyped-def]
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        losses, grad = losses_and_grad(rows.to(dtype), labels, formula.terms, needs_grad)
        ctx.logits_dtype = rows.dtype
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return losses

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.logits_dtype), None, None, None
