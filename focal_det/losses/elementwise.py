"""What every loss of the family shares: K binary problems per anchor, summed in one pass with their gradient.

Shapes
    logits: (..., K)  one logit per anchor and class
    labels: (...)     int64: 0..K-1 object class, K background, -1 ignored

Every anchor is K independent binary problems. With x the logit, y = +1 where the class is the anchor's own and
-1 elsewhere, z = y * x is the paper's x_t and p_t = sigmoid(z). A loss of the family is a function of z, with at most
a weight for each sign; it is given as its `Terms`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

IGNORED = -1
REDUCTIONS = ("sum", "mean", "none")

# (x, sign y, whether the slope is needed) to the loss and its derivative by x, elementwise and in the dtype of x.
Terms = Callable[[Tensor, int, bool], tuple[Tensor, Tensor | None]]

# Rows of logits handled at a time, as a number of elements: a block and its few temporaries stay in the
# processor's second-level cache, so the loss reads and writes main memory once.
_BLOCK_ELEMENTS = 1 << 16


def elementwise_loss(logits: Tensor, labels: Tensor, terms: Terms, *, reduction: str) -> Tensor:
    """Reduce the terms of all anchors and classes; the ignored have neither loss nor gradient.

    Args:
        logits: (..., K) float64, float32, bfloat16 or float16; computed in float32 or better.
        labels: (...) int64.
        reduction: "sum", "mean" (over every element, the ignored too) or "none".

    Returns:
        A scalar, or (..., K) for "none", in float32 (float64 for float64 logits). The same input gives the same bits
        on the CPU, as long as PyTorch uses as many threads.

    Raises:
        ValueError: unknown reduction, shapes that do not fit, labels outside -1..K. The last is not looked at on a
            GPU, where that would stall the stream: such a label counts as background there.
        TypeError: logits that are not floating point, labels that are not int64; for all losses also a constant
            that is no number.
        RuntimeError: from a backward with create_graph=True. No loss of the family has a second derivative: to lead
            to the logits it would have to keep them beside the gradient, twice the memory, in every training too.
    """
    check_inputs(logits, labels, reduction)
    needs_grad = logits.requires_grad and torch.is_grad_enabled()  # inside a Function the latter is always False
    losses: Tensor = _ElementwiseLoss.apply(logits, labels, terms, reduction == "none", needs_grad)
    return losses / logits.numel() if reduction == "mean" and logits.numel() else losses


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


def check_number(name: str, value: float) -> None:
    """Raise TypeError unless the value is a real number. A tensor is none: it would get no gradient."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")


def check_alpha(alpha: float | None) -> None:
    """Raise ValueError unless alpha leaves a weight to positives and negatives both."""
    if alpha is None:
        return
    check_number("alpha", alpha)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} is outside (0, 1); None means no alpha")


def alpha_weight(alpha: float | None, sign: int) -> float:
    """alpha_t: alpha for a positive, 1 - alpha for a negative, 1 without alpha."""
    if alpha is None:
        return 1.0
    return alpha if sign > 0 else 1.0 - alpha


class _ElementwiseLoss(torch.autograd.Function):
    """Sum (or elements) of the loss, with the gradient written in the same pass over the logits.

    The one tensor kept for the backward is that gradient. It is in the dtype of the computation, so that
    the gradient of half-precision logits is rounded once, after the loss scale and the normaliser.
    """

    @staticmethod
    def forward(ctx, logits, labels, terms, elementwise, needs_grad):  # type: ignore[no-untyped-def]
        num_classes = logits.shape[-1]
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rows, row_labels = logits.reshape(-1, num_classes), labels.reshape(-1)  # (M, K), (M,)
        grad = torch.empty(logits.shape, dtype=dtype, device=logits.device) if needs_grad else None
        losses = torch.empty(logits.shape, dtype=dtype, device=logits.device) if elementwise else None
        grad_rows, loss_rows = (None if t is None else t.view(rows.shape) for t in (grad, losses))

        # Blocks pay for themselves where a cache is to be kept warm; a GPU wants one large launch.
        block = max(1, _BLOCK_ELEMENTS // num_classes) if rows.device.type == "cpu" else max(1, len(rows))
        sums = [torch.zeros((), dtype=dtype, device=logits.device)]
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            block_losses, block_grad = _losses_and_grad(rows[part].to(dtype), row_labels[part], terms, needs_grad)
            if grad_rows is not None:
                grad_rows[part] = block_grad
            if loss_rows is not None:
                loss_rows[part] = block_losses
            else:
                sums.append(block_losses.sum())

        ctx.logits_dtype = logits.dtype
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return torch.stack(sums).sum() if losses is None else losses

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # create_graph=True; the kept gradient is a constant, so its derivative were 0
            raise RuntimeError(
                "the losses have no second derivative; with create_graph=True use the plain formulas of "
                "focal_det.losses.reference"
            )
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.logits_dtype), None, None, None, None


def _losses_and_grad(x: Tensor, labels: Tensor, terms: Terms, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Loss and its derivative by x, (M, K) each, for logits x (M, K) and labels (M,).

    All K problems are first taken as negative; then the one positive of each assigned anchor is written over.
    """
    losses, grad = terms(x, -1, needs_grad)

    own_class = labels.clamp(0, x.shape[-1] - 1).unsqueeze(-1)  # (M, 1); of no use where not assigned
    is_assigned = ((labels >= 0) & (labels < x.shape[-1])).unsqueeze(-1)
    is_ignored = (labels == IGNORED).unsqueeze(-1)

    own_losses, own_grad = terms(x.gather(-1, own_class), 1, needs_grad)
    for values, own_values in ((losses, own_losses), (grad, own_grad)):
        if values is not None and own_values is not None:
            values.scatter_(-1, own_class, torch.where(is_assigned, own_values, values.gather(-1, own_class)))
            # masked_fill, not a product: an ignored anchor stays at zero even if its logit is inf or NaN
            values.masked_fill_(is_ignored, 0)
    return losses, grad
