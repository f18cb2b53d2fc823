"""The elementwise losses of a batch on a GPU, over the levels' logits where they lie: one launch each way.

Shapes
    levels:   of each pyramid level (N, ..., K) logits, such as the (N, H, W, A, K) view of a head's output
    labels:   (N, R)  int64: 0..K-1 object class, K background, -1 ignored; R anchors over all levels, in their order
    divisors: (N,)    float32, of each image's loss

The logits are read once: the forward pass writes their gradient, too, and the backward pass computes it anew only
where a factor has been applied to the loss. For float16 it is left to the backward pass, since the loss scale is such a
factor. Beside the logits and their gradient no tensor of their size is made. The kernel walks over a level in the order
of its memory, be it channels last or first. Nothing waits for the device. Triton is imported with the first launch.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .formula import refuse_second_derivative, wants_grad

KINDS = ("cross_entropy", "focal", "focal_star", "hinge")

# Fixed, so that no shape is tuned for: images of several scales have hundreds of shapes.
_TILE = 1024  # logits
_TILES = 4  # that a program computes, so that what it does once is little beside them
_TILES_IF_WRITTEN = 32  # so that few programs have to start to find that there is nothing to do
_NUM_WARPS = 4
_GROUP = 16  # classes of an anchor at a time, at most
_RUN = 64  # anchors of one class side by side where the classes are not; 64 fill a line of the cache


def triton_missing(device: torch.device, capability: tuple[int, int] | None = None) -> str | None:
    """Return why `triton_batch_loss` cannot run on a device, or None if it can.

    It can on an NVIDIA GPU of compute capability 8.0 or newer, and anywhere with TRITON_INTERPRET=1, very slowly.
    PyTorch is asked for the capability if that is not given, and uses the GPU for it.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"Triton's kernels run on a GPU, not on {device}"
    if torch.version.cuda is None or (capability or torch.cuda.get_device_capability(device)) < (8, 0):
        return "this is not an NVIDIA GPU of compute capability 8.0 or newer"
    return None


def triton_batch_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    divisors: Tensor,
    *,
    kind: str,
    weights: tuple[float, float],
    gamma: float,
    shift: float,
) -> Tensor:
    """The sum over images of their loss (section 3; appendix A for FL*; section 5.1 for the hinge) over their divisor.

    Args:
        levels: (N, ..., K) each, float32, bfloat16 or float16, all the same; of any strides. Computed in float32, for
            bfloat16 to a relative 1e-5.
        labels: (N, R); as their values stay on the device, one outside -1..K counts as background.
        divisors: (N,); they get no gradient.
        kind: "cross_entropy", "focal", "focal_star" or "hinge".
        weights: of positives and of negatives, such as (alpha, 1 - alpha).
        gamma: of "focal" and "focal_star", in the range that `focal_loss` and `focal_loss_star` document.
        shift: beta of "focal_star", margin of "hinge", in the range documented there.

    Returns:
        A float32 scalar. The same input gives the same bits. The gradient of a level has its dtype, rounded once, and
        its strides; that of an ignored anchor is 0, whatever its logits are.

    Raises:
        ValueError: unknown kind, shapes that do not fit, an image of a level that spans 2^31 elements or more.
        TypeError: tensors of the wrong dtype.
        RuntimeError: from a backward with create_graph=True, as of every loss of the family.
    """
    _check(levels, labels, divisors, kind)
    if not labels.numel():
        return torch.stack([level.sum(dtype=torch.float32) for level in levels]).sum()
    # A logit that is several elements (stride 0) would get several gradients; no head makes such.
    levels = [level.contiguous() if 0 in level.stride() else level for level in levels]
    constants = _constants(kind, weights, gamma, shift)
    loss: Tensor = _TritonBatchLoss.apply(
        labels.contiguous(), divisors.contiguous(), constants, wants_grad(levels), *levels
    )
    return loss


def _check(levels: Sequence[Tensor], labels: Tensor, divisors: Tensor, kind: str) -> None:
    """Raise what `triton_batch_loss` documents of its input, but for the span."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
    shapes = [tuple(level.shape) for level in levels]
    if not shapes or any(len(shape) < 2 or shape[-1] < 1 for shape in shapes):
        raise ValueError(f"levels must be one or more (N, ..., K) with K >= 1 classes, not {shapes}")
    num_images, num_classes = shapes[0][0], shapes[0][-1]
    num_anchors = sum(math.prod(shape[1:-1]) for shape in shapes)
    fit = all((shape[0], shape[-1]) == (num_images, num_classes) for shape in shapes)
    if not fit or labels.shape != (num_images, num_anchors) or divisors.shape != (num_images,):
        raise ValueError(
            f"levels {shapes}, labels {tuple(labels.shape)} and divisors {tuple(divisors.shape)} must be "
            "(N, ..., K) each, (N, R) and (N,)"
        )
    dtypes = {level.dtype for level in levels}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
        raise TypeError(f"levels must all be float32, bfloat16 or float16, not {', '.join(sorted(map(str, dtypes)))}")
    if labels.dtype != torch.int64 or divisors.dtype != torch.float32:
        raise TypeError(f"labels must be int64 and divisors float32, not {labels.dtype} and {divisors.dtype}")


class _TritonBatchLoss(torch.autograd.Function):
    """One launch each way; the gradients are written in the first unless a loss scale will follow."""

    @staticmethod
    def forward(ctx, labels, divisors, constants, needs_grad, *levels):  # type: ignore[no-untyped-def]
        layout = _layout(_shapes(levels), _TILES)
        ctx.save_for_backward(labels, divisors, *levels)
        ctx.constants = constants
        # float16 is trained with a loss scale, which lifts what would round to zero: it has to be known first.
        ctx.grads = _empty_like(levels) if needs_grad and levels[0].dtype != torch.float16 else None
        partials = torch.empty(len(divisors), layout.num_programs, dtype=torch.float32, device=labels.device)
        _launch(levels, ctx.grads, partials, labels, divisors, None, layout, constants)
        return partials.sum()

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        labels, divisors, *levels = ctx.saved_tensors
        # The device alone knows the incoming gradient. If it is 1, the launch finds its work done; if not, or if an
        # earlier backward pass was given the tensors, they are computed from the logits; so too if a hook such as
        # `save_on_cpu` has changed the strides of those, as there is one layout for both.
        grads, ctx.grads = ctx.grads, None
        written_for, num_tiles = 1.0, _TILES_IF_WRITTEN
        if grads is None or _shapes(grads) != _shapes(levels):
            grads, written_for, num_tiles = _empty_like(levels), math.nan, _TILES
        layout = _layout(_shapes(levels), num_tiles)
        _launch(levels, grads, None, labels, divisors, grad_output, layout, ctx.constants, written_for)
        return None, None, None, None, *grads


def _shapes(levels: Sequence[Tensor]) -> tuple[tuple[torch.Size, tuple[int, ...]], ...]:
    return tuple((level.shape, level.stride()) for level in levels)


def _empty_like(levels: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the same shapes and strides; `torch.empty_like` would close the gaps of a level that has some."""
    return [
        torch.empty_strided(level.shape, level.stride(), dtype=level.dtype, device=level.device) for level in levels
    ]


class _Layout(NamedTuple):
    """The kernel's walk over the levels; all but `num_programs` are arguments of it.

    Attributes:
        num_programs: of one image.
        num_tiles: of one program, at most.
        numbers: of all levels each, packed: the first program, the anchors, the first anchor, the strides of an image
            and of a class, and of each dimension of anchors, the fastest first, its size and its strides in the
            level and in the labels.
        options: what the kernel is compiled for.
    """

    num_programs: int
    num_tiles: int
    numbers: tuple[Any, ...]
    options: dict[str, Any]


class _Constants(NamedTuple):
    """The loss as the kernel has it, with scale (gamma or margin) and shift (beta or the margin's logit) as pairs."""

    kind: str
    weights: tuple[float, float]
    scale: tuple[float, float] = (0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)


def _launch(
    levels: Sequence[Tensor],
    grads: Sequence[Tensor] | None,
    partials: Tensor | None,
    labels: Tensor,
    divisors: Tensor,
    grad_output: Tensor | None,
    layout: _Layout,
    constants: _Constants,
    written_for: float = math.nan,
) -> None:
    """Launch the kernel over the levels' logits; see `triton_kernels.loss_kernel` for what None means."""
    from .triton_kernels import loss_kernel

    kind, *numbers = constants
    with torch.cuda.device_of(labels):
        loss_kernel[(layout.num_programs, len(labels))](
            tuple(levels), grads and tuple(grads), partials, layout.numbers, layout.num_tiles, labels, divisors,
            grad_output, written_for, labels.shape[1], *numbers,
            kind=kind, **layout.options, num_warps=_NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def _constants(kind: str, weights: tuple[float, float], gamma: float, shift: float) -> _Constants:
    weights = (float(weights[0]), float(weights[1]))
    if kind == "cross_entropy" or (kind == "focal" and _split(gamma)[0] == 0):  # without 0 * inf
        return _Constants("cross_entropy", weights)
    if kind == "focal":
        return _Constants("focal_squared" if gamma == 2 else "focal", weights, scale=_split(gamma))
    if kind == "focal_star":
        return _Constants(kind, weights, scale=_split(gamma), shift=_split(shift))
    logit = math.log(shift) - math.log1p(-shift) if shift < 1 else 1e30
    return _Constants(kind, weights, scale=_split(shift), shift=_split(logit))


def _split(value: float) -> tuple[float, float]:
    """A number as the sum of two in float32."""
    high = torch.tensor(value, dtype=torch.float32, device="cpu").item()  # whatever the default: a GPU were waited for
    return high, value - high


@functools.lru_cache(maxsize=512)  # two of each batch's shapes
def _layout(levels: tuple[tuple[torch.Size, tuple[int, ...]], ...], num_tiles: int) -> _Layout:
    """The layout of levels given by their shapes and strides, for programs of so many tiles."""
    num_classes = levels[0][0][-1]
    # Whatever the walk, the result is right; it is fast if neighbours in it are neighbours in memory.
    shape, stride = max(levels, key=lambda level: math.prod(level[0]))
    anchor_strides = [step for size, step in zip(shape[1:-1], stride[1:-1], strict=True) if size > 1]
    run = 1 if num_classes == 1 or stride[-1] <= min(anchor_strides, default=stride[-1]) else _RUN

    group = min(_GROUP, num_classes & -num_classes)  # the largest power of 2 that divides K

    starts, first_anchors, counts = [0], [0], []
    for shape, stride in levels:
        _check_span(shape, stride)
        counts.append(math.prod(shape[1:-1]))
        first_anchors.append(first_anchors[-1] + counts[-1])
        starts.append(starts[-1] + math.ceil(math.ceil(counts[-1] / run) * run * num_classes / (_TILE * num_tiles)))

    dims = [_anchor_dims(shape[1:-1], stride[1:-1]) for shape, stride in levels]
    most = max(1, *map(len, dims))
    padded = [level + [(1, 0, 0)] * (most - len(level)) for level in dims]
    is_dense = run == 1 and all(
        level_dims in ([(count, num_classes, 1)], [])
        and (stride[-1] == 1 or num_classes == 1)
        and (stride[0] == count * num_classes or shape[0] == 1)
        for (shape, stride), count, level_dims in zip(levels, counts, dims, strict=True)
    )
    numbers = (
        starts[:-1],
        counts,
        first_anchors[:-1],
        [stride[0] for _, stride in levels],
        [stride[-1] for _, stride in levels],
        [list(zip(*of_levels, strict=True)) for of_levels in zip(*padded, strict=True)],
    )
    options = {"num_classes": num_classes, "group": group, "run": run, "is_dense": is_dense, "tile_size": _TILE}
    return _Layout(starts[-1], num_tiles, _packed(numbers), options)


def _check_span(shape: torch.Size, stride: tuple[int, ...]) -> None:
    """Raise ValueError unless the kernel's 32 bits hold every offset in an image."""
    span = 1 + sum((size - 1) * step for size, step in zip(shape[1:], stride[1:], strict=True))
    if span >= 2**31 - _TILE * _RUN:
        raise ValueError(f"an image of the level {tuple(shape)} spans {span} elements, too many for 32 bits")


def _anchor_dims(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """Size and strides, in the level and in the labels, of the dimensions of anchors; the fastest in memory first.

    Neighbours that make one long dimension are joined: all of them in channels last, height and width otherwise.
    """
    in_labels = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    dims = sorted(zip(strides, in_labels, sizes, strict=True))
    joined: list[tuple[int, int, int]] = []
    for step, label_step, size in dims:
        if size == 1:
            continue
        if joined and (step, label_step) == (joined[-1][0] * joined[-1][1], joined[-1][0] * joined[-1][2]):
            joined[-1] = (joined[-1][0] * size, *joined[-1][1:])
        else:
            joined.append((size, step, label_step))
    return joined


def _packed(numbers: Any) -> Any:
    """Nested lists as tuples, each number n as 2 n + 3.

    Triton compiles anew for an integer in a tuple that is 1 or becomes a multiple of 16, thus for most new shapes; what
    is odd and above 1 is neither.
    """
    return 2 * numbers + 3 if isinstance(numbers, int) else tuple(map(_packed, numbers))
