"""Focal loss (section 3, equations 4 and 5), from logits and integer labels.

Shapes
    logits: (..., K)  one logit per anchor and class
    labels: (...)     int64: 0..K-1 object class, K background, -1 ignored

Every anchor is K independent binary problems. With x the logit, y = +1 where the class is the anchor's
own and -1 elsewhere, and z = y * x, so that p_t = sigmoid(z):

    FL      = -alpha_t * (1 - p_t)^gamma * log(p_t)
            =  alpha_t * exp(gamma * log sigmoid(-z)) * -log sigmoid(z)
    dFL/dz  = -alpha_t * (1 - p_t)^gamma * (gamma * p_t * -log(p_t) + (1 - p_t))

Written through log-sigmoid, no term overflows and no power of zero is differentiated, so value and
gradient stay finite for every gamma >= 0, also for 0 < gamma < 1 where autograd's derivative of
(1 - p_t)^gamma is infinite once p_t rounds to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -1

# Rows of logits handled at a time, as a number of elements: a block and its few temporaries stay in the
# processor's second-level cache, so the loss reads and writes main memory once.
_BLOCK_ELEMENTS = 1 << 16


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """The alpha-balanced focal loss of equation 5; equation 4 with ``alpha=None``.

    Args:
        logits: (..., K) float64, float32, bfloat16 or float16; computed in float32 or better.
        labels: (...) int64, 0..K-1 class, K background, -1 ignored (no loss, no gradient).
        alpha: weight of the positive term in [0, 1], 1 - alpha that of the negative; None for no weights.
        gamma: focusing parameter, >= 0; 0 is cross-entropy.
        reduction: "sum", "mean" (over every element, the ignored too) or "none".

    Returns:
        A scalar, or (..., K) for "none", in float32 (float64 for float64 logits).

    Raises:
        ValueError: a value out of its range, or shapes that do not fit; says which.
        TypeError: logits that are not floating point, labels that are not int64.
        RuntimeError: from a backward with create_graph=True: the second derivative is not implemented.

    Labels outside -1..K raise on the CPU. On a GPU the check would stall the stream, so there it is an
    index error of the kernel.
    """
    check_loss_arguments(logits, labels, alpha=alpha, gamma=gamma, reduction=reduction)
    losses = _FocalLoss.apply(logits, labels, alpha, float(gamma), reduction == "none")
    return losses / logits.numel() if reduction == "mean" and logits.numel() else losses


def focal_loss_reference(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> Tensor:
    """Equation 5 as the paper writes it: one-hot targets, p_t, autograd. Slow, clear, and the tests' oracle.

    Takes and returns what `focal_loss` does, and is exact where p_t does not round to 0 or 1.
    """
    check_loss_arguments(logits, labels, alpha=alpha, gamma=gamma, reduction=reduction)
    num_classes = logits.shape[-1]
    kept = (labels != IGNORED).unsqueeze(-1)
    targets = F.one_hot(labels.clamp(min=0), num_classes + 1)[..., :num_classes].to(logits.dtype)  # (..., K)

    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    losses = (1 - p_t) ** gamma * -torch.log(p_t)
    if alpha is not None:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    losses = losses * kept
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def check_loss_arguments(logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float, reduction: str) -> None:
    """Raise what `focal_loss` documents if an argument is out of its range."""
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
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1]; None means no alpha")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma={gamma} must be finite and >= 0")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f'reduction="{reduction}" is not one of "sum", "mean", "none"')
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < IGNORED or high > logits.shape[-1]:
            raise ValueError(
                f"labels span {low}..{high}; allowed are -1 (ignored), 0..{logits.shape[-1] - 1} (classes) "
                f"and {logits.shape[-1]} (background)"
            )


class _FocalLoss(torch.autograd.Function):
    """Sum (or elements) of the loss, with the gradient written in the same pass over the logits.

    The one tensor kept for the backward is that gradient. It is in the dtype of the computation, so that
    the gradient of half-precision logits is rounded once, after the loss scale and the normaliser.
    """

    @staticmethod
    def forward(ctx, logits, labels, alpha, gamma, elementwise):  # type: ignore[no-untyped-def]
        num_classes = logits.shape[-1]
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rows, row_labels = logits.reshape(-1, num_classes), labels.reshape(-1)  # (M, K), (M,)
        needs_grad = ctx.needs_input_grad[0]
        grad = torch.empty(rows.shape, dtype=dtype, device=rows.device) if needs_grad else None
        losses = torch.empty(rows.shape, dtype=dtype, device=rows.device) if elementwise else None

        # Blocks pay for themselves where a cache is to be kept warm; a GPU wants one large launch.
        block = max(1, _BLOCK_ELEMENTS // num_classes) if rows.device.type == "cpu" else max(1, len(rows))
        sums = []
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            block_losses, block_grad = _losses_and_grad(
                rows[part].to(dtype), row_labels[part], alpha, gamma, needs_grad
            )
            if grad is not None:
                grad[part] = block_grad
            if losses is not None:
                losses[part] = block_losses
            else:
                sums.append(block_losses.sum())

        ctx.logits_dtype = logits.dtype
        ctx.save_for_backward(*([] if grad is None else [grad.view(logits.shape)]))
        if losses is not None:
            return losses.view(logits.shape)
        return torch.stack(sums).sum() if sums else torch.zeros((), dtype=dtype, device=logits.device)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():  # create_graph=True; the kept gradient is a constant, so its derivative were 0
            raise RuntimeError("focal_loss has no second derivative; use focal_loss_reference with create_graph=True")
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.logits_dtype), None, None, None, None


def _losses_and_grad(
    x: Tensor, labels: Tensor, alpha: float | None, gamma: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and its derivative by x, (M, K) each, for logits x (M, K) and labels (M,).

    All K problems are first taken as negative; then the one positive of each assigned anchor is written over.
    """
    positive_weight, negative_weight = (1.0, 1.0) if alpha is None else (alpha, 1.0 - alpha)
    losses, grad = _binary_terms(x, -1, negative_weight, gamma, needs_grad)

    own_class = labels.clamp(0, x.shape[-1] - 1).unsqueeze(-1)  # (M, 1); of no use where not assigned
    is_assigned = ((labels >= 0) & (labels < x.shape[-1])).unsqueeze(-1)
    is_kept = (labels != IGNORED).unsqueeze(-1)

    own_losses, own_grad = _binary_terms(x.gather(-1, own_class), 1, positive_weight, gamma, needs_grad)
    for terms, own_terms in ((losses, own_losses), (grad, own_grad)):
        if terms is not None and own_terms is not None:
            terms.scatter_(-1, own_class, torch.where(is_assigned, own_terms, terms.gather(-1, own_class)))
            # masked_fill, not a product: an ignored anchor stays at zero even if its logit is inf or NaN
            terms.masked_fill_(~is_kept, 0)
    return losses, grad


def _binary_terms(x: Tensor, sign: int, weight: float, gamma: float, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    """FL and dFL/dx of a binary problem with y = sign, elementwise."""
    z = x if sign > 0 else -x
    log_p = F.logsigmoid(z)  # log p_t
    log_q = F.logsigmoid(-z)  # log(1 - p_t)
    if gamma == 0:  # cross-entropy, whose value and slope at infinite logits 0 * inf would lose
        return log_p * -weight, torch.exp(log_q).mul_(-sign * weight) if needs_grad else None
    modulating = torch.exp(gamma * log_q).mul_(weight)
    losses = modulating * -log_p
    if not needs_grad:
        return losses, None
    slope = torch.exp(log_p).mul_(log_p).mul_(-gamma).add_(torch.exp(log_q))
    return losses, slope.mul_(modulating).mul_(-sign)
