"""The class loss of a batch over the head's outputs as they are: no one-hot, no gather, and no copy of logits that
were channels_last (of others, of one image and level at a time).

Shapes
    levels:   (N, ..., K) each   logits of one pyramid level; together R anchors, in order
    labels:   (N, R)             int64: 0..K-1 object class, K background, -1 ignored
              (N, R, K)          floating point: targets from 0 to 1, -1 ignored
    divisors: (N,)               of each image's summed loss
    quality:  (N, R)             with int64 labels: the target of each assigned anchor's own class, if that is not 1
    weights:  (N, 1|R, 1|K)      of the losses of each image, anchor or class, where they do not all count alike

On the CPU each thread turns a few rows at a time into losses and gradient while they are in its cache: each logit is
read from memory once, and its gradient written once, divided already. The blocks, and with them every bit, are the same
for any number of threads. On a GPU a level at a time, or with `triton_loss` all levels at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .formula import IGNORED, Formula, check_number_of_weights, computed_in, refuse_second_derivative, wants_grad
from .memory import empty_in_huge_pages
from .threads import map_in_threads
from .triton_loss import triton_batch_loss

# Rows of logits handled at a time, as a number of elements: a block and its few temporaries stay in the processor's
# caches, and are enough work for what calling an operator costs.
_BLOCK_ELEMENTS = 1 << 18


def batch_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    divisors: Tensor,
    formula: Formula,
    *,
    use_triton: bool = False,
    hand_over: bool = True,
    quality: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over images of the image's summed loss divided by its divisor.

    Args:
        labels: not looked at whether they are in -1..K; others count as background. Targets outside of [0, 1] make
            the loss NaN.
        use_triton: by the kernels of `triton_loss`, for logits on a GPU. There is none for float64, float targets, a
            quality and weights of any kind, which are computed without.
        hand_over: on the CPU, if nothing scales the loss, the levels get the very gradient that was kept, without a
            copy. Not for leaves, which keep what they get, nor for views of leaves: a second backward would meet what
            has become of it.
        quality: for a formula with soft targets; not looked at whether it is in [0, 1].

    Returns:
        A scalar in float32 (float64 for float64 logits), with a gradient by every level in the level's dtype. For
        bfloat16 on the CPU the gradient is rounded when it is written; a factor that is applied to the loss rounds
        it once more, unless it is a power of two. Otherwise it is rounded once, after every factor.

    Raises:
        ValueError: weights by class that are not one for each, or on another device.
        RuntimeError: from a backward with create_graph=True.
    """
    positive, negative = formula.weights
    has_kernel = quality is None and weights is None and not labels.is_floating_point()
    if isinstance(positive, Tensor):
        check_number_of_weights(positive, levels[0])
    elif use_triton and has_kernel and levels[0].dtype != torch.float64:
        kind, alphas, gamma, shift = formula.kind, (positive, float(negative)), formula.gamma, formula.shift
        return triton_batch_loss(levels, labels, divisors, kind=kind, weights=alphas, gamma=gamma, shift=shift)
    hand_over = hand_over and not any(level.is_leaf for level in levels)
    given = labels, quality, weights, divisors
    loss: Tensor = _BatchLoss.apply(*given, formula, wants_grad(levels), hand_over, *levels)
    return loss


class _BatchLoss(torch.autograd.Function):
    """The loss, with the gradient written in the same pass over the logits: the one thing kept for the backward."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, labels, quality, weights, divisors, formula, needs_grad, hand_over, *levels
    ):
        ctx.dtype, dtype = levels[0].dtype, computed_in(levels[0])
        on_cpu = labels.device.type == "cpu"
        # Rounded at once where no loss scale can follow that lifts what would round to zero.
        kept_as = ctx.dtype if on_cpu and ctx.dtype != torch.float16 else dtype
        empty = empty_in_huge_pages if on_cpu else functools.partial(torch.empty, device=labels.device)
        grads = [empty(level.shape, dtype=kept_as) for level in levels] if needs_grad else []

        is_by_class = weights is not None and weights.shape[-1] > 1

        def summed_loss(block: _Block) -> Tensor:
            losses, grad = losses_and_grad(block.logits.to(dtype), block.labels, formula, needs_grad, block.quality)
            if weights is not None:
                # what does not count has neither loss nor gradient, even where its logit is inf or NaN
                left_out = block.scale == 0
                for values in (losses,) if grad is None else (losses, grad):
                    values.masked_fill_(left_out, 0)
            if not is_by_class:
                losses = losses.sum(dim=1, keepdim=True)
            if grad is not None:
                torch.mul(grad, block.scale, out=block.grad)
            return (losses * block.scale).sum()

        scales = divisors.to(dtype).reciprocal()
        if weights is not None:
            scales = (scales.view(-1, 1, 1) * weights).to(dtype).expand(*labels.shape[:2], -1)
        total = torch.zeros((), dtype=dtype, device=labels.device)
        if on_cpu:
            sums = map_in_threads(summed_loss, _cached_blocks(levels, labels, quality, scales, grads))
        else:
            sums = map(summed_loss, _large_blocks(levels, labels, quality, scales, grads))
        for one in sums:
            total += one

        ctx.hand_over = hand_over and on_cpu
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        if ctx.hand_over and grad_output.item() == 1:
            grads = tuple(grad.to(ctx.dtype) for grad in ctx.saved_tensors)
        else:
            grads = tuple((grad * grad_output).to(ctx.dtype) for grad in ctx.saved_tensors)
        return *[None] * 7, *grads


class _Block(NamedTuple):
    """Rows that are handled at a time.

    logits: (M, K). labels: (M,) or (M, K). quality: (M,), if there is one. scale: of losses and gradient, (), (M, 1)
    or (M, K). grad: where it goes, (M, K), if anywhere.
    """

    logits: Tensor
    labels: Tensor
    quality: Tensor | None
    scale: Tensor
    grad: Tensor | None


def _large_blocks(
    levels: Sequence[Tensor], labels: Tensor, quality: Tensor | None, scales: Tensor, grads: Sequence[Tensor]
) -> Iterator[_Block]:
    """A level at a time, for a GPU: few launches, and no waiting for the number of special rows."""
    scales = scales if scales.dim() == 3 else scales.view(-1, 1, 1).expand(*labels.shape[:2], 1)
    start = 0
    for place, level in enumerate(levels):
        rows = level.reshape(-1, level.shape[-1])  # (N * R_l, K)
        anchors = slice(start, start + level[0].numel() // level.shape[-1])
        of_rows = None if quality is None else quality[:, anchors].flatten(0, 1)
        grad = grads[place].view(rows.shape) if grads else None
        yield _Block(rows, labels[:, anchors].flatten(0, 1), of_rows, scales[:, anchors].flatten(0, 1), grad)
        start = anchors.stop


def _cached_blocks(
    levels: Sequence[Tensor], labels: Tensor, quality: Tensor | None, scales: Tensor, grads: Sequence[Tensor]
) -> Iterator[_Block]:
    """Some thousand rows of an image at a time, for a processor's caches."""
    for image in range(len(labels)):
        start = 0
        for place, level in enumerate(levels):
            rows = level[image].reshape(-1, level.shape[-1])
            grad = grads[place][image].view(rows.shape) if grads else None
            size = max(1, _BLOCK_ELEMENTS // level.shape[-1])
            for first in range(0, len(rows), size):
                block = slice(first, min(first + size, len(rows)))
                anchors = slice(start + block.start, start + block.stop)
                yield _Block(
                    rows[block],
                    labels[image, anchors],
                    None if quality is None else quality[image, anchors],
                    scales[image, anchors] if scales.dim() == 3 else scales[image],
                    None if grad is None else grad[block],
                )
            start += len(rows)


def losses_and_grad(
    x: Tensor, labels: Tensor, formula: Formula, needs_grad: bool, quality: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Loss and its derivative by x, (M, K) each, for logits x (M, K), labels (M,) and quality (M,), or targets (M, K).

    With labels all K problems are first taken as negative; then the rows that are not background are written over.
    """
    if labels.is_floating_point():
        assert formula.soft_terms is not None
        losses, grad = formula.soft_terms(x, labels.to(x.dtype), needs_grad)
        is_ignored = labels == IGNORED
        for values in (losses, grad):
            if values is not None:
                values.masked_fill_(is_ignored, 0)
        return losses, grad

    losses, grad = formula.terms(x, -1, needs_grad)
    # A GPU would have to be waited for to know how many rows there are.
    special = (labels != x.shape[-1]).nonzero().squeeze(1) if x.device.type == "cpu" else None
    if special is None or len(special) == len(labels):
        _write_own_class(x, labels, quality, formula, losses, grad)
    elif len(special):
        some_losses, some_grad = losses[special], None if grad is None else grad[special]
        some_quality = None if quality is None else quality[special]
        _write_own_class(x[special], labels[special], some_quality, formula, some_losses, some_grad)
        losses[special] = some_losses
        if grad is not None and some_grad is not None:
            grad[special] = some_grad
    return losses, grad


def _write_own_class(
    x: Tensor, labels: Tensor, quality: Tensor | None, formula: Formula, losses: Tensor, grad: Tensor | None
) -> None:
    """Write the one positive of each assigned anchor, and zeros for the ignored, into losses and grad (M, K)."""
    own_class = labels.clamp(0, x.shape[-1] - 1).unsqueeze(-1)  # (M, 1); of no use where not assigned
    is_assigned = ((labels >= 0) & (labels < x.shape[-1])).unsqueeze(-1)
    is_ignored = (labels == IGNORED).unsqueeze(-1)

    own_x = x.gather(-1, own_class)
    if quality is not None:
        assert formula.soft_terms is not None
        own_losses, own_grad = formula.soft_terms(own_x, quality.unsqueeze(-1).to(x.dtype), grad is not None)
    else:
        positive, negative = formula.weights
        by_class = {"weights": (positive[own_class], negative)} if isinstance(positive, Tensor) else {}
        own_losses, own_grad = formula.terms(own_x, 1, grad is not None, **by_class)
    for values, own_values in ((losses, own_losses), (grad, own_grad)):
        if values is not None and own_values is not None:
            values.scatter_(-1, own_class, torch.where(is_assigned, own_values, values.gather(-1, own_class)))
            # masked_fill, not a product: an ignored anchor stays at zero even if its logit is inf or NaN
            values.masked_fill_(is_ignored, 0)
